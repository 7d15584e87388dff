"""The list of runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tui.recording_host import hosted, press

from modelscope_app.runs.index import runs_dir
from modelscope_app.tui.messages import RunOpened, RunsCompared
from modelscope_app.tui.run_list import MOST_RUNS, RunList

CREATED = 1767323045.0
HOSTILE = "e\x1b[31m\x07\u202e[bold]x[/nothing]"


def run_list(checkpoint: str | None = None, seconds_later: float = 150) -> RunList:
    return RunList(checkpoint, clock=lambda: CREATED + seconds_later)


@pytest.fixture
def run(made_run):
    """Makes a run in the data folder: `run("a", state="failed")`."""

    def make(id: str, created: str | None = None, **options):
        made = made_run(id=id, folder=runs_dir() / id, **options)
        if created is not None:
            job = json.loads((made.folder / "job.json").read_text())
            (made.folder / "job.json").write_text(json.dumps({**job, "created": created}))
        return made

    return make


async def test_a_run_says_state_age_analysis_checkpoint_and_first_facts(run) -> None:
    facts = {
        "tensors": 272,
        "all_finite": True,
        "unknown_one": None,
        "auc": {"value": 0.91, "ci_low": 0.87, "ci_high": 0.94},
        "x": "l" * 99,
    }
    run("a", facts=facts)
    async with hosted(run_list()) as (app, _):
        for expected in ("1 run", "+ done", "2 min", "weights.stats", "tiny", "tensors 272, all finite yes, auc 0.91 [0.87, 0.94]"):
            assert expected in app.text()


@pytest.mark.parametrize(
    ("state", "sign"),
    [("failed", "! failed"), ("cancelled", "- cancelled"), ("lost", "? lost"), ("waiting", "~ waiting"), ("queued", "· queued")],
)
async def test_each_state_has_a_word_and_a_sign_and_the_error_is_said(state: str, sign: str, run) -> None:
    run("a", state=state, error=f"because {HOSTILE}")
    async with hosted(run_list()) as (app, _):
        assert sign in app.text()
        assert "because e\\x1b[31m\\x07\\u202e[bold]x[/nothing]" in app.text()


async def test_enter_opens_a_run_and_c_knows_its_command(run) -> None:
    made = run("a")
    async with hosted(run_list()) as (app, pilot):
        await press(pilot, "tab", "enter")
        assert [message.folder for message in app.all_sent(RunOpened)] == [made.folder]
        assert app.query_one(RunList).headless_command() == f"mscope runs show {made.folder}"
        assert app.query_one(RunList).copied().text == str(made.folder)


async def test_only_runs_on_the_checkpoint_are_listed(run) -> None:
    run("a", checkpoint="/models/one")
    run("b", checkpoint="/models/two")
    async with hosted(run_list("/models/two")) as (app, pilot):
        assert "1 run on this checkpoint" in app.text()
        await press(pilot, "tab", "enter")
        assert [message.folder.name for message in app.all_sent(RunOpened)] == ["b"]


async def test_two_marked_runs_are_compared_in_the_order_of_marking(run) -> None:
    for hour, id in enumerate(("a", "b", "c")):
        run(id, created=f"2026-01-02T0{hour}:00:00+00:00")
    async with hosted(run_list()) as (app, pilot):
        await press(pilot, "tab", "d")
        assert not app.all_sent(RunsCompared)
        await press(pilot, "space", "down", "down", "space")
        assert app.text().count("* +") == 2
        await press(pilot, "d")
        await press(pilot, "up", "space", "d")  # the first mark goes
        assert [(sent.left.name, sent.right.name) for sent in app.all_sent(RunsCompared)] == [("c", "a"), ("a", "b")]


async def test_one_mark_and_the_cursor_are_two_runs(run) -> None:
    run("a", created="2026-01-02T01:00:00+00:00")
    run("b", created="2026-01-02T02:00:00+00:00")
    async with hosted(run_list()) as (app, pilot):
        await press(pilot, "tab", "space", "down", "d")
        assert [(sent.left.name, sent.right.name) for sent in app.all_sent(RunsCompared)] == [("b", "a")]


async def test_the_cursor_stays_on_its_run_when_others_come(run) -> None:
    run("a", created="2026-01-02T01:00:00+00:00")
    run("b", created="2026-01-02T02:00:00+00:00")
    async with hosted(run_list()) as (app, pilot):
        await press(pilot, "tab", "down", "space")
        run("c", created="2026-01-02T03:00:00+00:00")
        app.query_one(RunList).refresh_runs()
        await press(pilot, "enter")
        assert [message.folder.name for message in app.all_sent(RunOpened)] == ["a"]
        assert "* +" in app.text()


async def test_a_run_that_ends_changes_its_line_and_nothing_else(run) -> None:
    made = run("a", state="waiting")
    async with hosted(run_list()) as (app, pilot):
        assert "~ waiting" in app.text()
        status = json.loads((made.folder / "status.json").read_text())
        (made.folder / "status.json").write_text(json.dumps({**status, "state": "done"}))
        app.query_one(RunList).refresh_runs()
        await press(pilot)
        assert "+ done" in app.text()


async def test_no_runs_say_what_to_do() -> None:
    async with hosted(run_list()) as (app, pilot):
        assert "No runs yet. Choose an analysis" in app.text()
        await press(pilot, "tab", "enter", "space", "d")


async def test_unreadable_runs_are_lines_with_the_reason_and_do_not_open(run) -> None:
    made = run("a")
    (made.folder / "status.json").write_text("{")
    (runs_dir() / "broken").mkdir()
    (runs_dir() / "broken" / "job.json").write_text(HOSTILE)
    async with hosted(run_list(), size=(160, 24)) as (app, pilot):
        assert app.text().count("? unreadable") == 2
        assert "not readable as JSON" in app.text()
        await press(pilot, "tab", "enter", "space", "down", "enter")
        assert not app.all_sent(RunOpened)
        assert "\x1b" not in app.text()


@pytest.mark.parametrize("size", [(24, 8), (80, 24)])
async def test_hostile_and_long_names_stay_in_their_lines(size: tuple[int, int], run) -> None:
    run("a", checkpoint="/models/" + HOSTILE * 300, analysis=HOSTILE, facts={HOSTILE: HOSTILE})
    async with hosted(run_list(), size=size) as (app, _):
        assert not any(sign in app.text() for sign in ("\x1b", "\x07", "\u202e"))
        assert len([line for line in app.lines() if line.strip()]) <= 3


async def test_the_newest_of_very_many_runs_are_listed(run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MOST_RUNS == 500
    monkeypatch.setattr("modelscope_app.tui.run_list.MOST_RUNS", 3)
    for hour in range(5):
        run(f"r{hour}", created=f"2026-01-02T0{hour}:00:00+00:00")
    async with hosted(run_list()) as (app, pilot):
        assert "5 runs, the newest 3 shown" in app.text()
        await press(pilot, "tab", "enter")
        assert [message.folder.name for message in app.all_sent(RunOpened)] == ["r4"]


async def test_a_place_that_cannot_be_looked_into_is_said(own_folders: Path) -> None:
    runs_dir().parent.mkdir(parents=True)
    (own_folders / "state").mkdir()
    (own_folders / "state" / "runs.txt").mkdir()
    async with hosted(run_list(), size=(200, 24)) as (app, _):
        assert "are not listed" in app.text()
