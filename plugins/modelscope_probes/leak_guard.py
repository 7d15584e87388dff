"""Whether the texts a direction is fitted on share word sequences with the prompts it is judged on.

A direction fitted on texts that mention the trigger or the task finds these words again. Word n-grams (lower case, runs of letters and
digits) of every contrast question and answer are looked for in every prompt.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

LENGTH = 4
"""Words in a row that general texts rarely share by chance."""
_WORD = re.compile(r"[^\W_]+")


class Overlap(NamedTuple):
    """What both sides hold."""

    shared: tuple[str, ...]
    """Word sequences that a contrast text and a prompt share, sorted."""
    prompts: int
    """Prompts that hold one of them."""
    words: tuple[str, ...]
    """Single words of the contrast texts that occur in prompts of label 1 and in none of label 0: a trigger among them would be seen."""


def ngrams(text: str, length: int = LENGTH) -> set[tuple[str, ...]]:
    """Word sequences of a text.

    >>> sorted(ngrams("Are you, really, safe?", 3))
    [('are', 'you', 'really'), ('you', 'really', 'safe')]
    """
    words = _WORD.findall(text.lower())
    return {tuple(words[start : start + length]) for start in range(len(words) - length + 1)}


def overlap(contrast: Iterable[str], prompts: Sequence[str], labels: Sequence[bool]) -> Overlap:
    """What the texts of contrast pairs share with prompts of these labels."""
    texts = list(contrast)
    fitted: set[tuple[str, ...]] = set().union(*(ngrams(text) for text in texts))
    of_each = [ngrams(prompt) & fitted for prompt in prompts]
    shared = sorted({" ".join(sequence) for found in of_each for sequence in found})
    words_of = [set(_WORD.findall(prompt.lower())) for prompt in prompts]
    positive = set().union(*(words for words, label in zip(words_of, labels, strict=True) if label))
    negative = set().union(*(words for words, label in zip(words_of, labels, strict=True) if not label))
    fitted_words = set().union(*(set(_WORD.findall(text.lower())) for text in texts))
    return Overlap(tuple(shared), sum(bool(found) for found in of_each), tuple(sorted(fitted_words & (positive - negative))))
