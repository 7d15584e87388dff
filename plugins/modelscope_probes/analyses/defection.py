"""`probes.defection`: a direction from generic contrast pairs, scored on prompts, with everything that makes its number believable."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from typing import Any, NamedTuple

import torch

from modelscope_app.api import BadInput, JobContext, Tokenizer
from modelscope_probes import defection_report as report
from modelscope_probes.asking import Asked, asked
from modelscope_probes.behaviour import completions, defections
from modelscope_probes.defection_facts import AtLayer, card_facts
from modelscope_probes.evidence import (
    Labelled,
    LayerEvidence,
    bag_of_tokens_auroc,
    directions,
    layer_evidence,
    restored,
    scores,
    stored,
)
from modelscope_probes.leak_guard import overlap
from modelscope_probes.params import DefectionParams
from modelscope_probes.probe_file import ProbeCard, tokenizer_hash
from modelscope_probes.prompts import Pair, Prompt, Template, pairs_hash, read_pairs, read_prompts, resolved
from modelscope_probes.reading import ActivationPass, AnswerPass, PairPass, batch_tokens, hidden_width
from modelscope_probes.statistics.operating_points import roc_curve

FEWEST_PROMPTS = 4


class Given(NamedTuple):
    """What every checkpoint is given to read, and where it is looked at."""

    tokenizer: Tokenizer
    template: Template
    prompts: Sequence[Prompt]
    pairs: Sequence[Pair]
    layers: Sequence[int]
    data: Labelled
    """The prompts' labels."""


class Read(NamedTuple):
    """What was read of one checkpoint."""

    contrast: torch.Tensor
    """(pair, 2, layer, hidden)."""
    activations: torch.Tensor
    """(n, layer, hidden)."""
    said: list[str | None] | None
    """By prompt, its answer, None where that is unknown; None where no answer was looked at."""
    asked: Asked


def run(context: JobContext, params: DefectionParams) -> None:
    """Read contrast pairs and prompts in one pass each, hold the direction against its controls, and judge."""
    tokenizer = context.tokenizer(0)
    template = resolved(params.template, tokenizer)
    prompts = labelled_prompts(context, params.eval, tokenizer, template)
    pairs = contrast_pairs(context, params.contrast, tokenizer, template)
    drives = _causal_effect(context, params.causal, params.site, pairs_hash(pairs))
    layers = chosen_layers(context, 0, params.layers)
    if params.layer is not None and params.layer not in layers:
        raise BadInput(f"--layer {params.layer} is not among the layers that are read: {', '.join(map(str, layers))}")
    twin_at = twin_position(context, params.compare, prompts, params.eval, template) if params.compare else None

    given = Given(tokenizer, template, prompts, pairs, layers, labelled(prompts))
    own = _read(context, params, 0, given, "")
    twin = None if twin_at is None else _read(context, params, twin_at, given, "-of-twin")

    evidence = _evidence(context, params, own, given, "")
    twin_evidence = None if twin is None else _evidence(context, params, twin, given, "-of-twin")
    _leave_behind(context, params, given, own, _at_layer(context, params, given, own, evidence, twin_evidence, drives))


def labelled_prompts(context: JobContext, path: str, tokenizer: Tokenizer, template: Template) -> list[Prompt]:
    """Prompts with labels of both classes. Raises BadInput where there are too few, or labels are missing."""
    rows = context.rows(path)
    prompts = read_prompts(rows, tokenizer, template)
    missing = [prompt.id for prompt in prompts if prompt.label is None]
    if missing:
        raise rows.bad_row(missing[0], f"has no label; each row needs label 1 or 0 ({len(missing)} of {len(prompts)} have none)")
    if len(prompts) < FEWEST_PROMPTS:
        raise BadInput(f"{rows.path}: has {len(prompts)} prompts; {FEWEST_PROMPTS} are the least")
    positives = sum(bool(prompt.label) for prompt in prompts)
    if positives in (0, len(prompts)):
        raise BadInput(f"{rows.path}: every label is {int(positives > 0)}; telling prompts apart needs both 1 and 0")
    return prompts


