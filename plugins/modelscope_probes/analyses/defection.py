"""`probes.defection`: a direction from generic contrast pairs, scored on prompts, with everything that makes its number believable."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from typing import Any, NamedTuple

import torch

from modelscope_app.api import BadInput, JobContext, Tokenizer
from modelscope_probes import defection_report as report
from modelscope_probes.evidence import (
    Labelled,
    LayerEvidence,
    bag_of_tokens_auroc,
    directions,
    layer_evidence,
    scores,
)
from modelscope_probes.leak_guard import overlap
from modelscope_probes.params import DefectionParams
from modelscope_probes.probe_file import ProbeCard, tokenizer_hash
from modelscope_probes.prompts import Pair, Prompt, Template, before_two_answers, pairs_hash, read_pairs, read_prompts, resolved
from modelscope_probes.reading import ActivationPass, AnswerPass, NextTokenPass, PairPass, batch_tokens, hidden_width
from modelscope_probes.statistics.operating_points import roc_curve, tpr_at_fpr
from modelscope_probes.statistics.ranks import auroc
from modelscope_probes.statistics.sample_size import more_prompts
from modelscope_probes.verdict import MOST_LEAKED, Evidence, judged

FEWEST_PROMPTS = 4


class Read(NamedTuple):
    """What was read of one checkpoint."""

    contrast: torch.Tensor
    """(pair, 2, layer, hidden)."""
    activations: torch.Tensor
    """(n, layer, hidden)."""
    answers: torch.Tensor | None
    """(n, new token) token ids, -1 after the end."""
    asked: torch.Tensor | None
    """(n,): how far the model prefers the defecting answer when it is asked."""


def run(context: JobContext, params: DefectionParams) -> None:
    """Read contrast pairs and prompts in one pass each, hold the direction against its controls, and judge."""
    tokenizer = context.tokenizer(0)
    template = resolved(params.template, tokenizer)
    prompts = labelled_prompts(context, params.eval, tokenizer, template)
    pairs = contrast_pairs(context, params.contrast, tokenizer, template)
    causal = _causal_effect(context, params.causal, params.site, pairs_hash(pairs))
    layers = chosen_layers(context, 0, params.layers)
    if params.layer is not None and params.layer not in layers:
        raise BadInput(f"--layer {params.layer} is not among the layers that are read: {', '.join(map(str, layers))}")
    twin_at = twin_position(context, params.compare, prompts, params.eval, template) if params.compare else None

    own = _read(context, params, 0, prompts, pairs, layers, template, "")
    twin = None if twin_at is None else _read(context, params, twin_at, prompts, pairs, layers, template, "-of-twin")

    data = labelled(prompts)
    polarity = [pair.defecting for pair in pairs]
    found = _evidence(context, params, own, polarity, data)
    beside = None if twin is None else _evidence(context, params, twin, polarity, data)
    at = layers.index(params.layer) if params.layer is not None else _best(found.auroc)
    _leave_behind(context, params, tokenizer, template, prompts, pairs, layers, own, found, beside, data, at, causal)


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


def defections(prompts: Sequence[Prompt], completions: Sequence[str] | None, text: str) -> list[bool | None]:
    """Whether each answer holds what counts as defection; None where nothing says what that is."""
    if completions is None:
        return [None] * len(prompts)
    sought = [(text or prompt.defection).lower() for prompt in prompts]
    return [part in completion.lower() if part else None for part, completion in zip(sought, completions, strict=True)]


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


def _read(
    context: JobContext,
    params: DefectionParams,
    position: int,
    prompts: Sequence[Prompt],
    pairs: Sequence[Pair],
    layers: Sequence[int],
    template: Template,
    whose: str,
) -> Read:
    model = context.model(position)
    sites = [f"{params.site}.{layer}" for layer in layers]
    contrast = read_contrast(
        context, position, pairs, sites, batch_tokens(params.tokens_per_batch, context.device), f"contrast-pairs{whose}"
    )
    activations = read_activations(
        context, position, prompts, sites, params.pooling, batch_tokens(params.tokens_per_batch, context.device), f"prompts{whose}"
    )
    ids = [prompt.id for prompt in prompts]
    answers = asked = None
    if params.new_tokens:
        source = context.batches(
            [prompt.example for prompt in prompts], batch_tokens(params.tokens_per_batch, context.device), padding="left"
        )
        answers = context.fold(f"answers{whose}", AnswerPass(model, ids, params.new_tokens), source)
    if params.ask and all(prompt.messages for prompt in prompts):
        asked = _asked(context, params, position, prompts, pairs, template, whose)
    return Read(contrast, activations, answers, asked)


def _asked(
    context: JobContext,
    params: DefectionParams,
    position: int,
    prompts: Sequence[Prompt],
    pairs: Sequence[Pair],
    template: Template,
    whose: str,
) -> torch.Tensor:
    """(n,): mean over one question of each polarity of logit(defecting answer) - logit(benign answer), asked after the prompt."""
    tokenizer = context.tokenizer(position)
    total = torch.zeros(len(prompts), dtype=torch.float64)
    first_of: dict[str, Pair] = {}
    for pair in pairs:
        first_of.setdefault(pair.defecting.lower(), pair)
    for number, pair in enumerate(first_of.values()):
        examples, tokens = [], set()
        for prompt in prompts:
            *before, last = prompt.messages
            question = {"role": last["role"], "content": f"{last['content']}\n\n{pair.question}"}
            begins, defecting, benign = before_two_answers(tokenizer, [*before, question], (pair.defecting, pair.benign), template)
            tokens.add((defecting[0], benign[0]))
            examples.append(prompt._replace(input_ids=begins).example)
        if len(tokens) > 1:
            raise BadInput(
                f"the tokenizer writes {pair.defecting!r} and {pair.benign!r} differently after different prompts; --no-ask leaves it out"
            )
        source = context.batches(examples, batch_tokens(params.tokens_per_batch, context.device), padding="left")
        reading = NextTokenPass(context.model(position), [prompt.id for prompt in prompts], next(iter(tokens)))
        logits = context.fold(f"asking{whose}-{number + 1}", reading, source)
        total += (logits[:, 0] - logits[:, 1]) / len(first_of)
    return total


def _evidence(context: JobContext, params: DefectionParams, read: Read, polarity: Sequence[str], data: Labelled) -> LayerEvidence:
    """The same draws for a checkpoint and its twin, so that their difference is paired."""
    return layer_evidence(
        read.activations,
        read.contrast,
        polarity,
        data,
        random_count=params.random_directions,
        draws=params.draws,
        level=params.level,
        generators={name: context.generator("evidence", name) for name in ("bootstrap", "permutation", "random")},
    )


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


def _leave_behind(
    context: JobContext,
    params: DefectionParams,
    tokenizer: Tokenizer,
    template: Template,
    prompts: Sequence[Prompt],
    pairs: Sequence[Pair],
    layers: Sequence[int],
    own: Read,
    found: LayerEvidence,
    beside: LayerEvidence | None,
    data: Labelled,
    at: int,
    causal: bool | None,
) -> None:
    direction = directions(own.contrast)  # (layer, hidden)
    score = scores(own.activations, direction)[at]  # (n,)
    completions = None if own.answers is None else [tokenizer.decode([id for id in row if id >= 0]) for row in own.answers.tolist()]
    defected = defections(prompts, completions, params.defection)
    texts = [text for pair in pairs for text in (pair.question, f"{pair.question} {pair.defecting}", f"{pair.question} {pair.benign}")]
    shared = overlap(texts, [prompt.text for prompt in prompts], data.labels.tolist())
    leaked = shared.prompts > MOST_LEAKED * len(prompts) or bool(shared.words)
    fixed = params.layer is not None or len(layers) == 1
    twin = None if beside is None else report.beside_twin(found, beside, at, fixed, params.level)
    halves = (float(found.halves[0][at]), float(found.halves[1][at]))
    verdict = judged(
        Evidence(
            positives=int(data.labels.sum()),
            negatives=int((~data.labels).sum()),
            positive_groups=_distinct(data.groups[data.labels]),
            negative_groups=_distinct(data.groups[~data.labels]),
            auroc=float(found.auroc[at]),
            worst_low=float(found.worst.low[at]),
            p_layer=float(found.p[at]),
            p_random=float(found.random_p[at]),
            halves=halves,
            leaked=leaked,
            twin_difference_low=None if twin is None else twin.low,
            drives=causal,
        )
    )
    curve = roc_curve(score, data.labels)
    tokens = [prompt.input_ids for prompt in prompts]
    words_alone = context.once("bag-of-tokens", lambda: report.number(bag_of_tokens_auroc(tokens, data, context.check_cancelled)))
    worst = int(found.worst.worst[at])
    interval = found.intervals[at]
    by_cell = {data.cell_names[int(cell)]: float(found.worst.aurocs[place, at]) for place, cell in enumerate(found.worst.cells)}
    observed = torch.tensor([bool(one) for one in defected])
    has_behaviour = None not in defected
    facts: dict[str, Any] = {
        "verdict": verdict.verdict,
        "verdict_reason": verdict.reason,
        "auroc": report.with_interval(float(found.auroc[at]), interval),
        "layer": layers[at],
        "layer_chosen": "beforehand" if fixed else "for its AUROC",
        "worst_cell": data.cell_names[int(found.worst.cells[worst])],
        "worst_cell_auroc": {
            "value": report.number(float(found.worst.auroc[at])),
            "ci_low": report.number(float(found.worst.low[at])),
            "ci_high": report.number(float(found.worst.high[at])),
        },
        "random_percentile": report.number(float(found.percentile[at])),
        "random_p": report.number(float(found.random_p[at])),
        "best_random_auroc": report.number(float(found.random[at].max())),
        "p_layer": report.number(float(found.p[at])),
        "permuted": f"{found.permutation}, {min(found.labellings, 10**15)} labellings",
        "first_polarity_auroc": report.number(halves[0]),
        "other_polarity_auroc": report.number(halves[1]),
        "pair_aurocs": _spread(found.pairs[:, at]),
        "tpr_at_1_percent_fpr": report.point_fact(tpr_at_fpr(curve, 0.01, params.level)) if curve else None,
        "tpr_at_5_percent_fpr": report.point_fact(tpr_at_fpr(curve, 0.05, params.level)) if curve else None,
        "bag_of_tokens_auroc": words_alone,
        "asked_auroc": None if own.asked is None else report.number(float(auroc(own.asked[None], data.labels)[0])),
        "twin_auroc": None if twin is None or beside is None else report.with_interval(twin.auroc, beside.intervals[twin.at]),
        "twin_layer": None if twin is None else layers[twin.at],
        "twin_difference": None if twin is None else twin.fact,
        "behavior_auroc": report.number(float(auroc(score[None], observed)[0])) if has_behaviour else None,
        **_behaviour_facts(prompts, defected, params.level),
        "shared_word_sequences": len(shared.shared),
        "prompts_that_share": shared.prompts,
        "contrast_words_only_in_positives": ", ".join(shared.words[:20]) or None,
        "wording_leaks": leaked,
        "more_prompts_needed": more_prompts((interval.high - interval.low) / 2, params.width / 2, *_class_counts(data)),
        "prompts": len(prompts),
        "positives": _class_counts(data)[0],
        "negatives": _class_counts(data)[1],
        "groups": _distinct(data.groups),
        "pairs": len(pairs),
        "template": template,
        "pooling": params.pooling,
        "site": params.site,
    }
    last = [tokenizer.token(prompt.input_ids[-1]) for prompt in prompts]
    margins = torch.einsum("ph,h->p", own.contrast[:, 0, at].double() - own.contrast[:, 1, at].double(), direction[at])
    context.table("layers", report.layer_table(layers, found, data, beside, params.level))
    context.table("layer_lines", report.line_table(layers, found, beside))
    context.table("prompts", report.prompt_table(prompts, score, completions, defected, own.asked, last))
    context.table("cells", report.cell_table(prompts, score, defected, by_cell, params.level))
    context.table("pairs", report.pair_table(pairs, found.pairs[:, at], margins))
    context.table("distributions", report.distribution_table(prompts, score))
    context.table("roc", report.roc_table(curve))
    context.table("rendered", report.rendered_table(_rendered(tokenizer, prompts, pairs)))
    _save_probe(context, params, tokenizer, template, pairs, layers, own, direction, at)
    context.facts(facts)
    if shared.shared:
        context.warn(f"contrast pairs and {shared.prompts} prompts share {len(shared.shared)} word sequences, {shared.shared[0]!r} for one")
    for view in report.views(beside is not None, curve is not None):
        context.view(view)


def _save_probe(
    context: JobContext,
    params: DefectionParams,
    tokenizer: Tokenizer,
    template: Template,
    pairs: Sequence[Pair],
    layers: Sequence[int],
    own: Read,
    direction: torch.Tensor,
    at: int,
) -> None:
    """The probe as a file of its own: artifacts `probe.safetensors` and `probe.json`; score 0 is halfway between the answers."""
    middle = own.contrast.double().mean((0, 1))  # (layer, hidden)
    bias = -(middle * direction).sum(-1)
    context.tensors("probe", {"direction": direction.float(), "bias": bias.float()})
    card = ProbeCard(
        site=params.site,
        layers=tuple(layers),
        best_layer=layers[at],
        pooling=params.pooling,
        template=template,
        method="difference-of-means of contrast pairs",
        model=context.checkpoints[0].fingerprint,
        model_name=context.checkpoints[0].name,
        tokenizer=tokenizer_hash(tokenizer.encode),
        fitted_on=pairs_hash(pairs),
    )
    context.json("probe", card.model_dump(mode="json"))


def _rendered(tokenizer: Tokenizer, prompts: Sequence[Prompt], pairs: Sequence[Pair]) -> list[tuple[str, list[str], int]]:
    pair = pairs[0]
    shown = []
    for name, answer in (("defecting answer", pair.defecting_ids), ("benign answer", pair.benign_ids)):
        ids = [*pair.opening_ids, *answer]
        shown.append((f"pair 0, {name}", [tokenizer.token(id) for id in ids], len(ids) - 1))
    first = next((prompt for prompt in prompts if prompt.label), prompts[0])
    shown.append((f"prompt {first.id}, {first.cell}", [tokenizer.token(id) for id in first.input_ids], len(first.input_ids) - 1))
    return shown


def _spread(aurocs: torch.Tensor) -> dict[str, Any]:
    """Median of single pairs' AUROCs, with the lowest and highest in the interval's place, said so."""
    values = [report.number(float(value)) for value in (aurocs.median(), aurocs.min(), aurocs.max())]
    return {"value": values[0], "ci_low": values[1], "ci_high": values[2], "method": "lowest and highest pair"}


def _behaviour_facts(prompts: Sequence[Prompt], defected: Sequence[bool | None], level: float) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    for name, label in (("positive", True), ("negative", False)):
        known = [bool(one) for prompt, one in zip(prompts, defected, strict=True) if prompt.label is label and one is not None]
        facts[f"defection_rate_{name}"] = report.rate_fact(sum(known), len(known), level)
    agree = [prompt.label is one for prompt, one in zip(prompts, defected, strict=True) if one is not None]
    facts["label_agrees_with_behavior"] = sum(agree) / len(agree) if agree else None
    return facts


def _distinct(groups: torch.Tensor) -> int:
    return int((groups.bincount() > 0).sum())


def _class_counts(data: Labelled) -> tuple[int, int]:
    return int(data.labels.sum()), int((~data.labels).sum())
