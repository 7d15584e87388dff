"""What `probes.transfer` does, in the order it happens."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl
import torch

from modelscope_app.api import BadInput, JobContext, Tokenizer
from modelscope_probes import transfer_report
from modelscope_probes.analyses.defection import (
    contrast_pairs,
    labelled,
    labelled_prompts,
    read_activations,
    read_contrast,
    width_of,
)
from modelscope_probes.behaviour import completions, defections
from modelscope_probes.evidence import Labelled, directions
from modelscope_probes.params import TransferParams
from modelscope_probes.probe_file import tokenizer_hash
from modelscope_probes.prompts import Pair, Prompt, read_prompts, resolved
from modelscope_probes.reading import AnswerPass, batch_tokens
from modelscope_probes.statistics.cluster_bootstrap import bootstrap_aurocs, cluster_interval
from modelscope_probes.statistics.ranks import auroc
from modelscope_probes.statistics.worst_cell import worst_cell
from modelscope_probes.transfer_report import Transfer


def run(context: JobContext, params: TransferParams) -> None:
    """Fit the generic direction at every member, score the prompts of every member with all of them, and see what each member does."""
    along = context.series[0]
    steps = along.steps
    if len(steps) < 2:
        raise BadInput(f"{along.path} holds {len(steps)} checkpoint; transfer needs at least two")
    tokenizers = [_tokenizer(context, at) for at in range(len(steps))]
    prompts, pairs = _texts(context, params, tokenizers)
    data = labelled(prompts)
    layers = _layers(context, params)
    sites = [f"{params.site}.{layer}" for layer in layers]

    read = [
        read_contrast(context, at, pairs, sites, batch_tokens(params.tokens_per_batch, context.device), f"pairs-at-{step}")
        for at, step in enumerate(steps)
    ]
    fitted = torch.stack([directions(contrast) for contrast in read])  # (fitted, layer, hidden)
    _warn_of_unknown(context, fitted)
    scores = torch.stack([_scores(context, params, at, prompts, sites, fitted) for at in range(len(steps))], dim=1)
    defected = _behaviour(context, params, prompts, tokenizers)

    aurocs = auroc(scores, data.labels)  # (fitted, tested, layer)
    shown = layers.index(params.layer) if params.layer is not None else transfer_report.best_layer(aurocs[-1, -1])
    low, high = _intervals(context, params, scores, aurocs, data, shown)
    found = Transfer(
        steps, layers, aurocs, low, high, transfer_report.cosines(fitted), _worst_cells(scores, data), defected, shown, params.level
    )
    _leave_behind(context, params, found, data, len(pairs))


def _tokenizer(context: JobContext, member: int) -> Tokenizer:
    """A member's tokenizer, or the one beside the series where training saved it once. Raises BadInput naming the step."""
    along = context.series[0]
    try:
        return context.tokenizer(member)
    except BadInput as error:
        own = error
    for folder in (along.path, along.path.parent):
        try:
            found = context.tokenizer(context.open_checkpoint(str(folder)))
        except BadInput:
            continue
        context.log(f"step {along.steps[member]} has no tokenizer; that of {folder} is taken")
        return found
    raise BadInput(f"step {along.steps[member]}: {own} (nor is there a checkpoint with one beside the series)") from own


def _texts(context: JobContext, params: TransferParams, tokenizers: Sequence[Tokenizer]) -> tuple[list[Prompt], list[Pair]]:
    """Prompts and contrast pairs, the same tokens at every step. Raises BadInput for a member that makes other tokens of them."""
    first = tokenizers[0]
    template = resolved(params.template, first)
    prompts = labelled_prompts(context, params.eval, first, template)
    pairs = contrast_pairs(context, params.contrast, first, template)
    rows, steps = context.rows(params.eval), context.series[0].steps
    for step, tokenizer in zip(steps[1:], tokenizers[1:], strict=True):
        theirs = read_prompts(rows, tokenizer, resolved(params.template, tokenizer))
        is_other = tokenizer_hash(tokenizer.encode) != tokenizer_hash(first.encode)
        if is_other or any(one.input_ids != other.input_ids for one, other in zip(prompts, theirs, strict=True)):
            raise BadInput(f"step {step}: its tokenizer or chat template makes other tokens of the prompts than that of step {steps[0]}")
    return prompts, pairs


def _layers(context: JobContext, params: TransferParams) -> list[int]:
    """Every layer. Raises BadInput for one that is not there, and for members of different shapes."""
    steps = context.series[0].steps
    shapes = [(context.model(at).sites.layer_count, width_of(context, at)) for at in range(len(steps))]
    for step, shape in zip(steps, shapes, strict=True):
        if shape != shapes[0]:
            (layers, width), (first_layers, first_width) = shape, shapes[0]
            raise BadInput(
                f"step {step} has {layers} layers of width {width}, and step {steps[0]} {first_layers} of {first_width}: "
                "no direction of one fits the other"
            )
    count = shapes[0][0]
    if params.layer is not None and params.layer >= count:
        raise BadInput(f"--layer {params.layer}: the members have {count} layers, 0 to {count - 1}")
    return list(range(count))


