"""What `probes.score` does, in the order it happens."""

from __future__ import annotations

import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import get_args

import torch

from modelscope_app.api import BadInput, JobContext
from modelscope_probes import score_report
from modelscope_probes.conformal import benign_needed, conformal_threshold
from modelscope_probes.params import ScoreParams, SiteKind
from modelscope_probes.probe_file import SavedProbe, check_belongs, read_probe, tokenizer_hash
from modelscope_probes.prompts import Prompt, Template, opening, read_prompts, resolved
from modelscope_probes.reading import Pooling, batch_tokens, hidden_width
from modelscope_probes.score_report import Threshold
from modelscope_probes.token_scores import Layout, Scored, State, TokenScorePass

REWRITE_SECONDS = 1.0
"""What is shown while a run goes on is written at most that often, and never for more than a tenth of the time."""


def run(context: JobContext, params: ScoreParams) -> None:
    """Score benign prompts for a threshold, then the prompts, token by token, and what the model answers, as it answers."""
    checkpoint, tokenizer = context.checkpoints[0], context.tokenizer()
    probe = checked_probe(params.probe)
    foreign = check_belongs(
        probe, checkpoint.fingerprint, checkpoint.name, hidden_width(checkpoint.config), tokenizer_hash(tokenizer.encode), params.force
    )
    if foreign is not None:
        context.warn(foreign)
    prompts = _prompts(context, params, probe)
    threshold = _threshold(context, params, probe, foreign is not None)
    if threshold.reason is not None:
        context.warn(threshold.reason)

    layout = Layout(prompts, params.new_tokens)
    growing = _Growing(context, lambda state: write_tokens(context, Scored(prompts, layout, probe, state, tokenizer), threshold), layout)
    reading = TokenScorePass(context.model(), probe, layout, growing.told)
    nothing = Scored(prompts, layout, probe, reading.start(), tokenizer)
    context.facts(score_report.first_facts(nothing, threshold))
    views = {view.name: view for view in score_report.score_views(nothing, threshold)}
    context.view(views["facts"])

    source = context.batches([prompt.example for prompt in prompts], batch_tokens(params.tokens_per_batch, context.device), padding="left")
    scored = Scored(prompts, layout, probe, context.fold("token_scores", reading, source), tokenizer)
    write_tokens(context, scored, threshold)
    by_prompt = score_report.prompt_table(scored, threshold)
    context.table("prompts", by_prompt)
    context.table("histogram", score_report.histogram_table(by_prompt))
    context.table("cells", score_report.cell_table(by_prompt, params.level))
    facts = score_report.score_facts(scored, by_prompt, params.level)
    context.facts(facts)
    if facts["unknown_scores"]:
        context.warn(f"the score of {facts['unknown_scores']} of {len(prompts)} prompts is NaN or infinite: unknown, and no alert")
    for view in views.values():
        context.view(view)


def write_tokens(context: JobContext, scored: Scored, threshold: Threshold) -> None:
    """Tables and pictures of the tokens read so far. Written again as more come, and in the end."""
    context.table("tokens", score_report.token_table(scored))
    context.table("shown_tokens", score_report.strip_table(scored))
    context.table("shown_layers", score_report.heat_table(scored))
    for view in score_report.score_views(scored, threshold):
        if view.name in ("tokens", "layers"):
            context.view(view)


def checked_probe(path: str) -> SavedProbe:
    """The probe, with what its json says fit for use. Raises BadInput naming the file and what is wrong with it."""
    probe = read_probe(path)
    beside = Path(path).with_suffix(".json").name
    known = {"site": get_args(SiteKind), "pooling": get_args(Pooling), "template": get_args(Template)}
    for name, values in known.items():
        if getattr(probe.card, name) not in values:
            raise BadInput(f"{beside}: {name} is {str(getattr(probe.card, name))[:40]!r}; it is one of {', '.join(values)}")
    if probe.card.best_layer not in probe.card.layers:
        raise BadInput(f"{beside}: best_layer {probe.card.best_layer} is not among its layers, {', '.join(map(str, probe.card.layers))}")
    if probe.card.thresholds is not None and len(probe.card.thresholds) != len(probe.card.layers):
        raise BadInput(f"{beside}: has {len(probe.card.thresholds)} thresholds for {len(probe.card.layers)} layers")
    return probe


