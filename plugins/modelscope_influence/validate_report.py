"""How well predicted changes agree with those that were solved for: its measures, and the tables, facts and views of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
from scipy.stats import rankdata  # type: ignore[import-untyped]

from modelscope_app.api import BarsView, FactsView, JobContext, TableView
from modelscope_influence.validate_params import ValidateParams

TOP = 20
_FEW = 10
"""Removals below which a correlation says next to nothing."""
_MEASURES = ("r", "spearman", "slope")
GAPS = (
    ("warm start", "trained_anew", "warm_start"),
    ("proximity", "warm_start", "warm_start_near"),
    ("non-convergence", "warm_start_near", "pbrf"),
    ("linearisation", "pbrf", "exact"),
    ("solver", "exact", "curvature"),
)
"""Of the five-term decomposition: a name, and the two changes between which the gap is."""


class Agreement(NamedTuple):
    """Of predicted and measured changes; NaN where it cannot be told."""

    r: float
    """Pearson's."""
    spearman: float
    slope: float
    """Of the least-squares line through the origin: measured = slope * predicted."""


class Solving(NamedTuple):
    """How each removal was solved for, (removal,) each."""

    steps: torch.Tensor
    first_norm: torch.Tensor
    last_norm: torch.Tensor
    has_converged: torch.Tensor


class Compared(NamedTuple):
    """Everything the passes found, (removal, query) each unless it says otherwise."""

    removed: Sequence[int]
    by_score: Sequence[bool]
    """(removal,): whether it was chosen for its score."""
    solving: Solving
    changes: Mapping[str, torch.Tensor]
    """Measured and predicted changes of the queries' measures, in the measure's own units: `pbrf`, `curvature`, and what else there is."""
    rankings: Mapping[str, torch.Tensor]
    """Predictions on scales of their own, signed as changes."""
    stability: Sequence[Mapping[str, Any]]
    epsilons: Sequence[Mapping[str, Any]]
    lds: Mapping[str, torch.Tensor]
    """(query,) by method; empty where it was not measured."""
    exact_residual: float | None
    rows: int
    aside: int


def agreement(predicted: np.ndarray, measured: np.ndarray) -> Agreement:
    """Of two vectors, over the places where both are known; NaN for fewer than three, or where one does not vary.

    >>> agreement(np.array([1.0, 2.0, 4.0]), np.array([2.0, 4.0, 8.0])).slope
    2.0
    """
    known = np.isfinite(predicted) & np.isfinite(measured)
    predicted, measured = predicted[known], measured[known]
    squares = float(predicted @ predicted)
    slope = float(predicted @ measured) / squares if squares > 0 else math.nan
    if len(predicted) < 3:
        return Agreement(math.nan, math.nan, slope)
    return Agreement(_pearson(predicted, measured), _pearson(rankdata(predicted), rankdata(measured)), slope)


def median_agreement(predicted: torch.Tensor, measured: torch.Tensor) -> Agreement:
    """The median over queries of the agreement over removals, of (removal, query) each; queries of which it is unknown do not count."""
    found = np.array([agreement(p, m) for p, m in zip(predicted.T.numpy(), measured.T.numpy(), strict=True)])
    return Agreement(*(_median(found[:, at]) for at in range(3)))


def pooled_agreement(predicted: torch.Tensor, measured: torch.Tensor) -> Agreement:
    """Over all pairs of a removal and a query."""
    return agreement(predicted.flatten().numpy(), measured.flatten().numpy())


def interval(predicted: torch.Tensor, measured: torch.Tensor, params: ValidateParams, generator: torch.Generator) -> tuple[float, float]:
    """Percentiles of the median r over resampled removals, the same for every query; NaN where there is none."""
    known = (predicted.isfinite() & measured.isfinite()).all(1)
    count = int(known.sum())
    if count < 3:
        return math.nan, math.nan
    p, m = predicted[known].numpy(), measured[known].numpy()
    medians = np.full(params.draws, math.nan)
    for draw in range(params.draws):
        rows = torch.randint(count, (count,), generator=generator).numpy()
        medians[draw] = _median(_pearson_columns(p[rows], m[rows]))
    medians = medians[np.isfinite(medians)]
    tail = (1 - params.level) / 2
    return (float(np.quantile(medians, tail)), float(np.quantile(medians, 1 - tail))) if len(medians) else (math.nan, math.nan)


def rank_correlation(one: torch.Tensor, other: torch.Tensor) -> float:
    """The median over queries of Spearman's correlation of two rankings, (query, row) each."""
    return _median(np.array([agreement(a, b).spearman for a, b in zip(one.numpy(), other.numpy(), strict=True)]))


