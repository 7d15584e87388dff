"""How often the app writes to its terminal, and how much, while a job sends a thousand events a second. Each byte may go through ssh."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from raw_terminal import RawTerminal, raw_terminal
from service_process import background

from modelscope_app.checkpoints.samples import samples_folder
from modelscope_app.jobs.client import Client

FOLDER = samples_folder()
assert FOLDER is not None
SAMPLE = FOLDER / "digits-mlp"
SECONDS = 4.0
SSH = {"SSH_CONNECTION": "192.0.2.1 50000 192.0.2.2 22"}
APP = [sys.executable, "-m", "modelscope_app.cli.start", str(SAMPLE)]
WOBBLING = "from modelscope_app.tui.jobs import snapshot; snapshot._STANDS_SECONDS = 0.0; "
"""With every look at the service another rate is seen, so that there is something to draw each time."""
BUSY = [sys.executable, "-c", WOBBLING + "from modelscope_app.cli.start import main; main()", str(SAMPLE)]
FASTER = [
    *(sys.executable, "-c"),
    WOBBLING + "import sys; from modelscope_app.tui.app import *; MscopeApp(sys.argv[1], AppSettings(updates_per_second=20)).run()",
    str(SAMPLE),
]

TALKING = """
import time
from pydantic import BaseModel
from modelscope_app.api import Analysis, Checkpoints, hookimpl
MODELSCOPE_API = (1, 1)
class Params(BaseModel):
    pass
@hookimpl
def modelscope_analyses():
    none = Checkpoints(0, 0)
    return [Analysis(name="talk", title="Talk", summary="What?", params=Params, run="talker:talk", checkpoints=none)]
def talk(context, params):
    began = time.monotonic()
    for number in range(600_000):
        context.progress(number, 600_000, "events")
        context.warn(f"event {number}")
        time.sleep(max(0.0, began + number / 1000 - time.monotonic()))
"""


@pytest.fixture
def talking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A job of the service that sends a thousand events a second."""
    site = tmp_path / "site"
    (site / "talker-1.0.dist-info").mkdir(parents=True)
    (site / "talker.py").write_text(TALKING)
    (site / "talker-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: talker\nVersion: 1.0\n")
    (site / "talker-1.0.dist-info" / "entry_points.txt").write_text("[modelscope_app]\ntalker = talker\n")
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.delenv("SSH_CONNECTION", raising=False)
    with background(site, monkeypatch), Client() as client:
        job = client.submit("talker.talk")
        next(event for event in client.events(job.run) if event["seq"] > 100)
        yield


def repaints(terminal: RawTerminal, key: bytes = b"", shown: bytes = b"") -> list[tuple[float, bytes]]:
    """What is written in some seconds, once the progress of the job is on the screen that a key leads to."""
    terminal.wait_for(b"events/s")
    if key:
        terminal.press_and_wait(key, shown)
        terminal.wait_for(b"events/s", len(terminal.written))
    return terminal.repaints(SECONDS)


def most(rate: float) -> float:
    """Repaints in `SECONDS`: as many as were promised, and one at either end."""
    return rate * SECONDS + 2


def test_through_ssh_a_job_that_talks_all_the_time_is_drawn_four_times_a_second(talking: None) -> None:
    with raw_terminal(BUSY, SSH) as terminal:
        for key, shown in ((b"", b""), (b"J", b"Devices and models")):
            found = repaints(terminal, key, shown)
            assert SECONDS < len(found) <= most(4), [(round(at, 3), len(part)) for at, part in found]
    with raw_terminal(FASTER, SSH) as terminal:
        assert len(repaints(terminal)) > 1.5 * most(4), "a higher rate is seen, so the count above could have failed"


def test_a_rate_is_drawn_when_there_is_progress(talking: None) -> None:
    with raw_terminal(APP, SSH) as terminal:
        assert 1 <= len(repaints(terminal)) <= most(1), "progress is stored once a second"


def test_what_is_drawn_of_a_job_is_the_line_that_changed(talking: None) -> None:
    with raw_terminal(BUSY, SSH) as terminal:
        repaints(terminal)
        assert max(len(part) for _, part in repaints(terminal)) < 1000


@pytest.mark.parametrize("rate", [1.0, 2.0])
def test_progress_is_drawn_as_often_as_the_settings_say(talking: None, rate: float) -> None:
    folder = Path(os.environ["MSCOPE_CONFIG_DIR"])
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(f"[tui]\nupdates_per_second = {rate}\n")
    with raw_terminal(BUSY, {}) as terminal:
        assert rate * SECONDS / 2 <= len(repaints(terminal)) <= most(rate)


def test_an_app_that_nobody_touches_writes_nothing_also_with_the_keyboard_in_a_text_field() -> None:
    with raw_terminal(APP, SSH) as terminal:
        terminal.wait_for(b"the service is not running")
        for keys, shown in ((b"", b""), (b"/", b"art of a name")):
            if keys:
                terminal.press_and_wait(keys, shown)
            terminal.repaints(1.0)
            assert terminal.repaints(SECONDS) == []