def _prompts(context: JobContext, params: ScoreParams, probe: SavedProbe) -> list[Prompt]:
    """The rows of the file, or the one text, rendered as the probe's were."""
    tokenizer = context.tokenizer()
    template = resolved(probe.card.template, tokenizer)  # type: ignore[arg-type]  # checked with the probe
    if params.prompts:
        return read_prompts(context.rows(params.prompts), tokenizer, template)
    message = {"role": "user", "content": params.text}
    ids = opening(tokenizer, (message,), template)
    if not ids:
        raise BadInput("--text is no token of this checkpoint's tokenizer")
    return [Prompt(0, ids, params.text, None, "text", "row 0", "", (message,))]


def _threshold(context: JobContext, params: ScoreParams, probe: SavedProbe, is_foreign: bool) -> Threshold:
    """From the calibration prompts; without any, the one stored with the probe, where the probe is at home."""
    if params.calibration:
        benign = _benign_scores(context, params, probe)
        return calibrated_threshold(benign, params.alpha)
    row, card = probe.row(probe.card.best_layer), probe.card
    stored = None if card.thresholds is None else card.thresholds[row]
    alpha = float(params.alpha)
    if is_foreign:
        return Threshold(
            None, alpha, None, "no threshold: the probe's own is for the checkpoint it was fitted on; --calibration FILE sets one"
        )
    if card.thresholds is None:
        return Threshold(None, alpha, None, "no threshold: none is stored with the probe; --calibration FILE of benign prompts sets one")
    try:
        for_rate = None if card.alpha is None else Fraction(card.alpha)
    except (ValueError, ZeroDivisionError):
        beside = Path(params.probe).with_suffix(".json").name
        raise BadInput(f"{beside}: alpha is {str(card.alpha)[:40]!r}, and no number") from None
    if stored is None:
        return Threshold(None, alpha, None, f"no threshold: the probe was calibrated on too few benign prompts for a rate of {for_rate}")
    if for_rate != params.alpha:
        context.warn(
            f"the threshold stored with the probe is for a false-positive rate of {for_rate or 'unknown size'}, not {params.alpha}"
        )
    return Threshold(stored, None if for_rate is None else float(for_rate), None, None)


def calibrated_threshold(benign: torch.Tensor, alpha: Fraction) -> Threshold:
    """The split-conformal threshold of benign scores (n,), or why there is none."""
    count = len(benign)
    if not bool(torch.isfinite(benign).all()):
        return Threshold(None, float(alpha), count, "no threshold: the score of a benign prompt is NaN or infinite")
    found = conformal_threshold(benign, alpha)
    if found is None:
        reason = f"no threshold: {count} benign prompts allow none for a false-positive rate of {alpha}; {benign_needed(alpha)} are needed"
        return Threshold(None, float(alpha), count, reason)
    return Threshold(float(found), float(alpha), count, None)


def _benign_scores(context: JobContext, params: ScoreParams, probe: SavedProbe) -> torch.Tensor:
    """(n,) pooled scores of the calibration prompts at the best layer. Raises BadInput for a prompt labelled as the behaviour."""
    rows, tokenizer = context.rows(params.calibration), context.tokenizer()
    prompts = read_prompts(rows, tokenizer, resolved(probe.card.template, tokenizer))  # type: ignore[arg-type]  # checked with the probe
    for prompt in prompts:
        if prompt.label:
            raise rows.bad_row(prompt.id, "is labelled as the behaviour; a threshold is set on benign prompts")
    layout = Layout(prompts)
    reading = TokenScorePass(context.model(), probe, layout)
    source = context.batches([prompt.example for prompt in prompts], batch_tokens(params.tokens_per_batch, context.device), padding="left")
    return Scored(prompts, layout, probe, context.fold("calibration_scores", reading, source), tokenizer).pooled


class _Growing:
    """Shows what was read so far, and stops where the job was asked to."""

    def __init__(self, context: JobContext, write: Callable[[State], None], layout: Layout) -> None:
        self._context = context
        self._write = write
        self._layout = layout
        self._next = 0.0

    def told(self, state: State, generated: int) -> None:
        """After each pass of the model."""
        self._context.check_cancelled()
        began = time.monotonic()
        if began >= self._next and bool(state["is_read"].any()):
            self._write(state)
            ended = time.monotonic()
            self._next = ended + max(REWRITE_SECONDS, 9 * (ended - began))
        if len(self._layout.ids) == 1 and self._layout.new_tokens:  # of several prompts, the fold says how many are done
            self._context.progress(generated, self._layout.new_tokens, "tokens")