def contrast_pairs(context: JobContext, path: str, tokenizer: Tokenizer, template: Template) -> list[Pair]:
    """Pairs of a contrast file, or the built-in ones where `path` is empty. Warns where one polarity outweighs the other."""
    built_in = resources.files("modelscope_probes").joinpath("contrast_pairs.jsonl")
    pairs = read_pairs(context.rows(path or str(built_in)), tokenizer, template)
    counts: dict[str, int] = {}
    for pair in pairs:
        counts[pair.defecting.lower()] = counts.get(pair.defecting.lower(), 0) + 1
    if len(counts) < 2 or max(counts.values()) > 2 * min(counts.values()):
        said = ", ".join(f"{count} {answer}" for answer, count in sorted(counts.items()))
        context.warn(f"the contrast pairs are not balanced: defecting answers are {said}; the direction mixes the word with what it means")
    return pairs


def chosen_layers(context: JobContext, checkpoint: int, asked: Sequence[int]) -> list[int]:
    """Layers to read, ascending. Raises BadInput naming one that does not exist."""
    count = context.model(checkpoint).sites.layer_count
    wrong = [layer for layer in asked if not 0 <= layer < count]
    if wrong:
        raise BadInput(f"layer {wrong[0]} does not exist: {context.opened(checkpoint).name} has {count} layers, 0 to {count - 1}")
    return sorted(set(asked)) or list(range(count))


def twin_position(context: JobContext, path: str, prompts: Sequence[Prompt], eval_path: str, template: Template) -> int:
    """The twin, opened. Raises BadInput where its shape or its tokenizer is another's."""
    position = context.open_checkpoint(path)
    one, other = context.opened(0), context.opened(position)
    if (other.config or {}).get("model_type") != (one.config or {}).get("model_type"):
        kinds = [(each.config or {}).get("model_type") or "unknown kind" for each in (other, one)]
        raise BadInput(f"--compare: {other.path} is no twin of {one.path}: it is of type {kinds[0]}, not {kinds[1]}")
    if other.fingerprint == one.fingerprint:
        context.warn(f"--compare: {other.path} holds the same as {one.path}; a twin is another training, or the base model")
    shapes = [(context.model(at).sites.layer_count, hidden_width(context.opened(at).config)) for at in (0, position)]
    if shapes[0] != shapes[1]:
        (layers, width), (their_layers, their_width) = shapes
        raise BadInput(
            f"{other.path} is no twin of {one.path}: it has {their_layers} layers of width {their_width}, not {layers} of {width}"
        )
    theirs = read_prompts(context.rows(eval_path), context.tokenizer(position), template)
    if any(mine.input_ids != their.input_ids for mine, their in zip(prompts, theirs, strict=True)):
        raise BadInput(f"{other.path} is no twin of {one.path}: its tokenizer or chat template makes other tokens of the same prompts")
    return position


def labelled(prompts: Sequence[Prompt]) -> Labelled:
    """Labels, groups and cells as tensors."""
    groups = {name: at for at, name in enumerate(sorted({prompt.group for prompt in prompts}))}
    cells = tuple(sorted({prompt.cell for prompt in prompts}))
    return Labelled(
        torch.tensor([bool(prompt.label) for prompt in prompts]),
        torch.tensor([groups[prompt.group] for prompt in prompts]),
        torch.tensor([cells.index(prompt.cell) for prompt in prompts]),
        cells,
    )


