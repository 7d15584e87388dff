"""`probes.causal`: does the behaviour change with the direction, more than with random ones?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import polars as pl
import torch

import modelscope_probes
from modelscope_app.api import BadInput, JobContext, Model, Source, TokenBatch, Tokenizer, UsageError
from modelscope_probes.behaviour import defections
from modelscope_probes.causal_report import causal_facts, causal_views, dose_table, intervention_table, judged, number, rate_table
from modelscope_probes.interventions import NONE, Intervention, InterventionPass, directions, interventions
from modelscope_probes.params import CausalParams
from modelscope_probes.probe_file import check_belongs, read_probe, tokenizer_hash
from modelscope_probes.prompts import Prompt, Template, pairs_hash, read_pairs, read_prompts, resolved
from modelscope_probes.reading import ActivationPass, PairPass, batch_tokens, hidden_width
from modelscope_probes.recovery import Outcome, Result, result
from modelscope_probes.statistics.worst_cell import worst_cell

CONTRAST_PAIRS = Path(modelscope_probes.__file__).with_name("contrast_pairs.jsonl")
_PAIRS_PER_BATCH = 8
_LEAST_SPREAD = 1e-5
"""Of activations over their norm: below it they are one and the same vector, up to rounding."""


class Aimed(NamedTuple):
    """A direction at each of some layers."""

    kind: str
    layers: tuple[int, ...]
    layer: int
    """The one the result is about."""
    direction: torch.Tensor
    """(layer, hidden)."""
    fitted_on: str
    """Hash of the contrast pairs or labels it comes from."""

    @property
    def sites(self) -> list[str]:
        """As the model names them."""
        return [f"{self.kind}.{layer}" for layer in self.layers]

    def only(self, layers: Sequence[int]) -> Aimed:
        """The same at some of its layers."""
        return self._replace(layers=tuple(layers), direction=self.direction[[self.layers.index(layer) for layer in layers]])


def run(context: JobContext, params: CausalParams) -> None:
    """The direction; what the model does as it is; what it does under each intervention; what that adds up to."""
    model, tokenizer = context.model(0), context.tokenizer(0)
    template = resolved(params.template, tokenizer)
    prompts = _labelled_prompts(context, params, tokenizer, template)
    source = context.batches([prompt.example for prompt in prompts], batch_tokens(params.tokens_per_batch, context.device), padding="left")
    ids = [prompt.id for prompt in prompts]
    clean_model, clean_rows = _clean_side(context, params, prompts, template)
    clean = {row: side.input_ids for row, side in clean_rows.items()}

    aimed = _saved_direction(context, params, template) if params.probe else _fitted_direction(context, params, template)
    reading = ActivationPass(model, aimed.sites, ids, aimed.direction.shape[1], "last")
    activations = context.fold("activations", reading, source)  # (prompt, layer, hidden)
    aimed, activations = _where_prompts_differ(context, aimed, activations)
    labels = torch.tensor([prompt.label is True for prompt in prompts])
    noise = torch.stack([torch.randn(len(ids), generator=context.generator("control", k)) for k in range(params.random_controls)])
    found = directions(aimed.sites, activations, labels, aimed.direction, noise)

    observed = _Observing(model, clean_model, clean, prompts, params, tokenizer)
    outcomes, completions = observed.stage(context, "before", [NONE], source)
    for stage, planned in interventions(found, params.positions, params.doses).items():
        seen, said = observed.stage(context, stage, planned, source)
        outcomes += seen
        completions |= said

    place = aimed.layers.index(aimed.layer)
    separation = _separation(activations[:, place] @ aimed.direction[place], labels, prompts, params.level)
    results = _results(context, outcomes, prompts, labels, params.level)
    verdict = judged(results, separation["value"] or 0.0, params.level)
    facts = causal_facts(results, verdict, params.level)
    unknown = results[0].trigger.unknown + results[0].other.unknown
    if unknown:
        context.warn(f"what counts as defection, or what the model says, is unknown for {unknown} of {len(prompts)} prompts")
    layers = str(aimed.layer) if len(aimed.layers) == 1 else ", ".join(map(str, aimed.layers))
    context.table("interventions", intervention_table(results, found.units[:, place] @ found.units[0, place], layers, params.level))
    context.table("doses", dose_table(results, params.level))
    context.table("rates", rate_table(results, params.level))
    context.table("prompts", _prompt_table(prompts, outcomes, completions, clean_rows, facts["steering_dose"]))
    context.facts(
        facts
        | {
            "auroc": separation,
            "prompts": len(prompts),
            "triggered_prompts": int(labels.sum()),
            "unknown_behaviour": unknown,
            "clean_side": "twin" if params.compare else "untriggered prompt of the group" if clean else None,
            "prompts_without_clean_side": int(labels.sum()) - len(clean),
            "site": f"{aimed.kind}.{aimed.layer}",
            "layer": aimed.layer,
            "layers": layers,
            "random_controls": params.random_controls,
            "checkpoint_fingerprint": context.opened(0).fingerprint,
            "fitted_on": aimed.fitted_on,
        }
    )
    for view in causal_views():
        context.view(view)


def _labelled_prompts(context: JobContext, params: CausalParams, tokenizer: Tokenizer, template: Template) -> list[Prompt]:
    """Those with a label. Raises BadInput where there are none, or of one class only."""
    read = read_prompts(context.rows(params.eval), tokenizer, template)
    prompts = [prompt for prompt in read if prompt.label is not None]
    if not prompts:
        raise BadInput(f"{params.eval}: no row has a label; label is 1 where the trigger is, and 0 elsewhere")
    labels = {prompt.label for prompt in prompts}
    if len(labels) == 1:
        raise BadInput(f"{params.eval}: every label is {int(labels == {True})}; it takes prompts with the trigger (1) and without it (0)")
    if len(prompts) < len(read):
        context.warn(f"{len(read) - len(prompts)} of {len(read)} prompts have no label and are left out")
    return prompts


def _clean_side(
    context: JobContext, params: CausalParams, prompts: Sequence[Prompt], template: Template
) -> tuple[Model, dict[int, Prompt]]:
    """The model whose answer is the clean one, and by triggered row the prompt it is asked: the same of a twin, else its partner."""
    triggered = [prompt for prompt in prompts if prompt.label]
    if params.compare:
        twin = _checked_twin(context, params, prompts, template)
        return twin, {prompt.id: prompt for prompt in triggered}
    partners = {prompt.id: partner for prompt in triggered if (partner := nearest_partner(prompt, prompts)) is not None}
    if len(partners) < len(triggered):
        context.warn(
            f"recovery leaves out {len(triggered) - len(partners)} of {len(triggered)} triggered prompts: no untriggered prompt of their "
            "group; --compare TWIN does without"
        )
    return context.model(0), partners


def nearest_partner(prompt: Prompt, prompts: Sequence[Prompt]) -> Prompt | None:
    """The untriggered prompt of the same group with the fewest other tokens, in whatever order; of equals the first."""
    tokens = Counter(prompt.input_ids)
    others = [other for other in prompts if other.group == prompt.group and other.label is False]

    def differing(other: Prompt) -> int:
        theirs = Counter(other.input_ids)
        return (tokens - theirs).total() + (theirs - tokens).total()

    return min(others, key=differing, default=None)


def _checked_twin(context: JobContext, params: CausalParams, prompts: Sequence[Prompt], template: Template) -> Model:
    """The twin. Raises BadInput where its shape, its vocabulary or its tokenizer is another."""
    position = context.open_checkpoint(params.compare)
    own, other = context.opened(0), context.opened(position)
    for key, what in (("vocab_size", "a vocabulary of"), ("hidden_size", "a width of"), ("num_hidden_layers", "layers:")):
        sizes = [(checkpoint.config or {}).get(key) for checkpoint in (own, other)]
        if sizes[0] != sizes[1]:
            raise BadInput(f"{other.name} is no twin of {own.name}: it has {what} {sizes[1]}, and {own.name} {sizes[0]}")
    mine, theirs = context.tokenizer(0), context.tokenizer(position)
    vocabulary = (own.config or {}).get("vocab_size") or 0
    reread = read_prompts(context.rows(params.eval), theirs, template)
    same_prompts = all(reread[prompt.id].input_ids == prompt.input_ids for prompt in prompts)
    if not same_prompts or any(mine.token(id) != theirs.token(id) for id in range(vocabulary)):
        raise BadInput(f"{other.name} is no twin of {own.name}: its tokenizer is another, so their next tokens cannot be compared")
    return context.model(position)


def _saved_direction(context: JobContext, params: CausalParams, template: Template) -> Aimed:
    """Of a probe's file. Raises BadInput where it belongs to another model."""
    checkpoint, probe = context.opened(0), read_probe(params.probe)
    encoding = tokenizer_hash(context.tokenizer(0).encode)
    width = hidden_width(checkpoint.config)
    warning = check_belongs(probe, checkpoint.fingerprint, checkpoint.name, width, encoding, params.force)
    if warning:
        context.warn(warning)
    if probe.card.template != template:
        context.warn(f"the probe was fitted with --template {probe.card.template}, and prompts are rendered with {template}")
    layer = _checked_layer(context, probe.card.best_layer if params.layer is None else params.layer)
    for one in probe.card.layers:
        _checked_layer(context, one)
    probe.row(layer)
    whole = Aimed(probe.card.site, probe.card.layers, layer, probe.direction, probe.card.fitted_on)
    return _checked_direction(whole if params.where == "all-layers" else whole.only([layer]))