def top_overlap(one: torch.Tensor, other: torch.Tensor, count: int = TOP) -> float:
    """The mean over queries of the share of rows that both have among their `count` highest, of (query, row) each; NaN for fewer rows."""
    if one.shape[1] <= count:
        return math.nan
    shares = []
    for a, b in zip(one, other, strict=True):
        tops = [set(torch.nan_to_num(scores, nan=-math.inf).topk(count).indices.tolist()) for scores in (a, b)]
        shares.append(len(tops[0] & tops[1]) / count)
    return sum(shares) / len(shares)


def lds(kept: torch.Tensor, predicted: torch.Tensor, measured: torch.Tensor) -> torch.Tensor:
    """(query,): Spearman over subsets of the summed prediction of the rows kept, and the measure after training on them.

    `kept` (subset, row) of 0 and 1, `predicted` (query, row) the change when a row is removed, `measured` (subset, query).
    """
    summed = -(kept.double() @ torch.nan_to_num(predicted).T)  # (subset, query)
    return torch.tensor([agreement(s, m).spearman for s, m in zip(summed.T.numpy(), measured.T.numpy(), strict=True)], dtype=torch.float64)


def leave_behind(context: JobContext, params: ValidateParams, found: Compared) -> None:
    """Write tables, facts and views."""
    methods = method_table(context, params, found)
    context.table("responses", response_table(found))
    context.table("removals", removal_table(found))
    context.table("methods", methods)
    context.table("shown_methods", methods.filter(pl.col("removals") == "all"))
    context.table("queries", query_table(found))
    context.table("stability", _table(found.stability, ("what", "variation"), ("spearman", "top_20", "r", "slope")))
    context.table("gaps", gap_table(found))
    if found.epsilons:
        context.table("epsilons", _table(found.epsilons, ("method",), ("epsilon", "r", "spearman", "slope")))
    if found.lds:
        columns = {"query": pl.Series(range(len(next(iter(found.lds.values())))), dtype=pl.Int64)}
        context.table("lds", pl.DataFrame({**columns, **{name: _column(values.tolist()) for name, values in found.lds.items()}}))
    context.facts(facts(params, found, methods))
    for view in _views(params, found):
        context.view(view)


def method_table(context: JobContext, params: ValidateParams, found: Compared) -> pl.DataFrame:
    """One row per method and part of the removals."""
    measured = found.changes["pbrf"]
    by_score = torch.tensor(found.by_score)
    parts = {"all": torch.ones_like(by_score), "by score": by_score, "at random": ~by_score}
    methods = {name: found.changes[name] for name in ("curvature", "exact", "gradient_dot") if name in found.changes}
    rows = []
    for method, predicted in {**methods, **found.rankings}.items():
        has_scale = method in ("curvature", "exact")
        for part, chosen in parts.items():
            median = median_agreement(predicted[chosen], measured[chosen])
            pooled = pooled_agreement(predicted[chosen], measured[chosen])
            row: dict[str, Any] = {"method": params.curvature if method == "curvature" else method, "removals": part}
            row |= {"count": int(chosen.sum()), **median._asdict(), "ci_low": math.nan, "ci_high": math.nan}
            row |= {f"pooled_{name}": value for name, value in pooled._asdict().items()}
            if part == "all":
                ends = interval(predicted, measured, params, context.generator("intervals", method))
                row |= {"ci_low": ends[0], "ci_high": ends[1]}
            if not has_scale:
                row |= {"slope": math.nan, "pooled_slope": math.nan}
            rows.append(row)
    numbers = ("r", "ci_low", "ci_high", "spearman", "slope", "pooled_r", "pooled_spearman", "pooled_slope")
    return _table(rows, ("method", "removals"), numbers, ("count",))


def response_table(found: Compared) -> pl.DataFrame:
    """One row per removal and query."""
    removals, queries = found.changes["pbrf"].shape
    names = {"curvature": "delta_measure", **{name: f"delta_{name}" for name in found.changes if name != "curvature"}}
    columns: dict[str, Any] = {
        "removal": pl.Series([at for at in found.removed for _ in range(queries)], dtype=pl.Int64),
        "query": pl.Series(list(range(queries)) * removals, dtype=pl.Int64),
        "chosen": ["by score" if is_it else "at random" for is_it in found.by_score for _ in range(queries)],
    }
    columns |= {column: _column(found.changes[name].flatten().tolist()) for name, column in names.items()}
    columns |= {name: _column(values.flatten().tolist()) for name, values in found.rankings.items()}
    return pl.DataFrame(columns)


