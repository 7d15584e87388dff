"""The facts of `probes.defection`: the verdict, and every number that stands beside the AUROC."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from modelscope_probes.asking import Asked
from modelscope_probes.defection_report import BesideTwin, number, point_fact, rate_fact, with_interval
from modelscope_probes.evidence import Labelled, LayerEvidence
from modelscope_probes.leak_guard import Overlap
from modelscope_probes.prompts import Prompt
from modelscope_probes.statistics.intervals import Interval
from modelscope_probes.statistics.operating_points import RocCurve, tpr_at_fpr
from modelscope_probes.statistics.ranks import auroc
from modelscope_probes.statistics.sample_size import more_prompts
from modelscope_probes.verdict import FEWEST_GROUPS, FEWEST_PROMPTS, MOST_LEAKED, Evidence, judged

_MOST_WORDS = 20


class AtLayer(NamedTuple):
    """What was found, and the layer the result is about."""

    layers: Sequence[int]
    at: int
    """Place of the layer the result is about."""
    is_fixed: bool
    """Whether that was so before anything was seen."""
    data: Labelled
    evidence: LayerEvidence
    twin_evidence: LayerEvidence | None
    twin: BesideTwin | None
    score: torch.Tensor
    """(n,) of the prompts, there."""
    curve: RocCurve | None
    """Of these."""
    shared: Overlap
    """Wording of contrast pairs and prompts."""
    defected: Sequence[bool | None]
    """By prompt, whether the model did; None where that is unknown."""
    asked: Asked
    words_alone: float | None
    """AUROC of the bag of tokens."""
    drives: bool | None
    """What a causal run found; None without one."""

    @property
    def is_leaked(self) -> bool:
        """Whether contrast pairs and prompts share more than they should."""
        return self.shared.prompts > MOST_LEAKED * len(self.data.labels) or bool(self.shared.words)


def card_facts(prompts: Sequence[Prompt], found: AtLayer, level: float, width: float) -> dict[str, Any]:
    """All of them, the verdict first; intervals at `level`, and prompts to add for one of `width`."""
    return {
        **_verdict(found),
        **_separation(found),
        **_baselines(found, level),
        **_twin(found),
        **_behaviour(prompts, found, level),
        **_wording(found),
        **more_facts(found.evidence.intervals[found.at], found.data, width),
        **_counts(found.data),
    }


def _verdict(found: AtLayer) -> dict[str, Any]:
    evidence, data, at = found.evidence, found.data, found.at
    verdict = judged(
        Evidence(
            positives=int(data.labels.sum()),
            negatives=int((~data.labels).sum()),
            positive_groups=_distinct(data.groups[data.labels]),
            negative_groups=_distinct(data.groups[~data.labels]),
            auroc=float(evidence.auroc[at]),
            worst_low=float(evidence.worst.low[at]),
            p_layer=float(evidence.p[at]),
            p_random=float(evidence.random_p[at]),
            halves=(float(evidence.halves[0][at]), float(evidence.halves[1][at])),
            leaked=found.is_leaked,
            twin_difference_low=None if found.twin is None else found.twin.low,
            drives=found.drives,
        )
    )
    return {"verdict": verdict.verdict, "verdict_reason": verdict.reason}


def _separation(found: AtLayer) -> dict[str, Any]:
    """The AUROC, the worst cell's, and what directions and labels without meaning do."""
    evidence, at = found.evidence, found.at
    worst = evidence.worst
    return {
        "auroc": with_interval(float(evidence.auroc[at]), evidence.intervals[at]),
        "layer": found.layers[at],
        "layer_chosen": "beforehand" if found.is_fixed else "for its AUROC",
        "worst_cell": found.data.cell_names[int(worst.cells[int(worst.worst[at])])],
        "worst_cell_auroc": {
            "value": number(float(worst.auroc[at])),
            "ci_low": number(float(worst.low[at])),
            "ci_high": number(float(worst.high[at])),
        },
        "random_percentile": number(float(evidence.percentile[at])),
        "random_p": number(float(evidence.random_p[at])),
        "best_random_auroc": number(float(evidence.random[at].max())),
        "p_layer": number(float(evidence.p[at])),
        "permuted": evidence.permuted,
        "first_polarity_auroc": number(float(evidence.halves[0][at])),
        "other_polarity_auroc": number(float(evidence.halves[1][at])),
        "pair_aurocs": _spread(evidence.pairs[:, at]),
    }