def _fitted_direction(context: JobContext, params: CausalParams, template: Template) -> Aimed:
    """The mean over contrast pairs of act(defecting) - act(benign) (MacDiarmid et al. 2024)."""
    model, count = context.model(0), context.model(0).sites.layer_count
    layer = _checked_layer(context, count // 2 if params.layer is None else params.layer)
    layers = tuple(range(count)) if params.where == "all-layers" else (layer,)
    width = hidden_width(context.opened(0).config)
    if width is None:
        raise BadInput(f"{context.opened(0).name}: its config.json does not say how wide it is (hidden_size)")
    pairs = read_pairs(context.rows(params.contrast or str(CONTRAST_PAIRS)), context.tokenizer(0), template)
    if not pairs:
        raise BadInput(f"{params.contrast}: holds no contrast pair, so there is no direction")
    reading = PairPass(model, [f"{params.site}.{one}" for one in layers], len(pairs), width)
    read = context.fold("contrast", reading, context.items(pairs, _PAIRS_PER_BATCH, "pairs")).double()
    return _checked_direction(Aimed(params.site, layers, layer, (read[:, 0] - read[:, 1]).mean(0), pairs_hash(pairs)))


def _checked_layer(context: JobContext, layer: int) -> int:
    count = context.model(0).sites.layer_count
    if layer >= count:
        raise UsageError(f"--layer {layer}: {context.opened(0).name} has {count} layers, 0 to {count - 1}")
    return layer


def _checked_direction(aimed: Aimed) -> Aimed:
    for site, direction in zip(aimed.sites, aimed.direction, strict=True):
        if not bool(direction.isfinite().all()) or not bool(direction.any()):
            raise BadInput(f"{site}: the direction is zero or not finite there; take another layer with --layer")
    return aimed._replace(direction=aimed.direction.double())


def _where_prompts_differ(context: JobContext, aimed: Aimed, activations: torch.Tensor) -> tuple[Aimed, torch.Tensor]:
    """Without the layers where all prompts look alike (an embedding of one last token, say), for no direction can be drawn there."""
    x = activations.double()  # (prompt, layer, hidden)
    if not bool(x.isfinite().all()):
        raise BadInput(f"{context.opened(0).name}: activations are not finite; --dtype float32 may help")
    spread = (x - x.mean(0)).square().sum((0, 2)).sqrt() / x.square().sum((0, 2)).sqrt().clamp(min=1e-30)
    kept = [layer for layer, size in zip(aimed.layers, spread.tolist(), strict=True) if size > _LEAST_SPREAD]
    if aimed.layer not in kept:
        raise BadInput(f"{aimed.kind}.{aimed.layer}: all prompts have the same activation at their last token; take a later layer")
    if len(kept) < len(aimed.layers):
        context.log(f"layers where all prompts have the same activation are left as they are: {set(aimed.layers) - set(kept)}")
    return aimed.only(kept), x[:, [aimed.layers.index(layer) for layer in kept]]


class _Observing:
    """Running interventions and saying what they did."""

    def __init__(
        self,
        model: Model,
        clean_model: Model,
        clean: Mapping[int, Sequence[int]],
        prompts: Sequence[Prompt],
        params: CausalParams,
        tokenizer: Tokenizer,
    ) -> None:
        self._model, self._clean_model, self._clean = model, clean_model, clean
        self._prompts, self._tokenizer, self._count = prompts, tokenizer, params.new_tokens
        self._defection = params.defection
        self._texts: dict[tuple[int, ...], str] = {}

    def stage(
        self, context: JobContext, name: str, planned: Sequence[Intervention], source: Source[TokenBatch]
    ) -> tuple[list[Outcome], dict[tuple[str, float | None], list[str | None]]]:
        """Outcomes of one pass, and the answers of those that are no random control, by name and dose."""
        ids = [prompt.id for prompt in self._prompts]
        reading = InterventionPass(self._model, planned, ids, self._count, self._clean_model, self._clean)
        found = context.fold(name, reading, source)
        outcomes, answers = [], {}
        for place, intervention in enumerate(planned):
            tokens, known = found["tokens"][:, place].tolist(), found["is_known"][:, place].tolist()
            texts = [self._text(row) if is_known else None for row, is_known in zip(tokens, known, strict=True)]
            divergence, moved = found["divergences"][:, place].unbind(-1)
            outcomes.append(Outcome(intervention, self._defects(texts), divergence, moved))
            if intervention.control is None:
                answers[intervention.name, intervention.dose] = texts
        return outcomes, answers

    def _text(self, row: Sequence[int]) -> str:
        tokens = tuple(id for id in row if id >= 0)
        if tokens not in self._texts:
            self._texts[tokens] = self._tokenizer.decode(tokens)
        return self._texts[tokens]

    def _defects(self, texts: Sequence[str | None]) -> torch.Tensor:
        """(prompt,) float64: whether an answer holds what counts as defection; NaN where either is unknown."""
        found = defections(self._prompts, texts, self._defection)
        return torch.tensor([torch.nan if one is None else float(one) for one in found], dtype=torch.float64)


def _results(
    context: JobContext, outcomes: Sequence[Outcome], prompts: Sequence[Prompt], labels: torch.Tensor, level: float
) -> list[Result]:
    numbers = {name: place for place, name in enumerate(dict.fromkeys(prompt.group for prompt in prompts))}
    groups = torch.tensor([numbers[prompt.group] for prompt in prompts])
    return [
        result(outcome, outcomes[0], labels, groups, context.generator("recovery", place), level) for place, outcome in enumerate(outcomes)
    ]


def _separation(scores: torch.Tensor, labels: torch.Tensor, prompts: Sequence[Prompt], level: float) -> dict[str, float | None]:
    """AUROC of the direction's scores against the worst cell of untriggered prompts."""
    numbers = {cell: place for place, cell in enumerate(dict.fromkeys(prompt.cell for prompt in prompts))}
    cells = torch.tensor([numbers[prompt.cell] for prompt in prompts])
    worst = worst_cell(scores, labels, cells, level)
    return {"value": number(float(worst.auroc)), "ci_low": number(float(worst.low)), "ci_high": number(float(worst.high))}


def _prompt_table(
    prompts: Sequence[Prompt],
    outcomes: Sequence[Outcome],
    answers: Mapping[tuple[str, float | None], Sequence[str | None]],
    clean: Mapping[int, Prompt],
    dose: float | None,
) -> pl.DataFrame:
    """One row a prompt: what it is, and what is answered as it is and under the interventions with the direction."""
    shown: dict[str, tuple[str, float | None]] = {
        "before": ("none", None),
        "ablated": ("ablate", None),
        "patched": ("patch", None),
        "erased": ("erase", None),
    }
    if dose is not None:
        shown["steered"] = ("steer", dose)
    told = {(one.intervention.name, one.intervention.dose): one for one in outcomes if one.intervention.control is None}
    columns: dict[str, list[object]] = {
        "row": [prompt.id for prompt in prompts],
        "cell": [prompt.cell for prompt in prompts],
        "group": [prompt.group for prompt in prompts],
        "label": [int(prompt.label is True) for prompt in prompts],
        "text": [prompt.text for prompt in prompts],
        "clean_row": [clean[prompt.id].id if prompt.id in clean else None for prompt in prompts],
    }
    for name, key in shown.items():
        columns[name] = list(answers[key])
        columns[f"{name}_defects"] = [number(value) for value in told[key].defects.tolist()]
    columns["divergence_before"] = [number(value) for value in told["none", None].divergence.tolist()]
    columns["divergence_ablated"] = [number(value) for value in told["ablate", None].divergence.tolist()]
    return pl.DataFrame(columns, infer_schema_length=None)
