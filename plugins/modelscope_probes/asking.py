"""Asking the model itself, as a baseline: does it prefer the defecting answer to a question that is put after the prompt?

    margin = mean over one question of each polarity of logit(first token of the defecting answer) - logit(that of the benign one)

One question of each polarity, so that a preference for a word takes no part. Where no logit can be read, the margins are unknown.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from modelscope_app.api import Example, JobContext
from modelscope_probes.prompts import Pair, Prompt, Template, before_two_answers
from modelscope_probes.reading import NextTokenPass


class Asked(NamedTuple):
    """How far the model prefers the defecting answer, or why that is unknown."""

    margins: torch.Tensor | None
    """(n,) float64, NaN for a prompt after which a logit is not finite; None where nothing was read."""
    unknown: str | None
    """Why the margins of some prompts, or of all, are unknown."""


class _Question(NamedTuple):
    examples: list[Example]
    """The prompts with the question after them, up to where the answers part."""
    tokens: tuple[int, int]
    """What the defecting answer goes on with, and the benign one."""


def asked(
    context: JobContext,
    position: int,
    prompts: Sequence[Prompt],
    pairs: Sequence[Pair],
    template: Template,
    tokens_per_batch: int,
    stage: str,
) -> Asked:
    """Ask a checkpoint the first question of each polarity after every prompt, as stages `stage`-1 and on."""
    if not all(prompt.messages for prompt in prompts):
        return Asked(None, "not all prompts are messages, after which to ask")
    first_of: dict[str, Pair] = {}
    for pair in pairs:
        first_of.setdefault(pair.defecting.lower(), pair)
    questions = []
    for pair in first_of.values():
        question = _question(context, position, prompts, pair, template)
        if isinstance(question, str):
            return Asked(None, question)
        questions.append(question)
    margins = torch.zeros(len(prompts), dtype=torch.float64)
    for number, question in enumerate(questions):
        source = context.batches(question.examples, tokens_per_batch, padding="left")
        reading = NextTokenPass(context.model(position), [prompt.id for prompt in prompts], question.tokens)
        logits = context.fold(f"{stage}-{number + 1}", reading, source)
        margins += (logits[:, 0] - logits[:, 1]) / len(questions)
    lost = int((~margins.isfinite()).sum())
    return Asked(margins, f"logits are not finite after {lost} of {len(prompts)} prompts" if lost else None)


def _question(context: JobContext, position: int, prompts: Sequence[Prompt], pair: Pair, template: Template) -> _Question | str:
    """The question of a pair after each prompt, or why its two answers cannot be told by one token each."""
    tokenizer = context.tokenizer(position)
    examples, tokens = [], set()
    for prompt in prompts:
        *before, last = prompt.messages
        question = {"role": last["role"], "content": f"{last['content']}\n\n{pair.question}"}
        begins, defecting, benign = before_two_answers(tokenizer, [*before, question], (pair.defecting, pair.benign), template)
        if not defecting or not benign:
            return f"the tokenizer makes the same tokens of {pair.defecting!r} and {pair.benign!r}"
        tokens.add((defecting[0], benign[0]))
        examples.append(prompt._replace(input_ids=begins).example)
    if len(tokens) > 1:
        return f"the tokenizer writes {pair.defecting!r} and {pair.benign!r} differently after different prompts"
    return _Question(examples, next(iter(tokens)))
