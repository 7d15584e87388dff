"""Tables, facts and views of `influence.scores`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import polars as pl
import torch

from modelscope_app.api import Example, FactsView, HeatMapView, JobContext, TableView, Tokenizer, TokenStripView, neutralised
from modelscope_influence.objectives import MEANING
from modelscope_influence.params import ScoresParams
from modelscope_influence.rankings import auc, precision_at

_SHOWN, _SHOWN_PAIRS, _LONGEST_TEXT = 20, 10, 400


class Found(NamedTuple):
    """What the passes found."""

    scores: torch.Tensor
    """(query, example) float64; NaN for rows that were set aside."""
    by_module: torch.Tensor | None
    """(module, query, example)."""
    self_influence: torch.Tensor
    """(example,)."""
    loss: torch.Tensor
    """(example,)."""
    cosine: torch.Tensor | None
    """(query, example) of the plain gradients."""
    bm25: torch.Tensor | None
    """(query, example)."""
    measures: torch.Tensor
    """(query,)."""

    @property
    def relatif(self) -> torch.Tensor:
        """(query, example): score over the root of the example's self-influence (Barshan et al. 2020)."""
        root = self.self_influence.clamp(min=0).sqrt()
        return self.scores / torch.where(root > 0, root, torch.nan)


class Texts(NamedTuple):
    """Where the words are."""

    tokenizer: Tokenizer
    train: Sequence[Example]
    queries: Sequence[Example]


def kept_pairs(scores: torch.Tensor, top_k: int | None) -> list[list[int]]:
    """By query, the examples whose rows are written: all, or those of the `top_k` highest and lowest scores; highest first."""
    kept = []
    for row in scores:
        order = torch.argsort(torch.where(row.isfinite(), row, -torch.inf), descending=True, stable=True)
        known = order[: int(row.isfinite().sum())].tolist()
        if top_k is None:
            kept.append(known + order[len(known) :].tolist())
        else:
            kept.append(known[:top_k] + known[max(top_k, len(known) - top_k) :])
    return kept


def leave_behind(
    context: JobContext,
    params: ScoresParams,
    found: Found,
    kept: Sequence[Sequence[int]],
    tokens: Sequence[tuple[int, int, list[float]]] | None,
    flags: torch.Tensor | None,
    texts: Texts | None,
    modules: Sequence[str],
) -> None:
    """Write tables, facts and views."""
    pairwise = pairwise_table(found, kept, params, flags)
    context.table("pairwise", pairwise)
    if found.by_module is not None:
        context.table("modules", module_table(found.by_module, kept, modules))
    if tokens is not None:
        context.table("tokens", token_table(tokens, texts))
        context.table("spans", span_table(tokens, texts))
    context.table("shown", shown_table(pairwise, texts))
    context.facts(facts(params, found, flags))
    positive, negative = MEANING[params.measure]
    meaning = f"Positive: {positive}. Negative: {negative}. delta_measure predicts the change of the query's {params.measure}."
    context.view(FactsView(name="card", title="Influence"))
    context.view(TableView(name="shown", title="Most influential", table="shown", caption=meaning))
    context.view(TableView(name="pairwise", title="All scores", table="pairwise", caption=meaning))
    if found.by_module is not None:
        context.table("shown_modules", _first(module_table(found.by_module, [pairs[:_SHOWN_PAIRS] for pairs in kept], modules)))
        context.view(
            HeatMapView(name="modules", title="By module", table="shown_modules", row="module", column="example", value="score", center=0.0,
                caption="Of the first query's highest scores, what each module contributes.")
        )  # fmt: skip
    if tokens:
        context.table("shown_tokens", _first(token_table(tokens, texts)).filter(pl.col("example").is_in(list(kept[0][:_SHOWN_PAIRS]))))
        context.view(
            TokenStripView(name="tokens", title="By token", table="shown_tokens", token="token", scores=("score",), text="example",
                caption="What the weights' use at each token contributes; it reaches the loss of later tokens too.")
        )  # fmt: skip


def pairwise_table(found: Found, kept: Sequence[Sequence[int]], params: ScoresParams, flags: torch.Tensor | None) -> pl.DataFrame:
    """One row per query and example, by query and falling score."""
    query = torch.tensor([at for at, examples in enumerate(kept) for _ in examples])
    example = torch.tensor([at for examples in kept for at in examples])
    score = found.scores[query, example]
    columns: dict[str, Any] = {
        "query": query.numpy(),
        "example": example.numpy(),
        "score": known(score),
        "delta_measure": known(score / found.scores.shape[1]),
        "relatif": known(found.relatif[query, example]),
    }
    if found.cosine is not None:
        columns["gradient_cosine"] = known(found.cosine[query, example])
    if found.bm25 is not None:
        columns["bm25"] = known(found.bm25[query, example])
    columns["loss"] = known(found.loss[example])
    columns["effect"] = effects(score, params)
    if flags is not None:
        columns["flagged"] = flags[example].numpy()
    return pl.DataFrame(columns)


