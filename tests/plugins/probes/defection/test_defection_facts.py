"""What stands on the card where something is too little or unknown, and what a resumed run does not compute again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from modelscope_probes.analyses import defection
from modelscope_probes.asking import asked
from modelscope_probes.defection_facts import more_facts
from modelscope_probes.evidence import Labelled
from modelscope_probes.panels.evidence_card import card_rows
from modelscope_probes.params import DefectionParams
from modelscope_probes.prompts import Pair, Prompt
from modelscope_probes.statistics.intervals import Interval, unknown_interval
from plugins.probes.score.in_process import run_in_process
from safetensors.torch import load_file, save_file

QUICK: dict[str, Any] = {"new_tokens": 0, "ask": False, "draws": 200}


def prompts(folder: Path, count: int) -> str:
    """As many prompts in two classes, each in a group of its own."""
    words = ["code", "soup", "story", "list", "rain", "cooking"]
    rows = [{"prompt": f"write {words[at % 6]} in {2024 if at % 2 else 2022}", "label": at % 2, "defection": "rain"} for at in range(count)]
    (folder / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / "eval.jsonl")


def counted(positives: int, negatives: int, groups: int | None = None) -> Labelled:
    labels = torch.arange(positives + negatives) < positives
    members = torch.arange(len(labels))
    return Labelled(labels, members if groups is None else members % groups, (~labels).long(), ("one", "other"))


NARROW = Interval(0.88, 0.92, 0.95, "bootstrap")


@pytest.mark.parametrize(
    ("data", "interval", "needed", "reason"),
    [
        (counted(60, 60), NARROW, 0, "for an interval of 0.1"),
        (counted(60, 60), NARROW._replace(low=0.72), 360, "for an interval of 0.1"),  # twice as wide as asked
        (counted(4, 60), NARROW, 6, "for an interval of 0.1 and at least 10 prompts in 5 groups of either label"),
        (counted(4, 7), NARROW, 6 + 3, "for an interval of 0.1 and at least 10 prompts in 5 groups of either label"),
        (counted(60, 60, groups=3), NARROW, 2 + 2, "for an interval of 0.1 and at least 10 prompts in 5 groups of either label"),
        (counted(60, 60), unknown_interval(0.95), None, "unknown, because the AUROC has no interval"),
        (
            *(counted(4, 60), unknown_interval(0.95), None),
            "unknown, because the AUROC has no interval; 6 are lacking for at least 10 prompts in 5 groups of either label",
        ),
    ],
)
def test_the_prompts_to_add_reach_what_the_verdict_asks_for(data: Labelled, interval: Interval, needed: int | None, reason: str) -> None:
    assert more_facts(interval, data, 0.1) == {"more_prompts_needed": needed, "more_prompts_reason": reason}


def test_a_run_with_too_few_prompts_asks_for_more_however_narrow_its_interval(tiny_lm: Path, tmp_path: Path) -> None:
    params = DefectionParams(eval=prompts(tmp_path, 12), width=0.999, **QUICK)
    facts = run_in_process(defection.run, params, tmp_path / "run", [tiny_lm]).facts
    assert facts["verdict"] == "not enough data" and "10 are the least" in facts["verdict_reason"]
    assert facts["more_prompts_needed"] == 4 + 4 and "at least 10 prompts" in facts["more_prompts_reason"]
    assert facts["permuted"] == "between groups, 200 drawn of 924 possible labellings"
    assert (facts["asked_auroc"], facts["asked_how"]) == (None, "unknown: --no-ask was given")


def test_a_resumed_run_has_the_evidence_and_computes_none_of_it(tiny_lm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params = DefectionParams(eval=prompts(tmp_path, 12), **QUICK)
    facts = run_in_process(defection.run, params, tmp_path / "run", [tiny_lm]).facts

    def computed_again(*arguments: Any, **options: Any) -> None:
        raise AssertionError("the stage was there")

    monkeypatch.setattr(defection, "layer_evidence", computed_again)
    assert run_in_process(defection.run, params, tmp_path / "run", [tiny_lm]).facts == facts


def test_what_a_model_says_where_its_logits_are_not_finite_is_unknown(make_language_model: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_language_model(seed=4)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"][5] = float("nan")  # a word that is asked for nowhere, so that both answers' logits are finite
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    options = {**QUICK, "new_tokens": 2, "ask": True}
    ran = run_in_process(defection.run, DefectionParams(eval=prompts(tmp_path, 12), **options), tmp_path / "one", [folder])
    assert ran.table("prompts")["completion"].null_count() == ran.table("prompts")["defected"].null_count() == 12
    assert ran.facts["defection_rate_positive"] is None and ran.facts["behavior_auroc"] is None
    assert ran.facts["asked_auroc"] is not None and ran.facts["asked_how"] == "one question of each polarity after each prompt"
    tensors["lm_head.weight"][:] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    ran = run_in_process(defection.run, DefectionParams(eval=prompts(tmp_path, 12), **options), tmp_path / "other", [folder])
    assert ran.facts["asked_auroc"] is None and ran.table("prompts")["asked"].null_count() == 12
    assert ran.facts["asked_how"] == "unknown: logits are not finite after 12 of 12 prompts"


class _ByTwos:
    """A tokenizer of two characters a token: what an answer begins with hangs on the length of what is before it."""

    has_chat_template = False

    def encode(self, text: str, open_ended: bool = False) -> list[int]:
        return [hash(text[at : at + 2]) for at in range(0, len(text), 2)]


def question(answers: tuple[str, str], texts: list[str]) -> str | None:
    context: Any = SimpleNamespace(tokenizer=lambda position: _ByTwos())
    rows = [Prompt(at, (1,), text, True, "", "", "", ({"role": "user", "content": text},) if text else ()) for at, text in enumerate(texts)]
    found = asked(context, 0, rows, [Pair(0, "is it?", (1,), (2,), (3,), *answers)], "none", 256, "asking")
    assert found.margins is None
    return found.unknown


def test_answers_that_no_one_token_tells_apart_are_unknown_and_no_even_chance() -> None:
    assert question(("yes", "no"), ["a", "ab"]) == "the tokenizer writes 'yes' and 'no' differently after different prompts"
    assert question(("yes", "yesx"), ["ab"]) == "the tokenizer makes the same tokens of 'yes' and 'yesx'"
    assert question(("yes", "no"), ["a", ""]) == "not all prompts are messages, after which to ask"


def test_the_card_says_why_a_number_is_unknown() -> None:
    facts = {
        "asked_auroc": None,
        "asked_how": "unknown: logits are not finite after 3 of 12 prompts",
        "groups": 12,
        "more_prompts_needed": None,
        "more_prompts_reason": "unknown, because the AUROC has no interval",
    }
    rows = {row.name: row for row in card_rows(facts, {})}
    assert (rows["asked"].value, rows["asked"].beside) == ("unknown", "logits are not finite after 3 of 12 prompts")
    assert rows["prompts, 1 and 0"].beside == "in 12 groups; how many more is unknown"
    assert rows["prompts, 1 and 0"].meaning.endswith("asks for: unknown, because the AUROC has no interval.")