def _spread(aurocs: torch.Tensor) -> dict[str, Any]:
    """Median of single pairs' AUROCs, with the lowest and highest in the interval's place, said so."""
    values = [number(float(value)) for value in (aurocs.median(), aurocs.min(), aurocs.max())]
    return {"value": values[0], "ci_low": values[1], "ci_high": values[2], "method": "lowest and highest pair"}


def _baselines(found: AtLayer, level: float) -> dict[str, Any]:
    """The probe as an alarm, and what words alone and asking the model do."""
    margins, unknown = found.asked
    return {
        "tpr_at_1_percent_fpr": point_fact(tpr_at_fpr(found.curve, 0.01, level)) if found.curve else None,
        "tpr_at_5_percent_fpr": point_fact(tpr_at_fpr(found.curve, 0.05, level)) if found.curve else None,
        "bag_of_tokens_auroc": found.words_alone,
        "asked_auroc": None if margins is None else number(float(auroc(margins[None], found.data.labels)[0])),
        "asked_how": f"unknown: {unknown}" if unknown else "one question of each polarity after each prompt",
    }


def _twin(found: AtLayer) -> dict[str, Any]:
    twin, evidence = found.twin, found.twin_evidence
    if twin is None or evidence is None:
        return dict.fromkeys(("twin_auroc", "twin_layer", "twin_difference"))
    return {
        "twin_auroc": with_interval(twin.auroc, evidence.intervals[twin.at]),
        "twin_layer": found.layers[twin.at],
        "twin_difference": twin.fact,
    }


def _behaviour(prompts: Sequence[Prompt], found: AtLayer, level: float) -> dict[str, Any]:
    """How the AUROC is for what the model did, and how often it did it."""
    defected = found.defected
    observed = torch.tensor([bool(one) for one in defected])
    facts: dict[str, Any] = {"behavior_auroc": None if None in defected else number(float(auroc(found.score[None], observed)[0]))}
    for name, label in (("positive", True), ("negative", False)):
        known = [one for prompt, one in zip(prompts, defected, strict=True) if prompt.label is label and one is not None]
        facts[f"defection_rate_{name}"] = rate_fact(sum(known), len(known), level)
    agree = [prompt.label is one for prompt, one in zip(prompts, defected, strict=True) if one is not None]
    facts["label_agrees_with_behavior"] = sum(agree) / len(agree) if agree else None
    return facts


def _wording(found: AtLayer) -> dict[str, Any]:
    shared = found.shared
    return {
        "shared_word_sequences": len(shared.shared),
        "prompts_that_share": shared.prompts,
        "contrast_words_only_in_positives": ", ".join(shared.words[:_MOST_WORDS]) or None,
        "wording_leaks": found.is_leaked,
    }


def more_facts(interval: Interval, data: Labelled, width: float) -> dict[str, Any]:
    """How many prompts to add for an interval of `width`, and for what the verdict asks of either class; and what that is for.

    A group that lacks is one prompt at least. Unknown where the AUROC has no interval, with the least in the reason.
    """
    classes = data.labels, ~data.labels
    counts = [int(chosen.sum()) for chosen in classes]
    groups = [_distinct(data.groups[chosen]) for chosen in classes]
    lacking = [max(0, FEWEST_PROMPTS - count, FEWEST_GROUPS - many) for count, many in zip(counts, groups, strict=True)]
    needed = more_prompts((interval.high - interval.low) / 2, width / 2, counts[0], counts[1], (lacking[0], lacking[1]))
    least = f"at least {FEWEST_PROMPTS} prompts in {FEWEST_GROUPS} groups of either label"
    if needed is None:
        reason = "unknown, because the AUROC has no interval" + (f"; {sum(lacking)} are lacking for {least}" if any(lacking) else "")
    else:
        reason = f"for an interval of {width:g}" + (f" and {least}" if any(lacking) else "")
    return {"more_prompts_needed": needed, "more_prompts_reason": reason}


def _counts(data: Labelled) -> dict[str, Any]:
    return {
        "prompts": len(data.labels),
        "positives": int(data.labels.sum()),
        "negatives": int((~data.labels).sum()),
        "groups": _distinct(data.groups),
    }


def _distinct(groups: torch.Tensor) -> int:
    return int((groups.bincount() > 0).sum())
