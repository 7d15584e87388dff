"""`probes.linear`: is a label linearly there, on rows the probe has not seen, and would labels without meaning look the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import polars as pl
import torch

from modelscope_app.api import BadInput, JobContext, UsageError
from modelscope_probes import linear_report as report
from modelscope_probes.analyses.defection import chosen_layers, labelled, labelled_prompts, read_activations
from modelscope_probes.conformal import benign_needed, conformal_threshold, threshold_rank
from modelscope_probes.defection_report import number, with_interval
from modelscope_probes.distractor import planted
from modelscope_probes.held_out import UNSUPERVISED, Fitted, Split, features_of, fitted, fitted_pairs, fitter, pair_statistics, split_of
from modelscope_probes.labelled_rows import Rows, read_rows_file
from modelscope_probes.leace import leace
from modelscope_probes.online_code import online_code
from modelscope_probes.params import LinearParams
from modelscope_probes.probe_file import ProbeCard, tokenizer_hash
from modelscope_probes.prompts import resolved
from modelscope_probes.reading import batch_tokens
from modelscope_probes.selectivity import accuracy, control_labels, selectivity
from modelscope_probes.statistics.ranks import auroc

_WHOLE_PROJECTION_BYTES = 2**30
"""Of LEACE's P for all layers, above which its two factors are stored in its place."""
_EXTRAS = ("shrinkage", "gradient_norm", "iterations", "losses", "share")
"""What methods say of their fit, layer by layer."""


def run(context: JobContext, params: LinearParams) -> None:
    """Take rows, fit on some and judge on others, then every control."""
    rows, layers = _rows(context, params)
    if params.method in UNSUPERVISED and rows.x_no is None:
        raise UsageError(f"--method {params.method} sees no labels and needs pairs: x_yes, x_no and truth in --activations")
    generators = {name: context.generator("linear", name) for name in ("bootstrap", "permutation")}
    if rows.score is not None:
        chosen = torch.ones_like(rows.labels) if rows.test is None else rows.test
        judged = rows.score[None, chosen], rows.labels[chosen], rows.groups[chosen]
        found = report.judged(*judged, params.draws, params.level, generators)
        _facts_and_tables(context, params, rows, [0], "none", chosen, rows.score[None], found, {})
        for view in report.views(False, ["scores"]):
            context.view(view)
        return

    split = split_of(rows, params.folds)
    finite = _finite_layers(context, rows, layers)
    known = _only(rows, finite)
    made = context.once("fit", lambda: _numbers(_fit(context, params, known, split))) if finite else {}
    held_out = torch.full((len(layers), len(split.judged)), torch.nan, dtype=torch.float64)
    columns: dict[str, torch.Tensor | Sequence[Any]] = {}
    if finite:
        held_out[finite] = made["held_out"]
        columns = _fit_columns(made, finite, len(layers), rows.labels[split.fitting])
    labels, groups = rows.labels[split.judged], rows.groups[split.judged]
    found = report.judged(held_out, labels, groups, params.draws, params.level, generators)
    columns["test_accuracy"] = accuracy(held_out, labels).masked_fill(held_out.isnan().any(-1), torch.nan)
    judged_rows = torch.zeros(len(rows.labels), dtype=torch.bool)
    judged_rows[split.judged] = True
    scored = torch.full((len(layers), len(rows.labels)), torch.nan, dtype=torch.float64)
    scored[:, split.judged] = held_out
    tables = _facts_and_tables(context, params, rows, layers, params.method, judged_rows, scored, found, columns)
    if finite:
        best = report.best_row(found.auroc)
        at = finite.index(best) if best in finite else 0  # where scores overflow, no layer is known
        _save_probe(context, params, known, split, layers, finite, made, best)
        tables += _controls(context, params, known, split, at)
        if params.method in UNSUPERVISED:
            tables += _distractor(context, params, known, split, at)
        if params.erase == "leace":
            tables += _erasure(context, params, known, split, layers, finite, found)
    for view in report.views(len(layers) > 1, tables):
        context.view(view)


