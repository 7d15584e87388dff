"""Whether the texts a direction is fitted on share word sequences with the prompts it is judged on.

A direction fitted on texts that mention the trigger or the task finds these words again. Word n-grams (lower case, runs of letters and
digits, characters of scripts without spaces) of every contrast question and answer are looked for in every prompt, system messages and
earlier turns too. A trigger may be shorter: a word of the contrast texts that is in no prompt of label 0 and in more than half of those of
label 1 counts as well.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

LENGTH = 4
"""Words in a row that general texts rarely share by chance."""
_UNSPACED = "\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")


class Overlap(NamedTuple):
    """What both sides hold."""

    shared: tuple[str, ...]
    """Word sequences that a contrast text and a prompt share, sorted."""
    prompts: int
    """Prompts that hold one of them."""
    words: tuple[str, ...]
    """Words of the contrast texts that are in more than half of the prompts of label 1 and in none of label 0."""


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
    counts = Counter(word for words, label in zip(words_of, labels, strict=True) if label for word in words)
    negative = set().union(*(words for words, label in zip(words_of, labels, strict=True) if not label))
    fitted_words = set().union(*(set(_WORD.findall(text.lower())) for text in texts))
    told = sorted(word for word in fitted_words - negative if counts[word] > sum(labels) / 2)
    return Overlap(tuple(shared), sum(bool(found) for found in of_each), tuple(told))
