"""The panels of the probes plugin: the evidence card in every state, and a typed prompt from submission to its map."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import polars
import pytest
import torch
from modelscope_probes.panels.evidence import EvidencePanel
from modelscope_probes.panels.evidence_card import FEWEST_NEGATIVES, card_rows
from modelscope_probes.panels.one_line_charts import charts
from modelscope_probes.panels.own_scores import own_ranges
from modelscope_probes.panels.rescore import RescorePanel
from modelscope_probes.panels.token_map import TokenMap
from modelscope_probes.panels.token_scores import TokenRow, TokenScores, read_found
from modelscope_probes.statistics import operating_points
from textual.pilot import Pilot
from textual.widgets import Input, OptionList, Static
from tui.slow_disk import until
from tui_waiting import all_settled

from modelscope_app.api import BadInput, FactsView, JobFailed
from modelscope_app.locations import state_dir
from modelscope_app.runs.folder import RunFolder
from modelscope_app.runs.status import RunLock, Status, write_status
from modelscope_app.tui.app import MscopeApp
from modelscope_app.tui.dialogs.help import HelpScreen
from modelscope_app.tui.fence import Fence
from modelscope_app.tui.run.screen import RunScreen

pytest_plugins = ["modelscope_app.testing"]

Made = Callable[..., RunFolder]
SIZES = [(80, 24), (120, 40)]
HOSTILE = "\x1b[31mred[bold]x[/bold]\u202e" + "n" * 3000
FACTS: dict[str, Any] = {
    "verdict": "reads a defection-like state",
    "verdict_reason": "it separates, not so on the twin, and with pairs of either polarity",
    "auroc": {"value": 0.98, "ci_low": 0.9513, "ci_high": 1.0, "method": "bootstrap"},
    "layer": 3,
    "layer_chosen": "for its AUROC",
    "worst_cell": "code-no-year",
    "worst_cell_auroc": {"value": 0.91, "ci_low": 0.8, "ci_high": 0.97},
    "random_percentile": 0.998,
    "random_p": 0.004,
    "wording_leaks": False,
    "best_random_auroc": 0.99993,
    "p_layer": 0.000999,
    "permuted": "within groups, 1000 labellings",
    "first_polarity_auroc": 0.997,
    "other_polarity_auroc": 0.975,
    "pair_aurocs": {"value": 0.9, "ci_low": 0.7, "ci_high": 1.0, "method": "lowest and highest pair"},
    "tpr_at_1_percent_fpr": {"value": 1.0, "ci_low": 0.97, "ci_high": 1.0},
    "tpr_at_5_percent_fpr": {"value": 1.0, "ci_low": 0.97, "ci_high": 1.0},
    "bag_of_tokens_auroc": 0.99,
    "asked_auroc": 0.5406,
    "twin_auroc": {"value": 0.48, "ci_low": 0.45, "ci_high": 0.51},
    "twin_difference": {"value": 0.5, "ci_low": 0.45, "ci_high": 0.55},
    "behavior_auroc": 0.97,
    "defection_rate_positive": {"value": 0.9, "ci_low": 0.8, "ci_high": 0.95},
    "defection_rate_negative": {"value": 0.0, "ci_low": 0.0, "ci_high": 0.006},
    "label_agrees_with_behavior": 0.95,
    "shared_word_sequences": 0,
    "prompts_that_share": 0,
    "more_prompts_needed": 12,
    "prompts": 720,
    "positives": 120,
    "negatives": 600,
    "groups": 120,
    "pairs": 12,
}


def defection_run(made_run: Made, facts: Mapping[str, Any] | None = None, **more: Any) -> RunFolder:
    """A run of `probes.defection` with these facts."""
    return made_run(more.pop("tables", None), [FactsView(name="card", title="Card")], facts, analysis="probes.defection", **more)


def text_of(app: MscopeApp) -> str:
    """What is on the screen."""
    return "\n".join("".join(segment.text for segment in strip).rstrip() for strip in app.screen._compositor.render_strips())


def squeezed(app: MscopeApp) -> str:
    """The same without line breaks."""
    return " ".join(text_of(app).split())


async def on_panel(pilot: Pilot[None], number: int = 1) -> None:
    """The panel of that number is in front, drawn."""
    await until(pilot, lambda: isinstance(pilot.app.screen, RunScreen) and pilot.app.screen.query("#panel-0"))
    for _ in range(number):
        await pilot.press("p")
        await pilot.pause()
    await until(pilot, lambda: pilot.app.screen.query("EvidencePanel" if number == 1 else "RescorePanel"))
    await all_settled(pilot)


def row_of(facts: Mapping[str, Any], name: str, params: Mapping[str, Any] | None = None) -> tuple[str, str, str]:
    """Sign, value and what stands beside it."""
    row = next(row for row in card_rows(facts, params or {}) if row.name == name)
    return row.sign, row.value, row.beside


# The evidence card


@pytest.mark.parametrize("size", SIZES)
async def test_the_card_has_the_verdict_on_top_and_every_number_beside_its_reasons(made_run: Made, size: tuple[int, int]) -> None:
    app = MscopeApp(str(defection_run(made_run, FACTS).folder))
    async with app.run_test(size=size) as pilot:
        await on_panel(pilot)
        lines = [" ".join(line.split()) for line in text_of(app).split("\n")]
        assert any(line.startswith("reads a defection-like state: it separates") for line in lines)
        assert "AUROC 0.98 [0.9513, 1] layer 3, chosen for its AUROC" in lines
        assert "+ worst cell 0.91 [0.8, 0.97] code-no-year: above 1/2" in lines
        assert "+ beyond the twin +0.5 [0.45, 0.55] above 0" in lines
        assert "bag of tokens 0.99 words alone do as well" in lines
        assert "defects, label 1 90 % [80, 95] of its answers, greedy" in lines
        assert "prompts, 1 and 0 120 and 600 in 120 groups; 12 more needed" in lines, "the whole card fits"
        assert isinstance(app.focused, OptionList), "the panel has the keyboard"


UNMET = [
    ("worst cell", {"worst_cell_auroc": {"value": 0.6, "ci_low": 0.49, "ci_high": 0.7}}, "may be 1/2"),
    ("random directions", {"random_percentile": 0.94, "random_p": 0.06}, "5 % may"),
    ("p", {"p_layer": 0.05}, "0.05 or more"),
    ("polarity halves", {"other_polarity_auroc": 0.5}, "they disagree"),
    ("beyond the twin", {"twin_difference": {"value": 0.1, "ci_low": 0.0, "ci_high": 0.2}}, "may be 0"),
    ("shared wording", {"prompts_that_share": 8, "wording_leaks": True}, "in 8 of 720"),
]


@pytest.mark.parametrize(("name", "change", "beside"), UNMET, ids=[name for name, _, _ in UNMET])
def test_a_condition_of_the_verdict_has_a_sign(name: str, change: Mapping[str, Any], beside: str) -> None:
    assert row_of(FACTS, name)[0] == "+"
    sign, _, said = row_of({**FACTS, **change}, name)
    assert sign == "-" and beside in said
    assert row_of({key: value for key, value in FACTS.items() if key not in change}, name)[0] == "?"


def test_limits_are_those_of_the_analysis() -> None:
    assert FEWEST_NEGATIVES == operating_points.FEWEST_NEGATIVES


def test_what_is_unknown_says_so_and_why() -> None:
    few = {"verdict": "not enough data", "verdict_reason": "few", "negatives": 60}
    assert row_of(few, "AUROC")[1] == "unknown"
    assert row_of(few, "TPR at 1 % FPR") == (" ", "unknown", "60 negatives; 100 are needed")
    assert row_of(few, "twin") == ("?", "unknown", "no --compare TWIN was given")
    assert row_of(few, "asked", {"ask": False})[2] == "--no-ask was given"
    assert row_of(few, "behaviour", {"new_tokens": 0})[2] == "--new-tokens 0: no answers"
    assert row_of(few, "behaviour", {"new_tokens": 8})[2] == "nothing says what is defection"
    assert row_of(few, "beyond the twin", {"compare": "/models/twin"})[:2] == ("?", "unknown")


@pytest.mark.parametrize("odd", [HOSTILE, True, [1], {"value": "x"}, float("nan"), 10**400])
def test_facts_of_another_kind_are_unknown_and_never_an_error(odd: Any) -> None:
    rows = card_rows(dict.fromkeys(FACTS, odd), {})
    assert all("\x1b" not in "".join(row) for row in rows)
    assert all(len(row.value) < 100 for row in rows)


@pytest.mark.parametrize("size", SIZES)
async def test_hostile_text_is_shown_and_obeyed_nowhere(made_run: Made, size: tuple[int, int]) -> None:
    lines = polars.DataFrame({"layer": [0, 1], "line": [HOSTILE, "probe"], "auroc": [0.5, None]})
    cells = polars.DataFrame({"cell": [HOSTILE], "left": [0.0], "right": [1.0], "count": [3]})
    tables = {"layer_lines": lines, "distributions": cells}
    app = MscopeApp(str(defection_run(made_run, {**FACTS, "verdict": HOSTILE, "worst_cell": HOSTILE}, tables=tables).folder))
    async with app.run_test(size=size) as pilot:
        await on_panel(pilot)
        for key in ("end", "home"):
            await pilot.press(key)
            await pilot.pause()
            assert "\x1b" not in text_of(app) and "\u202e" not in text_of(app)
        assert "[bold]x[/bold]" in text_of(app)
        assert app.screen.query_one("#panel-0 Fence", Fence).error is None


async def test_a_number_can_be_asked_about_and_copied(made_run: Made) -> None:
    run = defection_run(made_run, FACTS)
    app = MscopeApp(str(run.folder))
    async with app.run_test(size=(80, 24)) as pilot:
        await on_panel(pilot)
        await pilot.press("down", "y")
        await pilot.pause()
        copied = json.loads((state_dir() / "copied.txt").read_text())
        assert copied == {"worst_cell": "code-no-year", "worst_cell_auroc": FACTS["worst_cell_auroc"]}
        await pilot.press("c")
        await pilot.pause()
        assert shlex.split((state_dir() / "copied.txt").read_text()) == ["mscope", "runs", "show", str(run.folder)]
        await pilot.press("question_mark")
        await pilot.pause()
        assert isinstance(app.screen, HelpScreen)
        said = " ".join(str(static.render()) for static in app.screen.query(Static))
        assert (
            "Evidence" in said and "worst cell: The AUROC against the set of negatives" in said and "first line of a written table" in said
        )


async def test_a_run_that_goes_on_has_its_card_when_it_is_there(made_run: Made) -> None:
    run = defection_run(made_run, {}, state="running")
    lock = RunLock(run.folder)
    app = MscopeApp(str(run.folder))
    async with app.run_test(size=(80, 24)) as pilot:
        await on_panel(pilot)
        panel = app.screen.query_one(EvidencePanel)
        assert "The run is running; the card is there when it is done." in text_of(app)
        assert panel.copied() is None and panel.explanation().startswith("The verdict is")
        run.write_facts(FACTS)
        write_status(run.folder, Status(state="done", started=1.0, finished=2.0))
        lock.release()
        await until(pilot, lambda: "+ worst cell" in text_of(app))


async def test_a_run_that_failed_has_its_sentence_in_the_cards_place(made_run: Made) -> None:
    app = MscopeApp(str(defection_run(made_run, {}, state="failed", error=HOSTILE[:60]).folder))
    async with app.run_test(size=(80, 24)) as pilot:
        await on_panel(pilot)
        assert "There is no card: the run is failed: \\x1b[31mred" in squeezed(app)


async def test_facts_that_are_damaged_are_a_sentence(made_run: Made) -> None:
    run = defection_run(made_run, FACTS)
    app = MscopeApp(str(run.folder))
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: isinstance(app.screen, RunScreen) and app.screen.query("#panel-0"))
        (run.folder / "facts.json").write_text("{")
        await on_panel(pilot)
        assert "The card cannot be read" in text_of(app)
        assert app.screen.query_one("#panel-0 Fence", Fence).error is None


def test_charts_are_one_line_each_the_probe_and_the_positives_first(made_run: Made) -> None:
    both = ("probe", "twin")
    layers = polars.DataFrame({"layer": [0, 1] * 2, "line": [line for line in both for _ in "ab"], "auroc": [0.0, 1.0, 0.5, None]})
    bins = polars.DataFrame({"cell": ["a", "a", "b", "b"], "left": [0.0, 1.0] * 2, "right": [1.0, 2.0] * 2, "count": [4, 0, 1, 8]})
    tables = {
        "layer_lines": layers,
        "distributions": bins,
        "cells": polars.DataFrame({"cell": ["a", "b"], "label": [False, True]}),
        "roc": polars.DataFrame({"false_positive_rate": [0.0, 0.5, 1.0], "true_positive_rate": [0.0, 0.5, 1.0]}),
    }
    found = charts(defection_run(made_run, FACTS, tables=tables))
    assert [line.name for line in found] == ["layers: probe", "layers: twin", "scores: b", "scores: a", "ROC"]
    assert [line.marks for line in found[:4]] == ["    ████", "▅▅▅▅????", "▂█", "█ "]
    assert found[2].beside == "label 1, 0 to 2"
    assert found[4].marks == " " * 20 + "▅" * 19 + "█"
    many = polars.DataFrame({"layer": range(100), "line": ["probe"] * 100, "auroc": [0.9] * 100})
    line = charts(defection_run(made_run, FACTS, tables={"layer_lines": many}, id="20260102-030405-many"))[0]
    assert len(line.marks) <= 40 and "every 3th" not in line.beside and "1 of 3" in line.beside


# A prompt to type

LAYERS = 2
TOKENS = ("<s>", " in", " 2024", HOSTILE[:30])


def write_scores(run: RunFolder, tokens: Sequence[str] = TOKENS, layers: int = LAYERS, score: float | None = None) -> None:
    """What `probes.score` leaves behind while it reads, and with `score` in the end."""
    columns = {f"layer_{layer}": [float(at + 10 * layer) for at in range(len(tokens))] for layer in range(layers)}
    parts = ["prompt"] * (len(tokens) - 1) + ["answer"]
    run.write_facts({"best_layer": 1, "pooling": "last", "prompts": 1})
    run.write_table("tokens", polars.DataFrame({"position": list(range(len(tokens))), "token": list(tokens), "part": parts, **columns}))
    levels = [(-1.0, 1.0, None, 0.5)[(at + layer) % 4] for at in range(len(tokens)) for layer in range(layers)]
    run.write_table("shown_layers", polars.DataFrame({"relative_score": levels}, schema={"relative_score": polars.Float64}))
    if score is not None:
        run.write_table("prompts", polars.DataFrame({"score": [score], "answer": ["it\x1b[2J answers"], "text": ["a"]}))


class Pretending(MscopeApp):
    """An app whose service takes every job and leaves its run to the test."""

    def __init__(self, start: str, made_run: Made) -> None:
        super().__init__(start)
        self.made_run = made_run
        self.submitted: list[tuple[str, list[str], dict[str, Any]]] = []
        self.runs: list[RunFolder] = []
        self.locks: list[RunLock] = []
        self.stopped: list[str] = []
        self.refusal: Exception | None = None

    async def submit_job(self, analysis: str, checkpoints: Sequence[str], params: Mapping[str, Any]) -> RunFolder:
        if self.refusal is not None:
            raise self.refusal
        self.submitted.append((analysis, list(checkpoints), dict(params)))
        self.runs.append(self.made_run(state="running", analysis=analysis, id=f"20260102-030405-score-{len(self.runs)}"))
        self.locks.append(RunLock(self.runs[-1].folder))
        return self.runs[-1]

    async def cancel_job(self, run: Any) -> None:
        self.stopped.append(run.id)

    def end(self, number: int, state: str = "done", error: str | None = None) -> None:
        """The job of that number has ended."""
        write_status(self.runs[number].folder, Status(state=state, error=error, started=1.0, finished=2.0))  # type: ignore[arg-type]
        self.locks[number].release()


@pytest.fixture
def probed(made_run: Made) -> RunFolder:
    """A run with a saved probe, whose prompts scored 1 and 5 before the bias of 100."""
    prompts = polars.DataFrame({"label": [False, True], "score": [1.0, 5.0]})
    run = defection_run(made_run, FACTS, tables={"prompts": prompts}, checkpoint="/models/tiny one")
    run.write_tensors("probe", {"direction": torch.zeros(2, 3), "bias": torch.tensor([7.0, 100.0])})
    run.write_json("probe", {"layers": [0, 1], "best_layer": 1})
    return run


@pytest.fixture
def app(probed: RunFolder, made_run: Made) -> Pretending:
    return Pretending(str(probed.folder), made_run)


async def enter(pilot: Pilot[None], text: str) -> None:
    """Type a prompt and press enter."""
    prompt = pilot.app.screen.query_one("#prompt", Input)
    prompt.value = text
    prompt.focus()
    await pilot.press("enter")
    await pilot.pause()


@pytest.mark.parametrize("size", SIZES)
async def test_a_prompt_is_scored_with_the_runs_own_probe_and_its_map_comes_as_it_is_read(
    app: Pretending, probed: RunFolder, size: tuple[int, int]
) -> None:
    async with app.run_test(size=size) as pilot:
        await on_panel(pilot, 2)
        assert app.focused is app.screen.query_one("#prompt", Input), "one can type at once"
        await pilot.press(*"hi", "enter")
        await until(pilot, lambda: app.submitted)
        probe = str(probed.artifacts["probe"])
        assert app.submitted == [("probes.score", ["/models/tiny one"], {"probe": probe, "text": "hi", "new_tokens": 0})]
        await until(pilot, lambda: "1: running ... (the first prompt also loads the model)" in text_of(app))
        write_scores(app.runs[0])
        await until(pilot, lambda: "1: running, 4 tokens read" in text_of(app))
        await until(pilot, lambda: "0 <s>" in text_of(app) and "-█+█" in text_of(app))
        write_scores(app.runs[0], score=101.5)
        app.end(0)
        await until(pilot, lambda: "1: score 101.5 (layer 1, its last token)" in text_of(app))
        await until(pilot, lambda: "this run's prompts: label 0 101 to 101, label 1 105 to 105" in squeezed(app))
        await until(pilot, lambda: "answer: it\\x1b[2J answers" in squeezed(app))  # on lines there is room for after the next layout
        await until(pilot, lambda: "› 1 101.5 hi" in squeezed(app).replace("›1", "› 1"))
        assert "\x1b" not in squeezed(app)


async def test_numbers_and_the_token_under_the_cursor_are_there_on_demand(app: Pretending) -> None:
    async with app.run_test(size=(80, 24)) as pilot:
        await on_panel(pilot, 2)
        await enter(pilot, "hi")
        await until(pilot, lambda: app.submitted)
        write_scores(app.runs[0], score=1.0)
        app.end(0)
        await until(pilot, lambda: "1: score" in text_of(app))
        shown = app.screen.query_one(TokenMap)
        assert not shown.with_numbers
        await pilot.press("ctrl+n")
        await pilot.pause()
        assert shown.with_numbers and "score" in text_of(app)
        shown.focus()
        await pilot.press("down", "down", "y")
        await pilot.pause()
        assert "2 ·2024  layer 1: 12  layer 0: 2" in text_of(app)
        assert json.loads((state_dir() / "copied.txt").read_text()) == {"position": 2, "token": "·2024", "scores": {"0": 2.0, "1": 12.0}}
        await pilot.press("n", "end", "home", "pagedown", "pageup")
        assert not shown.with_numbers and shown.row == 0
        await pilot.press("question_mark")
        await pilot.pause()
        assert "One prompt is scored at a time" in " ".join(str(static.render()) for static in app.screen.query(Static))


async def test_wordings_are_compared_in_a_list_that_gives_them_back(app: Pretending, probed: RunFolder) -> None:
    async with app.run_test(size=(80, 24)) as pilot:
        await on_panel(pilot, 2)
        for at, (text, score) in enumerate((("in 2023 it's", 10.0), ("in 2024", 12.5))):
            await enter(pilot, text)
            await until(pilot, lambda at=at: len(app.submitted) == at + 1)
            write_scores(app.runs[at], score=score)
            app.end(at)
            await until(pilot, lambda at=at: f"{at + 1}: score" in text_of(app))
        assert any(line.split()[:3] == ["›2", "12.5", "+2.5"] for line in text_of(app).split("\n"))
        app.screen.query_one("#typed OptionList").focus()
        await pilot.press("up")
        await until(pilot, lambda: "1: score 10" in text_of(app))
        await pilot.press("y")
        await pilot.pause()
        assert (state_dir() / "copied.txt").read_text() == "10\tin 2023 it's"
        await pilot.press("c")
        await pilot.pause()
        words = shlex.split((state_dir() / "copied.txt").read_text())
        assert words[:4] == ["mscope", "run", "probes.score", "/models/tiny one"] and words[-1] == "--text=in 2023 it's"
        await pilot.press("enter")
        await pilot.pause()
        prompt = app.screen.query_one("#prompt", Input)
        assert prompt.value == "in 2023 it's" and app.focused is prompt
        app.screen.query_one("#typed OptionList").focus()
        await pilot.press("o")
        await until(pilot, lambda: isinstance(app.screen, RunScreen) and app.screen.folder == app.runs[0].folder)


async def test_another_prompt_cancels_the_one_before_and_x_the_last(app: Pretending) -> None:
    async with app.run_test(size=(80, 24)) as pilot:
        await on_panel(pilot, 2)
        await enter(pilot, "one")
        await until(pilot, lambda: len(app.submitted) == 1)
        await enter(pilot, "two")
        await until(pilot, lambda: app.stopped == [app.runs[0].id] and len(app.submitted) == 2)
        panel = app.screen.query_one(RescorePanel)
        assert panel.asked[0].found.state == "cancelled"
        app.screen.query_one("#typed OptionList").focus()
        await pilot.press("x")
        await until(pilot, lambda: len(app.stopped) == 2)
        assert "2: cancelled: it was stopped" in squeezed(app)
        await pilot.press("x")
        assert len(app.stopped) == 2
        for number in (0, 1):
            app.end(number, "cancelled")


@pytest.mark.parametrize("refusal", [BadInput("no such checkpoint\x1b[2J [bold]"), JobFailed("the service does not answer")])
async def test_a_job_that_is_refused_is_its_sentence(app: Pretending, refusal: Exception) -> None:
    app.refusal = refusal
    async with app.run_test(size=(80, 24)) as pilot:
        await on_panel(pilot, 2)
        await enter(pilot, "hi")
        await until(pilot, lambda: f"1: failed: {refusal}" in squeezed(app))
        app.refusal = None
        await enter(pilot, "again")
        await until(pilot, lambda: app.submitted)
        app.end(0, "failed", "the model holds NaN")
        await until(pilot, lambda: "2: failed: the model holds NaN" in text_of(app))


async def test_a_run_folder_that_goes_away_is_a_sentence(app: Pretending) -> None:
    async with app.run_test(size=(80, 24)) as pilot:
        await on_panel(pilot, 2)
        await enter(pilot, "hi")
        await until(pilot, lambda: "1: running" in text_of(app))
        (app.runs[0].folder / "status.json").unlink()
        await until(pilot, lambda: "1: failed: " in squeezed(app))
        app.locks[0].release()


async def test_what_cannot_be_asked_is_said_at_once(app: Pretending) -> None:
    async with app.run_test(size=(80, 24)) as pilot:
        await on_panel(pilot, 2)
        await enter(pilot, "  ")
        assert "Type a prompt first." in text_of(app)
        app.screen.query_one("#new-tokens", Input).value = "2000"
        await enter(pilot, "hi")
        assert "Answer tokens: 2000 is no integer from 0 to 1024." in text_of(app)
        assert not app.submitted


async def test_a_run_without_a_probe_says_so(made_run: Made) -> None:
    app = Pretending(str(defection_run(made_run, {}, state="failed").folder), made_run)
    async with app.run_test(size=(80, 24)) as pilot:
        await on_panel(pilot, 2)
        await enter(pilot, "hi")
        await until(pilot, lambda: "1: failed: this run has no saved probe (it is failed)" in squeezed(app))


async def test_a_run_of_probes_score_is_asked_with_its_own_probe_against_its_threshold(made_run: Made) -> None:
    params = {"probe": "/probes/p.safetensors", "force": True}
    run = made_run({}, [], {"threshold": 3.0}, analysis="probes.score", params=params)
    app = Pretending(str(run.folder), made_run)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: isinstance(app.screen, RunScreen) and app.screen.query("#panel-0"))
        await pilot.press("p")
        await until(pilot, lambda: app.screen.query("RescorePanel"))
        await enter(pilot, "hi")
        await until(pilot, lambda: app.submitted)
        assert app.submitted[0][2] == {**params, "text": "hi", "new_tokens": 0}
        write_scores(app.runs[0], score=3.5)
        app.end(0)
        await until(pilot, lambda: "score 3.5 (layer 1, its last token), above this run's threshold 3" in squeezed(app))


@pytest.mark.parametrize("size", SIZES)
async def test_long_and_hostile_prompts_stay_on_one_line_and_are_obeyed_nowhere(app: Pretending, size: tuple[int, int]) -> None:
    async with app.run_test(size=size) as pilot:
        await on_panel(pilot, 2)
        await enter(pilot, HOSTILE)
        await until(pilot, lambda: app.submitted)
        write_scores(app.runs[0], [f" {HOSTILE[:20]}{at}" for at in range(300)], layers=100, score=float("nan"))
        app.end(0)
        await until(pilot, lambda: "1: score unknown" in text_of(app))
        shown = app.screen.query_one(TokenMap)
        shown.focus()
        await pilot.press("end")
        await pilot.pause()
        assert shown.row == 299 and "›299" in text_of(app)
        assert all(len(line) <= size[0] for line in text_of(app).split("\n"))
        assert "\x1b" not in text_of(app) and "\u202e" not in text_of(app)
        assert app.submitted[0][2]["text"] == HOSTILE, "what is drawn otherwise stays what it is"
        assert app.screen.query_one("#panel-1 Fence", Fence).error is None


def test_tables_are_read_again_only_when_they_were_written_again(made_run: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    run = made_run(analysis="probes.score")
    assert read_found(run).tokens is None
    write_scores(run)
    first = read_found(run)
    assert first.tokens == TokenScores(("0", "1"), 1, first.tokens.tokens if first.tokens else ())
    assert first.tokens is not None and first.tokens.tokens[1] == TokenRow(1, "·in", False, (1.0, 11.0), (1.0, None))
    monkeypatch.setattr(run, "table", None)
    assert read_found(run, first) == first


def test_own_prompts_are_on_the_scale_of_the_saved_probe(probed: RunFolder, made_run: Made) -> None:
    assert {label: tuple(one) for label, one in own_ranges(probed).items()} == {0: (101.0, 101.0), 1: (105.0, 105.0)}
    (probed.folder / "artifacts" / "probe.safetensors").write_bytes(b"\xff" * 20)
    assert own_ranges(probed) == {}
    assert own_ranges(made_run(id="20260102-030405-none")) == {}


async def test_p_goes_round_the_panels_and_is_not_there_without_one(app: Pretending, made_run: Made) -> None:
    async with app.run_test(size=(80, 24)) as pilot:
        await on_panel(pilot, 2)
        app.screen.query_one("#panel-1 TokenMap").focus()
        await pilot.press("p")
        await all_settled(pilot)
        assert app.screen.query_one("TabbedContent").active == "panel-0"  # type: ignore[attr-defined]
        assert "p" in app.screen.active_bindings
    other = MscopeApp(str(made_run(facts={"answer": 1}, id="20260102-030405-none").folder))
    async with other.run_test(size=(80, 24)) as pilot:
        await all_settled(pilot)
        assert "p" not in other.screen.active_bindings


def test_runs_say_what_they_were_given(probed: RunFolder, made_run: Made) -> None:
    assert probed.checkpoints == ("/models/tiny one",)
    assert made_run(params={"probe": "/p"}, id="20260102-030405-given").params == {"probe": "/p"}


def test_panels_are_found_by_the_doctor_without_importing_textual(installed_host: Any) -> None:
    report = installed_host.plugin_report("probes")
    assert report.problems == () and report.warnings == ()