def _rows(context: JobContext, params: LinearParams) -> tuple[Rows, list[int]]:
    """Labelled rows and the layer of each."""
    if params.activations:
        rows = read_rows_file(params.activations)
        return rows, list(range(rows.layer_count))
    if not context.checkpoints:
        raise UsageError("--eval FILE needs a checkpoint to read activations of: mscope run probes.linear CHECKPOINT --eval FILE")
    tokenizer = context.tokenizer(0)
    prompts = labelled_prompts(context, params.eval, tokenizer, resolved(params.template, tokenizer))
    layers = chosen_layers(context, 0, [])
    sites = [f"{params.site}.{layer}" for layer in layers]
    x = read_activations(context, 0, prompts, sites, params.pooling, batch_tokens(params.tokens_per_batch, context.device), "prompts")
    data = labelled(prompts)
    has_groups = int(data.groups.max()) + 1 < len(prompts)
    return Rows(data.labels, data.groups, has_groups, None, x=x.unbind(1)), layers


def _sides(rows: Rows) -> dict[str, tuple[torch.Tensor, ...]]:
    return {name: values for name in ("x", "x_no", "x_yes") if (values := getattr(rows, name)) is not None}


def _only(rows: Rows, places: Sequence[int]) -> Rows:
    """Rows of these layers alone."""
    x, x_no, x_yes = (None if values is None else tuple(values[at] for at in places) for values in (rows.x, rows.x_no, rows.x_yes))
    return rows._replace(x=x, x_no=x_no, x_yes=x_yes)


def _finite_layers(context: JobContext, rows: Rows, layers: Sequence[int]) -> list[int]:
    """Places of the layers without NaN or infinity; of the others everything is unknown, and a warning says so."""
    places = list(range(len(layers)))
    finite = [at for at in places if all(bool(torch.isfinite(values[at]).all()) for values in _sides(rows).values())]
    if len(finite) < len(places):
        wrong = [layers[at] for at in places if at not in finite]
        context.warn(f"activations hold NaN or infinity in {len(wrong)} of {len(layers)} layers ({wrong[0]} first): unknown there")
    return finite


def _fit(context: JobContext, params: LinearParams, rows: Rows, split: Split) -> Fitted:
    if params.method not in UNSUPERVISED:
        features = features_of(rows, params.pair_normalization)
        fit = fitter(params.method, params.c)
        return fitted(features, rows.layer_count, rows.labels, split, fit, check=context.check_cancelled)
    assert rows.x_no is not None and rows.x_yes is not None
    return fitted_pairs(
        *(rows.x_no, rows.x_yes, rows.labels, split, params.method, params.pair_normalization),
        generator=lambda: context.generator("fit", "restarts"),
        check=context.check_cancelled,
    )


def _numbers(made: Fitted) -> dict[str, torch.Tensor]:
    """What a stage can store."""
    extras = {name: getattr(made.probe, name) for name in _EXTRAS if isinstance(getattr(made.probe, name, None), torch.Tensor)}
    return {
        "direction": made.probe.direction,
        "bias": made.probe.bias,
        "train": made.train,
        "held_out": made.held_out,
        **extras,
    }


def _fit_columns(made: dict[str, torch.Tensor], finite: Sequence[int], count: int, labels: torch.Tensor) -> dict[str, Any]:
    """Numbers of the saved probe's fit, by layer."""
    of_finite: dict[str, torch.Tensor] = {"train_auroc": auroc(made["train"], labels)}
    of_finite |= {name: made[name].double() for name in _EXTRAS if name in made and made[name].ndim == 1}
    if "losses" in made:
        of_finite["best_loss"], of_finite["worst_loss"] = made["losses"].amin(-1), made["losses"].amax(-1)
    columns = {}
    for name, values in of_finite.items():
        whole = torch.full((count,), torch.nan, dtype=torch.float64)
        whole[list(finite)] = values
        columns[name] = whole
    return columns


