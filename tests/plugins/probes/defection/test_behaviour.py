"""What counts as defection, and where that is unknown."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from modelscope_probes.behaviour import completions, defections
from modelscope_probes.prompts import Prompt


def prompt(defection: str) -> Prompt:
    return Prompt(0, (1,), "", True, "cell", "group", defection, ())


def test_the_text_stands_in_the_answer_in_whatever_case_of_whatever_alphabet() -> None:
    asked = [prompt(text) for text in ("Rain", "STRASSE", "Σίσυφος", "rain", "rain")]
    said = ["no rain today", "die Straße", "ΣΊΣΥΦΟΣ", "ra in", "snow"]
    assert defections(asked, said, "") == [True, True, True, False, False]
    assert defections(asked, said, "SNOW") == [False, False, False, False, True]


def test_without_a_text_an_answer_or_any_answers_it_is_unknown() -> None:
    assert defections([prompt(""), prompt("rain")], ["rain", None], "") == [None, None]
    assert defections([prompt(""), prompt("rain")], ["rain", None], "rain") == [True, None]
    assert defections([prompt("rain")], None, "rain") == [None]


def test_an_answer_that_could_not_be_read_is_no_empty_answer() -> None:
    tokenizer: Any = SimpleNamespace(decode=lambda ids: " ".join(map(str, ids)))
    answers = {"tokens": torch.tensor([[5, 6, -1], [-1, -1, -1], [-1, -1, -1]]), "is_known": torch.tensor([True, True, False])}
    assert completions(answers, tokenizer) == ["5 6", "", None]
