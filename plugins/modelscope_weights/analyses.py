"""What the weights analyses do, in the order it happens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from modelscope_app.api import BadInput, Checkpoint, JobContext, TensorHeader
from modelscope_weights import diff_report, series_report, stats_report
from modelscope_weights.agreement import agreeing_names
from modelscope_weights.params import DiffParams, SeriesParams, StatsParams
from modelscope_weights.passes import DifferencesPass, StatisticsPass, UpdatesPass, is_matrix
from modelscope_weights.row_chunks import unreadable_reason
from modelscope_weights.tensor_names import input_embedding, listing, matching


def stats(context: JobContext, params: StatsParams) -> None:
    """Statistics of every tensor, one in memory at a time; then norms by layer and the few tensors worth a picture."""
    checkpoint = context.checkpoints[0]
    headers = [checkpoint.tensors[name] for name in matching(checkpoint.tensors, params.only)]
    reading = StatisticsPass(checkpoint, headers, params.bins, context.check_cancelled)
    found = context.fold("statistics", reading, context.items(range(len(headers)), unit="tensors"))

    tensors = stats_report.tensor_table(headers, found["statistics"])
    histograms = stats_report.histogram_table(tensors, found["histograms"])
    layers = stats_report.layer_table(tensors)
    telling = stats_report.telling_histograms(tensors, histograms)
    context.table("tensors", tensors)
    context.table("histograms", histograms)
    context.table("telling_histograms", telling)
    context.table("layers", layers)
    context.table("layer_totals", stats_report.layer_total_table(tensors))
    context.table("modules", stats_report.module_table(tensors))
    facts = stats_report.stats_facts(tensors)
    context.facts(facts)
    if facts["nonfinite_tensors"]:
        context.warn(f"NaN or infinity in {facts['nonfinite_tensors']} of {facts['tensors']} tensors: {facts['nonfinite_tensor_names']}")
    for view in stats_report.stats_views(has_layers=not layers.is_empty(), has_histograms=not telling.is_empty()):
        context.view(view)


def diff(context: JobContext, params: DiffParams) -> None:
    """The difference of every tensor, its leading singular values, and the embedding rows that moved most."""
    before, after = context.checkpoints
    names = agreeing_names(("the first checkpoint", before), ("the second", after), only=params.only)
    embedding = _embedding(before, names, params.embedding)
    reading = DifferencesPass(
        *(before, after, names, embedding, params.spectrum),
        generator=lambda name: context.generator("differences", name),
        check_cancelled=context.check_cancelled,
    )
    found = context.fold("differences", reading, context.items(range(len(names)), unit="tensors"))

    headers = [before.tensors[name] for name in names], [after.tensors[name] for name in names]
    tensors = diff_report.tensor_table(*headers, found)
    singular_values = diff_report.singular_value_table(tensors, found["singular_values"], headers[0])
    layers = diff_report.layer_table(tensors)
    token = _token_text(context) if embedding and params.rows else str
    rows = diff_report.row_table(found["row_movement"], found["row_norm"], params.rows, params.rank_rows_by, token)
    context.table("tensors", tensors)
    context.table("singular_values", singular_values)
    context.table("telling_spectra", diff_report.telling_spectra(tensors, singular_values))
    context.table("layers", layers)
    context.table("rows", rows)
    context.facts(diff_report.diff_facts(tensors, embedding, found["row_movement"]))
    _warn_of_dtypes(context, headers[0], headers[1])
    for view in diff_report.diff_views(not layers.is_empty(), not singular_values.is_empty(), not rows.is_empty()):
        context.view(view)


def series(context: JobContext, params: SeriesParams) -> None:
    """Norms and updates of every tensor along the series, summed by module."""
    along = context.series[0]
    members, steps = along.checkpoints, along.steps
    if len(members) < 2:
        raise BadInput(f"{along.path} holds {len(members)} checkpoint; updates need at least two")
    names = agreeing_names(*((f"step {step}", member) for step, member in zip(steps, members, strict=True)), only=params.only)
    followed = _followed(context, members, steps, names)
    reading = UpdatesPass(members, followed, context.check_cancelled)
    found = context.fold("updates", reading, context.items(range(len(followed)), unit="tensors"))

    headers = [members[0].tensors[name] for name in followed]
    by_tensor = series_report.tensor_table(headers, steps, found["sums"])
    by_step = series_report.step_table(headers, steps, found["sums"])
    context.table("steps", by_step)
    context.table("tensors", by_tensor)
    facts = series_report.series_facts(headers, len(names) - len(followed), steps, by_step, by_tensor)
    context.facts(facts)
    if facts["nonfinite_checkpoints"]:
        context.warn(
            f"NaN or infinity in {facts['nonfinite_checkpoints']} of {len(steps)} checkpoints; what depends on them is unknown, "
            "straightness from there on"
        )
    for view in series_report.series_views():
        context.view(view)


def _followed(context: JobContext, members: Sequence[Checkpoint], steps: Sequence[int], names: Sequence[str]) -> list[str]:
    """Tensors that can be read at every step; a warning says which cannot. Raises BadInput where there are none."""
    reasons: dict[str, str] = {}
    for step, member in zip(steps, members, strict=True):
        for name in names:
            reason = unreadable_reason(member.tensors[name])
            if reason is not None:
                reasons.setdefault(name, f"step {step}: {reason}")
    if reasons:
        first, reason = next(iter(reasons.items()))
        if len(reasons) == len(names):
            raise BadInput(f"no tensor can be followed from step to step, {first} for one: {reason}")
        context.warn(f"{len(reasons)} of {len(names)} tensors are left out at every step: {listing(reasons)} ({reason})")
    return [name for name in names if name not in reasons]


def _embedding(checkpoint: Checkpoint, names: Sequence[str], chosen: str) -> str | None:
    """The input embedding among the compared tensors, if any. Raises BadInput where a chosen one is no matrix among them."""
    matrices = {name: checkpoint.tensors[name] for name in names if is_matrix(checkpoint.tensors[name])}
    if chosen and chosen not in matrices:
        raise BadInput(f"--embedding {chosen!r} is no matrix among the compared tensors; `mscope inspect --tensors` lists their shapes")
    return chosen or input_embedding(matrices, checkpoint.config)


def _token_text(context: JobContext) -> Callable[[int], str | None]:
    """Text of a token id by the first checkpoint's tokenizer; without one, no text and a line in the log."""
    try:
        tokenizer = context.tokenizer(0)
    except BadInput as error:
        context.log(f"rows are listed by token id alone: {error}")
        return lambda id: None
    return tokenizer.token


def _warn_of_dtypes(context: JobContext, before: Sequence[TensorHeader], after: Sequence[TensorHeader]) -> None:
    differing = [a.name for a, b in zip(before, after, strict=True) if a.dtype != b.dtype]
    if differing:
        context.warn(
            f"{len(differing)} tensors are stored in different dtypes, {differing[0]} among them; part of their change is rounding"
        )