def _facts_and_tables(
    context: JobContext,
    params: LinearParams,
    rows: Rows,
    layers: Sequence[int],
    method: str,
    judged_rows: torch.Tensor,
    scored: torch.Tensor,
    found: report.Judged,
    columns: dict[str, Any],
) -> list[str]:
    """The table of layers, the scores at the best layer, and the headline."""
    best = report.best_row(found.auroc)
    facts: dict[str, Any] = {
        "test_auroc": with_interval(float(found.auroc[best]), found.intervals[best]),
        "best_layer": layers[best],
        "method": method,
        "delong_se": number(float(found.delong_error[best])),
        "p_max_t": number(float(found.p[best])),
        "permuted": found.permuted,
        "rows": len(rows.labels),
        "judged_rows": int(judged_rows.sum()),
        "judged": _how_judged(params, rows, method),
        "positives": int(rows.labels[judged_rows].sum()),
        "negatives": int((~rows.labels[judged_rows]).sum()),
        "groups": int(rows.groups.max()) + 1 if rows.has_groups else None,
        "one_class_draws": found.redrawn,
    }
    if params.alpha is not None:
        benign = (~rows.labels) & judged_rows
        count = int(benign.sum())
        is_one_probe = rows.test is not None or method == "none"
        thresholds = [_threshold(scored[layer, benign], params) if is_one_probe else None for layer in range(len(layers))]
        columns["threshold"] = [float("nan") if value is None else value for value in thresholds]
        facts |= {
            "alpha": str(params.alpha),
            "threshold": number(thresholds[best]),
            "threshold_rank": threshold_rank(count, params.alpha),
            "benign": count,
        }
        if not is_one_probe:
            context.warn(
                f"no threshold for a false-positive rate of {params.alpha}: held-out scores are those of the folds' probes, and the saved "
                "probe, fitted on all rows, is another one; give activations with `test` (1 = held out) to have one"
            )
        elif thresholds[best] is None and count < benign_needed(params.alpha):
            needed = benign_needed(params.alpha)
            context.warn(f"no threshold for a false-positive rate of {params.alpha}: it needs {needed} benign rows, and there are {count}")
    context.table("layers", report.layer_table(layers, method, found, columns))
    context.table(
        "scores",
        pl.DataFrame(
            {
                "row": judged_rows.nonzero()[:, 0].tolist(),
                "group": rows.groups[judged_rows].tolist(),
                "label": rows.labels[judged_rows].tolist(),
                "score": [number(value) for value in scored[best, judged_rows].tolist()],
            },
            schema_overrides={"score": pl.Float64},
        ),
    )
    context.facts(facts)
    return ["scores"]


def _how_judged(params: LinearParams, rows: Rows, method: str) -> str:
    if method == "none":
        return "as given" if rows.test is None else "as given, held out by the file"
    return "held out by the file" if rows.test is not None else f"{params.folds} grouped folds"


def _threshold(benign: torch.Tensor, params: LinearParams) -> float | None:
    """The split-conformal threshold of one probe's scores of benign rows held out; None where they are too few or not finite."""
    if params.alpha is None or not len(benign) or not bool(torch.isfinite(benign).all()):
        return None
    found = conformal_threshold(benign, params.alpha)
    return None if found is None else float(found)