def _scores(
    context: JobContext, params: TransferParams, member: int, prompts: Sequence[Prompt], sites: Sequence[str], fitted: torch.Tensor
) -> torch.Tensor:
    """(fitted, layer, n) float64: the prompts, as this member reads them, along every direction. The activations are let go."""
    step = context.series[0].steps[member]
    activations = read_activations(
        context, member, prompts, sites, params.pooling, batch_tokens(params.tokens_per_batch, context.device), f"prompts-at-{step}"
    )
    by_layer = [fitted[:, at] @ activations[:, at].double().T for at in range(len(sites))]  # (fitted, n) each
    return torch.stack(by_layer, dim=1)


def _behaviour(
    context: JobContext, params: TransferParams, prompts: Sequence[Prompt], tokenizers: Sequence[Tokenizer]
) -> list[tuple[int, int]] | None:
    """By member, how many positive prompts it answers with a defection, of how many whose answer is known.

    None where nothing says what a defection is.
    """
    asked = [prompt for prompt in prompts if prompt.label and (params.defection or prompt.defection)]
    if not params.new_tokens or not asked:
        return None
    counts = []
    for at, step in enumerate(context.series[0].steps):
        reading = AnswerPass(context.model(at), [prompt.id for prompt in asked], params.new_tokens)
        source = context.batches(
            [prompt.example for prompt in asked], batch_tokens(params.tokens_per_batch, context.device), padding="left"
        )
        answers = context.fold(f"answers-at-{step}", reading, source)
        known = [one for one in defections(asked, completions(answers, tokenizers[at]), params.defection) if one is not None]
        counts.append((sum(known), len(known)))
    return counts


def _intervals(
    context: JobContext, params: TransferParams, scores: torch.Tensor, aurocs: torch.Tensor, data: Labelled, shown: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(fitted, tested, layer) low and high, by cluster bootstrap: every layer of a member's own probe, and all of the shown layer.

    Each member's resamples are the same, so that steps differ by what the models do and not by the draw.
    """
    low, high = torch.full_like(aurocs, torch.nan), torch.full_like(aurocs, torch.nan)
    refusal = None
    for tested, step in enumerate(context.series[0].steps):
        places = [(tested, layer) for layer in range(scores.shape[2])]
        places += [(fitted, shown) for fitted in range(len(scores)) if fitted != tested]
        rows, layer = (torch.tensor(part) for part in zip(*places, strict=True))

        def compute(tested: int = tested, rows: torch.Tensor = rows, layer: torch.Tensor = layer) -> tuple[torch.Tensor, str | None]:
            drawn = bootstrap_aurocs(
                scores[rows, tested, layer], data.labels, data.groups, params.draws, context.generator("intervals", "groups")
            )
            areas = aurocs[rows, tested, layer].tolist()
            ends = [cluster_interval(area, drawn.aurocs[:, at], drawn.independent_pairs, params.level)[:2] for at, area in enumerate(areas)]
            return torch.tensor(ends, dtype=torch.float64), drawn.refusal

        ends, refusal = context.once(f"intervals-at-{step}", compute)
        low[rows, tested, layer], high[rows, tested, layer] = ends.T
    if refusal is not None:
        context.warn(f"AUROCs have no intervals: {refusal}")
    return low, high


def _worst_cells(scores: torch.Tensor, data: Labelled) -> list[list[tuple[str, float]]]:
    """By member and layer, the cell of negatives its own probe tells least from the positives, and the AUROC against it."""
    found = []
    for member in range(len(scores)):
        worst = worst_cell(scores[member, member], data.labels, data.cells)
        names = [data.cell_names[int(worst.cells[place])] for place in worst.worst]
        found.append(list(zip(names, worst.auroc.tolist(), strict=True)))
    return found


def _warn_of_unknown(context: JobContext, fitted: torch.Tensor) -> None:
    unknown = [step for step, direction in zip(context.series[0].steps, fitted, strict=True) if not bool(direction.isfinite().all())]
    if unknown:
        context.warn(f"activations of the contrast pairs hold NaN or infinity at step {', '.join(map(str, unknown))}: unknown there")


def _leave_behind(context: JobContext, params: TransferParams, found: Transfer, data: Labelled, pairs: int) -> None:
    layer = found.layers[found.shown]
    tables = {
        "transfer": transfer_report.transfer_table(found),
        "cosines": transfer_report.cosine_table(found),
        "steps": transfer_report.step_table(found),
        "shown_steps": transfer_report.line_table(found),
    }
    for name in ("transfer", "cosines"):
        tables[f"shown_{name}"] = tables[name].filter(pl.col("layer") == layer)
    for name, table in tables.items():
        context.table(name, table)
    context.facts(transfer_report.transfer_facts(found, len(data.labels), int(data.labels.sum()), pairs))
    for view in transfer_report.transfer_views(found, is_chosen=params.layer is None):
        context.view(view)