def removal_table(found: Compared) -> pl.DataFrame:
    """One row per removal: how it was solved for, and how well its changes were predicted over the queries."""
    predicted, measured = found.changes["curvature"].numpy(), found.changes["pbrf"].numpy()
    agreements = [agreement(p, m) for p, m in zip(predicted, measured, strict=True)]
    return pl.DataFrame(
        {
            "example": pl.Series(found.removed, dtype=pl.Int64),
            "chosen": ["by score" if is_it else "at random" for is_it in found.by_score],
            "steps": pl.Series(found.solving.steps.long().tolist(), dtype=pl.Int64),
            "first_gradient_norm": _column(found.solving.first_norm.tolist()),
            "last_gradient_norm": _column(found.solving.last_norm.tolist()),
            "has_converged": found.solving.has_converged.tolist(),
            **{name: _column([getattr(one, name) for one in agreements]) for name in _MEASURES},
        }
    )


def query_table(found: Compared) -> pl.DataFrame:
    """One row per query: agreement over the removals."""
    measured = found.changes["pbrf"].T.numpy()
    columns: dict[str, Any] = {"query": pl.Series(range(len(measured)), dtype=pl.Int64)}
    methods = {name: found.changes[name] for name in ("curvature", "exact") if name in found.changes}
    for method, predicted in {**methods, **found.rankings}.items():
        agreements = [agreement(p, m) for p, m in zip(predicted.T.numpy(), measured, strict=True)]
        shown = _MEASURES if method in methods else ("r", "spearman")
        for name in shown:
            columns[name if method == "curvature" else f"{method}_{name}"] = _column([getattr(one, name) for one in agreements])
    return pl.DataFrame(columns)


def gap_table(found: Compared) -> pl.DataFrame:
    """The five terms: how far apart neighbours of the chain are, as a share of the PBRF's own size; null where one is not known."""
    rows = []
    for term, one, other in GAPS:
        row: dict[str, Any] = {"term": term, "from": one, "to": other, "size": math.nan, "relative": math.nan, "r": math.nan}
        if one in found.changes and other in found.changes:
            known = torch.stack([found.changes[name].isfinite().all(1) for name in ("pbrf", one, other)]).all(0)
            before, after = found.changes[one][known], found.changes[other][known]
            gap, size = float((after - before).norm()), float(found.changes["pbrf"][known].norm())
            row |= {"size": gap, "relative": gap / size if size > 0 else math.nan, "r": pooled_agreement(before, after).r}
        rows.append(row)
    return _table(rows, ("term", "from", "to"), ("size", "relative", "r"))


def facts(params: ValidateParams, found: Compared, methods: pl.DataFrame) -> Mapping[str, Any]:
    """Headline facts, the sentence first."""
    rows = {row["method"]: row for row in methods.filter(pl.col("removals") == "all").iter_rows(named=True)}
    at_random = {row["method"]: row for row in methods.filter(pl.col("removals") == "at random").iter_rows(named=True)}
    own = rows[params.curvature]
    said: dict[str, Any] = {
        "trust": sentence(params, found, rows),
        "r": {"value": own["r"], "ci_low": own["ci_low"], "ci_high": own["ci_high"]},
        "r_at_random": at_random[params.curvature]["r"],
        **{name: own[name] for name in ("spearman", "slope", "pooled_r", "pooled_spearman", "pooled_slope")},
    }
    for method, row in rows.items():
        if method != params.curvature:
            said[f"r_{method}"], said[f"spearman_{method}"] = row["r"], row["spearman"]
    if "exact" in rows:
        said |= {"slope_exact": rows["exact"]["slope"], "exact_residual": found.exact_residual}
    for name in dict.fromkeys(row["what"] for row in found.stability):
        of_it = [row for row in found.stability if row["what"] == name]
        for column in ("spearman", "top_20"):
            said[f"{column}_{name.replace(' ', '_')}"] = _known(min(row[column] for row in of_it))
    for method, values in found.lds.items():
        said["lds" if method == "curvature" else f"lds_{method}"] = _known(float(values.nanmean()))
    return {
        **said,
        "removals": len(found.removed),
        "converged": int(found.solving.has_converged.sum()),
        "without_solution": int(found.solving.last_norm.isinf().sum()),
        "queries": found.changes["pbrf"].shape[1],
        "rows": found.rows,
        "rows_set_aside": found.aside,
        "epsilon": -1 / found.rows,
        "measure": params.measure,
        "curvature": params.curvature,
        "fisher": params.fisher,
        "damping": params.damping,
        "gaps_unknown": ", ".join(term for term, one, other in GAPS if not {one, other} <= set(found.changes)) or None,
    }