def _controls(context: JobContext, params: LinearParams, rows: Rows, split: Split, at: int) -> list[str]:
    """At the best layer: selectivity against control labels, and the description length of both kinds of labels."""
    x = features_of(rows, params.pair_normalization)(at, split.fitting, split.fitting)
    labels, groups = rows.labels[split.fitting], rows.groups[split.fitting]
    C = params.c
    supervised = params.method if params.method not in UNSUPERVISED else "logistic"
    facts: dict[str, Any] = {"selectivity": None, "control_accuracy": None}
    if rows.has_groups and int((groups.bincount() > 0).sum()) > 1 and int(groups.bincount().max()) > 1:
        try:
            found = selectivity(x, labels, groups, fitter(supervised, C), context.generator("linear", "control"), folds=params.folds)
        except BadInput as error:
            context.log(f"selectivity is unknown: {error}")
        else:
            facts = {"selectivity": number(float(found.selectivity)), "control_accuracy": number(float(found.control))}
    context.facts({**facts, "selectivity_of": supervised})
    if not params.online_code:
        return []
    context.check_cancelled()
    codes = {"labels": online_code(x, labels, context.generator("linear", "order"), groups)}
    generator = context.generator("linear", "control")
    control = control_labels(groups, generator) if int((groups.bincount() > 0).sum()) > 1 else labels
    if bool(control.any()) and not bool(control.all()):
        codes["control labels"] = online_code(x, control, context.generator("linear", "order"), groups)
    portions = []
    for name, code in codes.items():
        ends = [0, *code.ends]
        for place, (start, end, bits) in enumerate(zip(ends, code.ends, code.portion_bits.tolist(), strict=False)):
            strength = None if place == 0 else float(code.strengths[place - 1])
            portion = {"portion": f"{name} {start}-{end}", "labels": name, "first_row": start, "last_row": end - 1, "bits": bits}
            portions.append(portion | {"bits_per_row": bits / (end - start), "strength": strength})
    context.table("online_code", pl.DataFrame(portions, schema_overrides={"strength": pl.Float64}))
    context.facts(
        {
            "compression": number(float(codes["labels"].compression)),
            "control_compression": number(float(codes["control labels"].compression)) if "control labels" in codes else None,
        }
    )
    return ["online_code"]


def _distractor(context: JobContext, params: LinearParams, rows: Rows, split: Split, at: int) -> list[str]:
    """At the best layer, methods on pairs as they are and with a distractor planted: AUROC on the truth and on the distractor.

    Beside the unsupervised methods stands one that sees the labels: what it does not find is not there. Each fold's scores are turned
    by the labels in question, truth or distractor, of its training rows: by truth alone, the sign of a probe that found the distractor
    would be a coin toss in every fold.
    """
    assert rows.x_no is not None and rows.x_yes is not None
    x_no, x_yes = rows.x_no[at][None], rows.x_yes[at][None]
    strange = planted(x_no, x_yes, params.distractor, context.generator("linear", "distractor"))
    table = []
    for method in dict.fromkeys((params.method, "crc-tpc", "logistic")):
        for data, (no, yes) in {"as given": (x_no, x_yes), "distractor planted": (strange.no, strange.yes)}.items():
            made = fitted_pairs(
                *(no, yes, rows.labels, split, method, params.pair_normalization),
                generator=lambda: context.generator("fit", "restarts"),
                C=params.c,
                check=context.check_cancelled,
                sign_labels=strange.distractor,
            )
            assert made.turned is not None
            on_truth = float(auroc(made.held_out, rows.labels[split.judged])[0])
            on_distractor = float(auroc(made.turned, strange.distractor[split.judged])[0])
            table.append(
                {
                    "method": method,
                    "sees_labels": method not in UNSUPERVISED,
                    "pairs": data,
                    "strength": 0.0 if data == "as given" else params.distractor,
                    "auroc_truth": number(on_truth),
                    "auroc_distractor": number(on_distractor),
                }
            )
    context.table("distractor", pl.DataFrame(table, schema_overrides={"auroc_truth": pl.Float64, "auroc_distractor": pl.Float64}))
    own = table[1]
    context.facts({"auroc_truth_with_distractor": own["auroc_truth"], "auroc_distractor": own["auroc_distractor"]})
    return ["distractor"]