def effects(score: torch.Tensor, params: ScoresParams) -> pl.Series:
    """In a word, what the example did to the query."""
    supports = ("supports", "opposes") if params.measure == "loss" else ("opposes", "supports")
    words = [None if value != value else supports[0] if value > 0 else supports[1] if value < 0 else "neither" for value in score.tolist()]
    return pl.Series(words, dtype=pl.String)


def module_table(by_module: torch.Tensor, kept: Sequence[Sequence[int]], modules: Sequence[str]) -> pl.DataFrame:
    """One row per query, example and module."""
    query = torch.tensor([at for at, examples in enumerate(kept) for _ in examples], dtype=torch.int64)
    example = torch.tensor([at for examples in kept for at in examples], dtype=torch.int64)
    values = by_module[:, query, example].T.flatten()  # pairs, then modules
    return pl.DataFrame(
        {
            "query": query.repeat_interleave(len(modules)).numpy(),
            "example": example.repeat_interleave(len(modules)).numpy(),
            "module": list(modules) * len(query),
            "score": known(values),
        }
    )


def token_table(tokens: Sequence[tuple[int, int, list[float]]], texts: Texts | None) -> pl.DataFrame:
    """One row per query, example and token."""
    rows: list[tuple[int, int, int, str, float]] = []
    for query, example, scores in tokens:
        words = _tokens(texts, example, len(scores))
        rows += [(query, example, at, words[at], score) for at, score in enumerate(scores)]
    return pl.DataFrame(rows, schema=["query", "example", "position", "token", "score"], orient="row")


def span_table(tokens: Sequence[tuple[int, int, list[float]]], texts: Texts | None) -> pl.DataFrame:
    """Of each query and example the span of tokens with the largest sum, and the one with the smallest."""
    rows = []
    for query, example, scores in tokens:
        words = _tokens(texts, example, len(scores))
        for sign in (1, -1):
            start, stop, total = largest_span([sign * score for score in scores])
            rows.append((query, example, start, stop, sign * total, "".join(words[start:stop])))
    return pl.DataFrame(rows, schema=["query", "example", "start", "stop", "score", "text"], orient="row")


def largest_span(scores: Sequence[float]) -> tuple[int, int, float]:
    """Start, stop and sum of the stretch with the largest sum, which is not empty (Kadane 1984).

    >>> largest_span([-1.0, 2.0, -0.5, 3.0, -9.0])
    (1, 4, 4.5)
    """
    best, here, start = (0, 1, scores[0]), 0.0, 0
    for at, score in enumerate(scores):
        if here <= 0:
            here, start = 0.0, at
        here += score
        if here > best[2]:
            best = (start, at + 1, here)
    return best


def shown_table(pairwise: pl.DataFrame, texts: Texts | None) -> pl.DataFrame:
    """The highest and the lowest of each query, with their text."""
    parts = []
    for _, rows in pairwise.filter(pl.col("score").is_not_null()).group_by("query", maintain_order=True):
        parts.append(rows if rows.height <= 2 * _SHOWN else pl.concat([rows.head(_SHOWN), rows.tail(_SHOWN)]))
    shown = pl.concat(parts) if parts else pairwise.head(0)
    if texts is None:
        return shown
    return shown.with_columns(pl.Series("text", [_text(texts, example) for example in shown["example"].to_list()], dtype=pl.String))


def facts(params: ScoresParams, found: Found, flags: torch.Tensor | None) -> Mapping[str, Any]:
    """Headline facts."""
    queries, rows = found.scores.shape
    said: dict[str, Any] = {
        "queries": queries,
        "rows": rows,
        "rows_set_aside": int((~found.self_influence.isfinite()).sum()),
        "measure": params.measure,
        "positive_score": MEANING[params.measure][0],
        "curvature": params.curvature,
        "fisher": params.fisher,
    }
    if flags is None:
        return said
    sign = 1 if params.measure == "loss" else -1
    rankings = {"": sign * found.scores, "_relatif": sign * found.relatif}
    if found.cosine is not None:
        rankings["_gradient_cosine"] = sign * found.cosine
    if found.bm25 is not None:
        rankings["_bm25"] = found.bm25
    for name, values in rankings.items():
        said[f"precision_at_20{name}"] = _mean([precision_at(row, flags, 20) for row in values])
        said[f"auc{name}"] = _mean([auc(row, flags) for row in values])
    said["flagged"] = int(flags.sum())
    return said


def known(values: torch.Tensor) -> pl.Series:
    """Numbers, null where not finite."""
    series = pl.Series(values.double().numpy())
    return series.set(~series.is_finite(), None) if len(series) else series


def _mean(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None


def _first(table: pl.DataFrame) -> pl.DataFrame:
    return table.filter(pl.col("query") == 0)


def _tokens(texts: Texts | None, example: int, count: int) -> list[str]:
    if texts is None:
        return [""] * count
    return [neutralised(texts.tokenizer.token(id), 60) for id in texts.train[example].input_ids]


def _text(texts: Texts, example: int) -> str:
    return neutralised(texts.tokenizer.decode(texts.train[example].input_ids), _LONGEST_TEXT)