NAMES = {"ekfac": "EK-FAC", "kfac": "K-FAC", "diagonal": "diagonal curvature"}
_RANKING_NAMES = {"gradient_cosine": "gradient cosine", "bm25": "BM25"}


def sentence(params: ValidateParams, found: Compared, rows: Mapping[str, Mapping[str, Any]]) -> str:
    """What may be said of scores of this checkpoint, with its numbers."""
    own = rows[params.curvature]
    compared, queries = int(found.changes["pbrf"].isfinite().all(1).sum()), found.changes["pbrf"].shape[1]
    parts = [
        f"{NAMES[params.curvature]} and PBRF: r = {_short(own['r'])}, slope {_short(own['slope'])} over {compared} removals "
        f"(median of {queries} queries)"
    ]
    parts += [f"{name}: r = {_short(rows[method]['r'])}" for method, name in _RANKING_NAMES.items() if method in rows]
    lost = int(found.solving.last_norm.isinf().sum())
    if lost:
        parts.append(f"{lost} removal{'s have' if lost > 1 else ' has'} no solution near the checkpoint")
    unsolved = len(found.removed) - int(found.solving.has_converged.sum()) - lost
    if unsolved:
        parts.append(f"{unsolved} removal{'s were' if unsolved > 1 else ' was'} not solved to the end")
    if compared < _FEW:
        parts.append(f"{compared} removals are too few to tell")
    return "; ".join(parts)


def _views(params: ValidateParams, found: Compared) -> Iterable[FactsView | BarsView | TableView]:
    yield FactsView(
        name="card",
        title="How far to trust the scores",
        caption="r and slope are between predicted changes and those solved for, over the removals, the median of the queries. "
        "r near 1 says rows are ranked rightly; the slope says by how much the predicted size is off: 0.5 means half as much happens.",
    )
    yield BarsView(
        name="methods",
        title="Agreement with the PBRF",
        table="shown_methods",
        label="method",
        value="r",
        low="ci_low",
        high="ci_high",
        caption="Pearson's r over all removals, the median of the queries. Cosine and BM25 have no slope: they predict no size.",
    )
    yield TableView(name="responses", title="Every removal and query", table="responses")
    yield TableView(name="removals", title="How each removal was solved for", table="removals")
    yield TableView(
        name="stability",
        title="Stability of the scores",
        table="stability",
        caption="Against the scores as they are: Spearman over all training rows and the share of the top 20 in common, by query.",
    )
    yield TableView(
        name="gaps",
        title="Where the error comes from",
        table="gaps",
        caption="From training anew to the score, term by term, as a share of the PBRF's own size. Null: needs the recipe, or an mlp.",
    )
    if found.epsilons:
        yield TableView(name="epsilons", title="Less weight removed", table="epsilons")
    if found.lds:
        yield TableView(name="lds", title="Linear datamodeling score", table="lds")


def _table(rows: Sequence[Mapping[str, Any]], words: Sequence[str], numbers: Sequence[str], counts: Sequence[str] = ()) -> pl.DataFrame:
    columns: dict[str, pl.Series] = {name: pl.Series([row[name] for row in rows], dtype=pl.String) for name in words}
    columns |= {name: pl.Series([row[name] for row in rows], dtype=pl.Int64) for name in counts}
    return pl.DataFrame({**columns, **{name: _column([row[name] for row in rows]) for name in numbers}})


def _column(values: Iterable[float]) -> pl.Series:
    """A float column; NaN and infinity become null."""
    return pl.Series([_known(value) for value in values], dtype=pl.Float64)


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _short(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f}"


def _median(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else math.nan


def _pearson(one: np.ndarray, other: np.ndarray) -> float:
    return float(_pearson_columns(one[:, None], other[:, None])[0])


def _pearson_columns(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(column,): Pearson's r of (row, column) each; NaN where a side does not vary beyond rounding."""
    centred = [values - values.mean(axis=0) for values in (one, other)]
    lengths = [np.linalg.norm(values, axis=0) for values in centred]
    varies = [length > 1e-12 * np.linalg.norm(values, axis=0) for length, values in zip(lengths, (one, other), strict=True)]
    with np.errstate(invalid="ignore", divide="ignore"):
        found = (centred[0] * centred[1]).sum(axis=0) / (lengths[0] * lengths[1])
    return np.where(varies[0] & varies[1], found, math.nan)