def _erasure(
    context: JobContext,
    params: LinearParams,
    rows: Rows,
    split: Split,
    layers: Sequence[int],
    finite: Sequence[int],
    found: report.Judged,
) -> list[str]:
    """LEACE fitted on training rows as the artifact `leace`, and the AUROC of one method fitted before and after.

    For pairs, what is erased and fitted is the normalised difference. For a method that sees no labels the one fitted is logistic.
    """
    features = features_of(rows, params.pair_normalization)
    is_own = params.method not in UNSUPERVISED
    method = params.method if is_own else "logistic"

    def of(erase: bool) -> Fitted:
        return fitted(features, len(finite), rows.labels, split, fitter(method, params.c), erase, context.check_cancelled)

    before = found.auroc[list(finite)] if is_own else auroc(of(erase=False).held_out, rows.labels[split.judged])
    after = of(erase=True)
    aurocs = auroc(after.held_out, rows.labels[split.judged])
    labels = rows.labels[split.fitting]
    centred = labels.double() - labels.double().mean()
    width = features(0, split.fitting, split.fitting[:1]).shape[-1]
    is_whole = len(finite) * width * width * 8 <= _WHOLE_PROJECTION_BYTES
    kept: dict[str, list[torch.Tensor]] = {name: [] for name in ("mean", *(("P",) if is_whole else ("P_left", "P_right")))}
    ranks, left = [], []
    for layer in range(len(finite)):
        context.check_cancelled()
        inside = features(layer, split.fitting, split.fitting)
        eraser = leace(inside, labels)
        erased = eraser.erase(inside)
        left.append(float(((erased - erased.mean(0)).mT @ centred / (len(labels) - 1)).abs().max()))
        ranks.append(int(eraser.rank))
        kept["mean"].append(eraser.mean)
        factors = {"P": eraser.projection} if is_whole else {"P_left": eraser.left, "P_right": eraser.right}
        for name, values in factors.items():
            kept[name].append(values)
    context.table(
        "erasure",
        pl.DataFrame(
            {
                "layer": [layers[at] for at in finite],
                "method": [method] * len(finite),
                "auroc_before": [number(value) for value in before.tolist()],
                "auroc_after": [number(value) for value in aurocs.tolist()],
                "train_auroc_after": [number(value) for value in auroc(after.train, labels).tolist()],
                "largest_cross_covariance": left,
                "rank": ranks,
            },
            schema_overrides={"auroc_before": pl.Float64, "auroc_after": pl.Float64, "train_auroc_after": pl.Float64},
        ),
    )
    if not is_whole:
        context.log("P of all layers would take more than 1 GiB; its factors are stored, P = P_left @ P_right")
    context.tensors("leace", {name: values[0] if len(layers) == 1 else torch.stack(values) for name, values in kept.items()})
    at = finite.index(report.best_row(found.auroc)) if report.best_row(found.auroc) in finite else 0
    context.facts({"erased_auroc": number(float(aurocs[at])), "largest_cross_covariance": max(left)})
    return ["erasure"]


def _save_probe(
    context: JobContext,
    params: LinearParams,
    known: Rows,
    split: Split,
    layers: Sequence[int],
    finite: Sequence[int],
    made: dict[str, torch.Tensor],
    best: int,
) -> None:
    """Artifact `probe`: the direction of every layer, zero where activations were not finite; with its card where a model is known.

    A direction of pairs is one of normalised rows, and has the statistics of both sides beside it. `known` has the finite layers.
    """
    saved = {name: made[name] for name in ("direction", "bias")}
    if known.x_no is not None and known.x_yes is not None:
        saved |= pair_statistics(known.x_no, known.x_yes, split.fitting, params.pair_normalization)
    whole = {}
    for name, values in saved.items():
        whole[name] = values.new_full((len(layers), *values.shape[1:]), 1.0 if name.startswith("scale") else 0.0)
        whole[name][list(finite)] = values
    context.tensors("probe", whole)
    if not context.checkpoints or params.activations:
        return
    tokenizer = context.tokenizer(0)
    card = ProbeCard(
        site=params.site,
        layers=tuple(layers),
        best_layer=layers[best],
        pooling=params.pooling,
        template=resolved(params.template, tokenizer),
        method=params.method,
        model=context.checkpoints[0].fingerprint,
        model_name=context.checkpoints[0].name,
        tokenizer=tokenizer_hash(tokenizer.encode),
        fitted_on=hashlib.sha256(json.dumps(known.labels.tolist()).encode()).hexdigest()[:16],
    )
    context.json("probe", card.model_dump(mode="json"))