def read_contrast(
    context: JobContext, position: int, pairs: Sequence[Pair], sites: Sequence[str], tokens_per_batch: int, stage: str
) -> torch.Tensor:
    """(pair, 2, site, hidden): activations at the answers of contrast pairs, as the stage of that name."""
    model = context.model(position)
    longest = max(len(pair.opening_ids) + max(len(pair.defecting_ids), len(pair.benign_ids)) for pair in pairs)
    source = context.items(pairs, per_batch=max(1, tokens_per_batch // longest), unit="pairs")
    result: torch.Tensor = context.fold(stage, PairPass(model, sites, len(pairs), width_of(context, position)), source)
    return result


def read_activations(
    context: JobContext, position: int, prompts: Sequence[Prompt], sites: Sequence[str], pooling: Any, tokens_per_batch: int, stage: str
) -> torch.Tensor:
    """(n, site, hidden): activations of prompts, as the stage of that name."""
    model = context.model(position)
    source = context.batches([prompt.example for prompt in prompts], tokens_per_batch, padding="left")
    reading = ActivationPass(model, sites, [prompt.id for prompt in prompts], width_of(context, position), pooling)
    result: torch.Tensor = context.fold(stage, reading, source)
    return result


def width_of(context: JobContext, position: int) -> int:
    """Width of the residual stream. Raises BadInput where config.json does not say."""
    width = hidden_width(context.opened(position).config)
    if width is None:
        raise BadInput(f"{context.opened(position).path}: config.json does not say hidden_size")
    return width


def _read(context: JobContext, params: DefectionParams, position: int, given: Given, whose: str) -> Read:
    """Of one checkpoint, stages named with `whose`."""
    prompts, tokens_per_batch = given.prompts, batch_tokens(params.tokens_per_batch, context.device)
    sites = [f"{params.site}.{layer}" for layer in given.layers]
    contrast = read_contrast(context, position, given.pairs, sites, tokens_per_batch, f"contrast-pairs{whose}")
    activations = read_activations(context, position, prompts, sites, params.pooling, tokens_per_batch, f"prompts{whose}")
    said = None
    if params.new_tokens:
        source = context.batches([prompt.example for prompt in prompts], tokens_per_batch, padding="left")
        reading = AnswerPass(context.model(position), [prompt.id for prompt in prompts], params.new_tokens)
        said = completions(context.fold(f"answers{whose}", reading, source), context.tokenizer(position))
    if params.ask:
        answer = asked(context, position, prompts, given.pairs, given.template, tokens_per_batch, f"asking{whose}")
    else:
        answer = Asked(None, "--no-ask was given")
    return Read(contrast, activations, said, answer)


def _evidence(context: JobContext, params: DefectionParams, read: Read, given: Given, whose: str) -> LayerEvidence:
    """As a stage named with `whose`; the same draws for a checkpoint and its twin, so that their difference is paired."""

    def compute() -> dict[str, Any]:
        return stored(
            layer_evidence(
                read.activations,
                read.contrast,
                [pair.defecting for pair in given.pairs],
                given.data,
                random_count=params.random_directions,
                draws=params.draws,
                level=params.level,
                generators={name: context.generator("evidence", name) for name in ("bootstrap", "permutation", "random")},
            )
        )

    return restored(context.once(f"evidence{whose}", compute))


def _best(aurocs: torch.Tensor) -> int:
    """The layer of the highest AUROC, of equals the most central one; the middle one where all are unknown."""
    known = torch.nan_to_num(aurocs, nan=-1.0)
    middle = (len(aurocs) - 1) / 2
    return min((at for at in range(len(aurocs)) if known[at] == known.max()), key=lambda at: abs(at - middle))


def _causal_effect(context: JobContext, reference: str, site: str, fitted_on: str) -> bool | None:
    """What an earlier causal run found about this checkpoint's direction from the same pairs. Raises BadInput for any other run."""
    if not reference:
        return None
    earlier = context.run(reference)
    if earlier.analysis != "probes.causal" or earlier.status != "done":
        raise BadInput(
            f"--causal {earlier.id}: is a run of {earlier.analysis} that is {earlier.status}; it must be a finished probes.causal"
        )
    facts = earlier.facts
    if facts.get("checkpoint_fingerprint") != context.checkpoints[0].fingerprint:
        raise BadInput(f"--causal {earlier.id}: was run on another checkpoint than {context.checkpoints[0].path}")
    if str(facts.get("site")).partition(".")[0] != site or facts.get("fitted_on") != fitted_on:
        raise BadInput(f"--causal {earlier.id}: is about another direction: give it the same --site and --contrast, or this run's probe")
    return bool(facts.get("reading") == "drives the behaviour")


def _at_layer(
    context: JobContext,
    params: DefectionParams,
    given: Given,
    own: Read,
    evidence: LayerEvidence,
    twin_evidence: LayerEvidence | None,
    drives: bool | None,
) -> AtLayer:
    """What the facts are made of, at the layer that was fixed or is best."""
    at = given.layers.index(params.layer) if params.layer is not None else _best(evidence.auroc)
    score = scores(own.activations, directions(own.contrast))[at]  # (n,)
    is_fixed = params.layer is not None or len(given.layers) == 1
    answers = [(pair.question, said) for pair in given.pairs for said in ("", f" {pair.defecting}", f" {pair.benign}")]
    tokens = [prompt.input_ids for prompt in given.prompts]
    return AtLayer(
        layers=given.layers,
        at=at,
        is_fixed=is_fixed,
        data=given.data,
        evidence=evidence,
        twin_evidence=twin_evidence,
        twin=None if twin_evidence is None else report.beside_twin(evidence, twin_evidence, at, is_fixed, params.level),
        score=score,
        curve=roc_curve(score, given.data.labels),
        shared=overlap(
            [f"{question}{said}" for question, said in answers], [prompt.text for prompt in given.prompts], given.data.labels.tolist()
        ),
        defected=defections(given.prompts, own.said, params.defection),
        asked=own.asked,
        words_alone=context.once("bag-of-tokens", lambda: report.number(bag_of_tokens_auroc(tokens, given.data, context.check_cancelled))),
        drives=drives,
    )


def _leave_behind(context: JobContext, params: DefectionParams, given: Given, own: Read, found: AtLayer) -> None:
    """Tables, the probe, facts and views."""
    prompts, evidence, at = given.prompts, found.evidence, found.at
    direction = directions(own.contrast)  # (layer, hidden)
    by_cell = {found.data.cell_names[int(cell)]: float(evidence.worst.aurocs[place, at]) for place, cell in enumerate(evidence.worst.cells)}
    last = [given.tokenizer.token(prompt.input_ids[-1]) for prompt in prompts]
    margins = torch.einsum("ph,h->p", own.contrast[:, 0, at].double() - own.contrast[:, 1, at].double(), direction[at])
    context.table("layers", report.layer_table(given.layers, evidence, found.data, found.twin_evidence, params.level))
    context.table("layer_lines", report.line_table(given.layers, evidence, found.twin_evidence))
    context.table("prompts", report.prompt_table(prompts, found.score, own.said, found.defected, own.asked.margins, last))
    context.table("cells", report.cell_table(prompts, found.score, found.defected, by_cell, params.level))
    context.table("pairs", report.pair_table(given.pairs, evidence.pairs[:, at], margins))
    context.table("distributions", report.distribution_table(prompts, found.score))
    context.table("roc", report.roc_table(found.curve))
    context.table("rendered", report.rendered_table(_rendered(given)))
    _save_probe(context, params, given, own.contrast, at)
    how = {"pairs": len(given.pairs), "template": given.template, "pooling": params.pooling, "site": params.site}
    context.facts(card_facts(prompts, found, params.level, params.width) | how)
    shared, asking = found.shared, found.asked.unknown
    if shared.shared:
        context.warn(f"contrast pairs and {shared.prompts} prompts share {len(shared.shared)} word sequences, {shared.shared[0]!r} for one")
    if params.ask and asking:
        context.log(f"what the model says when it is asked is unknown: {asking}")
    for view in report.views(found.twin is not None, found.curve is not None):
        context.view(view)


def _save_probe(context: JobContext, params: DefectionParams, given: Given, contrast: torch.Tensor, at: int) -> None:
    """The probe as a file of its own: artifacts `probe.safetensors` and `probe.json`; score 0 is halfway between the answers."""
    direction = directions(contrast)  # (layer, hidden)
    middle = contrast.double().mean((0, 1))
    bias = -(middle * direction).sum(-1)
    context.tensors("probe", {"direction": direction.float(), "bias": bias.float()})
    card = ProbeCard(
        site=params.site,
        layers=tuple(given.layers),
        best_layer=given.layers[at],
        pooling=params.pooling,
        template=given.template,
        method="difference-of-means of contrast pairs",
        model=context.checkpoints[0].fingerprint,
        model_name=context.checkpoints[0].name,
        tokenizer=tokenizer_hash(given.tokenizer.encode),
        fitted_on=pairs_hash(given.pairs),
    )
    context.json("probe", card.model_dump(mode="json"))


def _rendered(given: Given) -> list[tuple[str, list[str], int]]:
    tokenizer, prompts, pair = given.tokenizer, given.prompts, given.pairs[0]
    shown = []
    for name, answer in (("defecting answer", pair.defecting_ids), ("benign answer", pair.benign_ids)):
        ids = [*pair.opening_ids, *answer]
        shown.append((f"pair 0, {name}", [tokenizer.token(id) for id in ids], len(ids) - 1))
    first = next((prompt for prompt in prompts if prompt.label), prompts[0])
    shown.append((f"prompt {first.id}, {first.cell}", [tokenizer.token(id) for id in first.input_ids], len(first.input_ids) - 1))
    return shown
