"""Tables, facts and views of `influence.tracin`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import polars as pl
import torch

from modelscope_app.api import BadInput, FactsView, JobContext, LinesView, TableView
from modelscope_influence.objectives import MEANING, LanguageTask, Task
from modelscope_influence.rankings import auc, mean, precision_at
from modelscope_influence.scanning import kept_places, numbered
from modelscope_influence.score_report import effects, known, shown_text
from modelscope_influence.tracin_params import TracinParams
from modelscope_influence.validate_report import rank_correlation

_SHOWN = 20


class Traced(NamedTuple):
    """What the passes found."""

    names: Sequence[str]
    steps: Sequence[int]
    rates: Sequence[float]
    rates_from: str
    """Where they were found, in words."""
    by_member: torch.Tensor
    """(member, query, example) float64: inner products of gradients times the learning rate; NaN for rows that were set aside."""
    loss: torch.Tensor
    """(example,) at the last member."""
    bm25: torch.Tensor | None
    """(query, example)."""

    @property
    def scores(self) -> torch.Tensor:
        """(query, example)."""
        return self.by_member.sum(0)


def leave_behind(context: JobContext, params: TracinParams, found: Traced, flags: torch.Tensor | None, train: Task, tokenizer: int) -> None:
    """Write tables, facts and views."""
    pairwise = pairwise_table(params, found, flags)
    context.table("pairwise", pairwise)
    context.table("shown", shown_table(context, pairwise, train, tokenizer))
    context.table("members", member_table(params, found, flags))
    context.facts(facts(params, found, flags))
    positive, negative = MEANING[params.measure]
    meaning = f"Positive: {positive}. Negative: {negative}. Summed over the members of the series, each with its learning rate."
    context.view(FactsView(name="card", title="TracIn"))
    context.view(TableView(name="shown", title="Most influential", table="shown", caption=meaning))
    context.view(TableView(name="pairwise", title="All scores", table="pairwise", caption=meaning))
    context.view(
        LinesView(name="along", title="Along training", table="members", x="step", y="mean_abs_score",
            caption="The mean |score| that each member adds.")
    )  # fmt: skip
    context.view(
        TableView(name="members", title="By member", table="members",
            caption="rank_correlation is Spearman's, of what a member adds with the whole score: the median over queries.")
    )  # fmt: skip


def pairwise_table(params: TracinParams, found: Traced, flags: torch.Tensor | None) -> pl.DataFrame:
    """One row per query and example that is kept, by query and falling score."""
    kept = kept_places(found.scores, params.top_k)
    query, example = numbered(kept), torch.cat(kept)
    score = found.scores[query, example]
    columns: dict[str, Any] = {"query": query.numpy(), "example": example.numpy(), "score": known(score)}
    if found.bm25 is not None:
        columns["bm25"] = found.bm25[query, example].numpy()
    columns["loss"] = known(found.loss[example])
    columns["effect"] = effects(score, params.measure)
    if flags is not None:
        columns["flagged"] = flags[example].numpy()
    return pl.DataFrame(columns)


def shown_table(context: JobContext, pairwise: pl.DataFrame, train: Task, place: int) -> pl.DataFrame:
    """The highest and the lowest of each query, with their text, by the tokenizer of the checkpoint of that place."""
    parts = [pairwise.head(0)]
    for _, rows in pairwise.filter(pl.col("score").is_not_null()).group_by("query", maintain_order=True):
        parts.append(rows if rows.height <= 2 * _SHOWN else pl.concat([rows.head(_SHOWN), rows.tail(_SHOWN)]))
    shown = pl.concat(parts)
    if not isinstance(train, LanguageTask):
        return shown
    try:
        tokenizer = context.tokenizer(place)
    except BadInput:
        return shown
    texts = [shown_text(tokenizer, train.examples[example]) for example in shown["example"].to_list()]
    return shown.with_columns(pl.Series("text", texts, dtype=pl.String))


def member_table(params: TracinParams, found: Traced, flags: torch.Tensor | None) -> pl.DataFrame:
    """One row per member: what it adds, how like the whole it ranks, and how well it alone finds flagged rows."""
    rows = []
    for name, step, rate, scores in zip(found.names, found.steps, found.rates, found.by_member, strict=True):
        finite = scores[scores.isfinite()]
        row = {"checkpoint": name, "step": step, "learning_rate": rate}
        row["mean_abs_score"] = float(finite.abs().mean()) if len(finite) else None
        row["rank_correlation"] = rank_correlation(scores, found.scores)
        if flags is not None:
            row |= _quality(params, scores, flags)
        rows.append(row)
    return pl.DataFrame(rows).with_columns(pl.col("rank_correlation").fill_nan(None))


def facts(params: TracinParams, found: Traced, flags: torch.Tensor | None) -> Mapping[str, Any]:
    """Headline facts."""
    scores = found.scores
    said: dict[str, Any] = {
        "queries": scores.shape[0],
        "rows": scores.shape[1],
        "rows_set_aside": int((~scores.isfinite()).any(0).sum()),
        "members": len(found.steps),
        "first_step": found.steps[0],
        "last_step": found.steps[-1],
        "learning_rates": found.rates_from,
        "measure": params.measure,
        "positive_score": MEANING[params.measure][0],
    }
    if flags is not None:
        said |= _quality(params, scores, flags)
        if found.bm25 is not None:
            said["precision_at_20_bm25"] = mean([precision_at(row, flags, 20) for row in found.bm25])
            said["auc_bm25"] = mean([auc(row, flags) for row in found.bm25])
        said["flagged"] = int(flags.sum())
    return said


def _quality(params: TracinParams, scores: torch.Tensor, flags: torch.Tensor) -> dict[str, float | None]:
    sign = 1 if params.measure == "loss" else -1
    return {
        "precision_at_20": mean([precision_at(sign * row, flags, 20) for row in scores]),
        "auc": mean([auc(sign * row, flags) for row in scores]),
    }
