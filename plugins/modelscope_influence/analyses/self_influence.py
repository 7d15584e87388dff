"""What `influence.self` does."""

from __future__ import annotations

import polars as pl
import torch

from modelscope_app.api import BadInput, FactsView, JobContext, LinesView, TableView
from modelscope_influence.objectives import ClassifierTask, LanguageTask, Task
from modelscope_influence.params import SelfParams
from modelscope_influence.rankings import auc, recall_at
from modelscope_influence.score_passes import SelfPass, blocks
from modelscope_influence.score_report import known, shown_text
from modelscope_influence.starting import curvature_of, flagged, started

_LONGEST_QUEUE = 1000
_RANKINGS = {"score": "self-influence", "loss": "loss", "gradient_norm": "gradient norm"}


def run(context: JobContext, params: SelfParams) -> None:
    """Fit what is missing, then one pass over the rows."""
    flags = flagged(context, params.train, params.flag)
    begun = started(context, params)
    fitted = curvature_of(context, begun, params.train, params.factors)
    divided_by = blocks(fitted.curvatures, params.damping, context.model())
    found = context.fold("self-influence", SelfPass(begun.task, begun.weights, divided_by), begun.task.source())
    score, loss, norm = found["self"], found["loss"], found["squared_norm"].sqrt()
    frame = {
        "example": pl.Series(begun.task.ids, dtype=pl.Int64),
        "score": known(score),
        "loss": known(loss),
        "gradient_norm": known(norm),
    }
    table = pl.DataFrame(frame if flags is None else {**frame, "flagged": flags.tolist()})
    context.table("self", table)
    context.table("queue", _queue(context, begun.task, table))
    facts: dict[str, object] = {"rows": len(begun.task.ids), "modules": len(begun.weights), "curvature": params.curvature}
    if flags is not None:
        rankings = {"score": score, "loss": loss, "gradient_norm": norm}
        for share in (10, 20):
            facts[f"recall_at_{share}"] = recall_at(score, flags, share / 100)
            for name in ("loss", "gradient_norm"):
                facts[f"recall_at_{share}_{name}"] = recall_at(rankings[name], flags, share / 100)
        for name, values in rankings.items():
            facts["auc" if name == "score" else f"auc_{name}"] = auc(values, flags)
        facts["flagged"] = int(flags.sum())
        context.table("recall", _recall_table({name: rankings[name] for name in _RANKINGS}, flags))
        context.view(
            LinesView(name="recall", title="Flagged rows found", table="recall", x="looked_at", y="found", series="ranking",
                caption="Share of the flagged rows found by looking through that share of the rows, from the top of each ranking.")
        )  # fmt: skip
    context.facts(facts)  # type: ignore[arg-type]
    context.view(FactsView(name="card", title="Self-influence"))
    context.view(
        TableView(name="queue", title="To be looked at", table="queue",
            caption="The higher, the more the model's answer to a row hangs on that row itself: mislabelled, odd or rare rows come first.")
    )  # fmt: skip


def _queue(context: JobContext, task: Task, table: pl.DataFrame) -> pl.DataFrame:
    """The rows to look through first, by falling score, with the label or the text they have."""
    queue = table.sort("score", descending=True, nulls_last=True, maintain_order=True).head(_LONGEST_QUEUE)
    rows = queue["example"].to_list()
    if isinstance(task, ClassifierTask):
        return queue.with_columns(pl.Series("label", task.data.labels[rows].tolist(), dtype=pl.Int64))
    try:
        tokenizer = context.tokenizer()
    except BadInput:
        return queue
    texts = [shown_text(tokenizer, task.examples[row]) for row in rows] if isinstance(task, LanguageTask) else []
    return queue.with_columns(pl.Series("text", texts, dtype=pl.String)) if texts else queue


def _recall_table(rankings: dict[str, torch.Tensor], flags: torch.Tensor) -> pl.DataFrame:
    shares = [at / 50 for at in range(1, 51)]
    return pl.DataFrame(
        [
            {"ranking": _RANKINGS[name], "looked_at": share, "found": recall_at(values, flags, share)}
            for name, values in rankings.items()
            for share in shares
        ]
    )
