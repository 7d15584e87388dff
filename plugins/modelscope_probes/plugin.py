"""What this plugin contributes: probes, each with what makes its number believable."""

from __future__ import annotations

from collections.abc import Iterable

from modelscope_app.api import Analysis, Checkpoints, Panel, hookimpl
from modelscope_probes.params import CausalParams, DefectionParams, LinearParams, ScoreParams, TransferParams

MODELSCOPE_API = (1, 1)


@hookimpl
def modelscope_analyses() -> Iterable[Analysis]:
    """`probes.defection`, `probes.linear`, `probes.causal`, `probes.score` and `probes.transfer`."""
    language_model = Checkpoints(kind="language-model")
    return [
        Analysis(
            name="defection",
            title="Defection probe",
            summary="Is there a direction that tells prompts on which this model would defect, and how far may it be trusted?",
            params=DefectionParams,
            run="modelscope_probes.analyses.defection:run",
            estimate="modelscope_probes.estimates:defection_estimate",
            checkpoints=language_model,
        ),
        Analysis(
            name="linear",
            title="Linear probe",
            summary="Can a label be read off activations linearly, and is it more than a probe can memorise?",
            params=LinearParams,
            run="modelscope_probes.analyses.linear:run",
            estimate="modelscope_probes.estimates:linear_estimate",
            checkpoints=Checkpoints(minimum=0, maximum=1),
        ),
        Analysis(
            name="causal",
            title="Causal test of a direction",
            summary="Does the behaviour change when a direction is ablated, steered, erased or patched, more than with random ones?",
            params=CausalParams,
            run="modelscope_probes.analyses.causal:run",
            estimate="modelscope_probes.estimates:causal_estimate",
            checkpoints=language_model,
        ),
        Analysis(
            name="score",
            title="Score with a saved probe",
            summary="What does a saved probe say of new prompts, token by token and layer by layer, also while the model answers?",
            params=ScoreParams,
            run="modelscope_probes.analyses.score:run",
            estimate="modelscope_probes.estimates:score_estimate",
            checkpoints=language_model,
        ),
        Analysis(
            name="transfer",
            title="Probe transfer along training",
            summary="Does a probe fitted at one step of training work at the others, and from which step on is the direction there?",
            params=TransferParams,
            run="modelscope_probes.analyses.transfer:run",
            estimate="modelscope_probes.estimates:transfer_estimate",
            checkpoints=Checkpoints(kind="series"),
        ),
    ]


@hookimpl
def modelscope_panels() -> Iterable[Panel]:
    """What no view can show: the card with its reasons, and a prompt to type."""
    panels = "modelscope_probes.panels"
    return [
        Panel(name="evidence", title="Evidence", widget=f"{panels}.evidence:EvidencePanel", analyses=("defection",)),
        Panel(name="rescore", title="Try a prompt", widget=f"{panels}.rescore:RescorePanel", analyses=("defection", "score")),
    ]
