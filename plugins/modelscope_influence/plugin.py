"""What this plugin contributes: influence of training examples, with what tells how far to trust it."""

from __future__ import annotations

from collections.abc import Iterable

from modelscope_app.api import Analysis, Checkpoints, Panel, hookimpl
from modelscope_influence.distance_params import DistanceParams
from modelscope_influence.params import FactorsParams, ScoresParams, SelfParams
from modelscope_influence.tracin_params import TracinParams
from modelscope_influence.validate_params import ValidateParams

MODELSCOPE_API = (1, 1)


@hookimpl
def modelscope_analyses() -> Iterable[Analysis]:
    """From curvature to scores, and how far to trust them."""
    model = Checkpoints(kind="model")
    return [
        Analysis(
            name="factors",
            title="Curvature for influence",
            summary="What does the loss landscape look like around this checkpoint, as far as influence functions need to know?",
            params=FactorsParams,
            run="modelscope_influence.analyses.factors:run",
            estimate="modelscope_influence.estimates:factors_estimate",
            checkpoints=model,
        ),
        Analysis(
            name="scores",
            title="Influence of training examples",
            summary="Which training examples made the model do this, and which worked against it?",
            params=ScoresParams,
            run="modelscope_influence.analyses.scores:run",
            estimate="modelscope_influence.estimates:scores_estimate",
            checkpoints=model,
        ),
        Analysis(
            name="self",
            title="Self-influence",
            summary="Which training examples does the model know only by heart: mislabelled, odd or rare ones?",
            params=SelfParams,
            run="modelscope_influence.analyses.self_influence:run",
            estimate="modelscope_influence.estimates:self_estimate",
            checkpoints=model,
        ),
        Analysis(
            name="tracin",
            title="Influence along training",
            summary="Which training examples taught the model this while it was trained, step by step along a series of checkpoints?",
            params=TracinParams,
            run="modelscope_influence.analyses.tracin:run",
            estimate="modelscope_influence.tracin_estimate:tracin_estimate",
            checkpoints=Checkpoints(kind="series"),
        ),
        Analysis(
            name="validate",
            title="Trust in influence",
            summary="How far may an influence score be believed here: removals solved for, beside what was predicted?",
            params=ValidateParams,
            run="modelscope_influence.analyses.validate:run",
            estimate="modelscope_influence.validate_estimate:validate_estimate",
            checkpoints=model,
        ),
        Analysis(
            name="distance",
            title="Distance of two models",
            summary="How far apart are what two checkpoints say of the same rows, and can it be told without the rows?",
            params=DistanceParams,
            run="modelscope_influence.analyses.distance:run",
            estimate="modelscope_influence.distance_estimate:distance_estimate",
            checkpoints=Checkpoints(minimum=2, maximum=2, kind="model"),
        ),
    ]


@hookimpl
def modelscope_panels() -> Iterable[Panel]:
    """What no view can show: rows that change with the ranking, with the inside of one; and a completion to type."""
    panels = "modelscope_influence.panels"
    return [
        Panel(name="ranked", title="Who taught it", widget=f"{panels}.ranked:RankedPanel", analyses=("scores",)),
        Panel(name="ask", title="Ask which examples", widget=f"{panels}.ask:AskPanel", analyses=("scores",)),
    ]
