"""An app that shows one form of a plugin made for tests, and keeps what it was asked. A test module opts in with `pytest_plugins`.

PYTEST_DONT_REWRITE: a test module that opts in imports this one before pytest does.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from textual.app import App
from textual.pilot import Pilot
from textual.widgets import Input
from textual.worker import WorkerCancelled

from modelscope_app.api import MscopeError
from modelscope_app.jobs.answers import Fit
from modelscope_app.testing import TemporaryPlugins
from modelscope_app.tui.forms import screen
from modelscope_app.tui.forms.checking import Checked
from modelscope_app.tui.forms.fields import Field
from modelscope_app.tui.forms.screen import FormScreen
from modelscope_app.tui.messages import JobAsked
from modelscope_app.tui.plugins import Plugins

SAMPLE = str(Path(__file__).resolve().parents[2] / "sample_checkpoints" / "digits-mlp")
HOSTILE = "[bold red]x[/] \x1b[31mred\x1b]0;title\x07 \u202ertl"

SOURCE = """
from typing import Literal
from pydantic import BaseModel, Field, field_validator
from modelscope_app.api import Analysis, CheckpointPath, Checkpoints, DataFile, RunReference, Selection, SiteName, hookimpl

MODELSCOPE_API = (1, 1)
HOSTILE = HOSTILE_TEXT

class All(BaseModel):
    rows: int = Field(4, ge=1, le=100, description="how many rows")
    data: DataFile = Field(description="rows to read")
    how: Literal["fast", "slow"] = Field("fast", description="which way")
    flag: bool = Field(True, description="on or off")
    sizes: list[int] = Field([1, 2], description="several")
    site: SiteName = Field("resid_post.0", description="where")
    earlier: RunReference = Field("", description="a run")
    base: CheckpointPath = Field("", description="another one")
    subject: Selection["token", "example"] = Field("", description="what it is about")
    limit: int | None = Field(None, description="at most")

class Few(BaseModel):
    rows: int = Field(4, ge=1, le=100, description="how many rows")
    text: str = Field("", description="anything")

class Nothing(BaseModel):
    pass

class Hostile(BaseModel):
    rows: int = Field(4, ge=1, description=HOSTILE + "y" * 10_000)
    how: Literal["[red]a", "b\\x1b[31m"] = Field("[red]a", description=HOSTILE)
    text: str = Field(HOSTILE, description="")
    LONG_NAME: int = Field(1, description="a long name")

class Misbehaving(BaseModel):
    text: str = Field("", description="what it does")

    @field_validator("text")
    @classmethod
    def check(cls, value):
        if value == "wait":
            GO_ON.wait(30)
        if value == "print":
            print("printed by a plugin")
        if value == "exit":
            raise SystemExit(3)
        return value

import threading
GO_ON = threading.Event()

Many = type("Many", (BaseModel,), {"__annotations__": {f"p{n}": int for n in range(60)}, **{f"p{n}": n for n in range(60)}})

@hookimpl
def modelscope_analyses():
    def one(name, params, takes=Checkpoints(0, 0)):
        return Analysis(name, "The title of " + name, "What is it?", params, "nowhere:run", checkpoints=takes)

    return [
        one("all", All), one("few", Few), one("one", Few, Checkpoints()), one("any", Few, Checkpoints(1, None)), one("nothing", Nothing),
        one("misbehaving", Misbehaving), one("many", Many),
        Analysis("hostile", HOSTILE, HOSTILE, Hostile, "nowhere:run", checkpoints=Checkpoints()),
    ]
"""
SOURCE = SOURCE.replace("HOSTILE_TEXT", repr(HOSTILE)).replace("LONG_NAME", "n" * 2000)


class Host(App[None]):
    """Shows one form, and keeps what it was asked."""

    def __init__(self, form: FormScreen) -> None:
        super().__init__()
        self.form = form
        self.asked: list[JobAsked] = []
        self.said: list[str] = []

    def on_mount(self) -> None:
        self.push_screen(self.form)

    def on_job_asked(self, message: JobAsked) -> None:
        self.asked.append(message)

    def notify(self, message: str, **options: Any) -> None:  # type: ignore[override]
        assert options.get("markup") is False, message
        self.said.append(message)


class Service:
    """Stands in for the service."""

    def __init__(self) -> None:
        self.questions: list[Checked] = []
        self.error: MscopeError | None = None
        self.go_on: asyncio.Event | None = None

    async def __call__(self, analysis: str, checked: Checked) -> Fit:
        self.questions.append(checked)
        if self.go_on is not None:
            await self.go_on.wait()
        if self.error is not None:
            raise self.error
        return Fit("fits", "fits: 12 MB needed (as it declares), 24.1 GB free on cpu")


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Service:
    monkeypatch.setattr(screen, "ESTIMATE_AFTER_SECONDS", 0.01)
    return Service()


@pytest.fixture
def opened(temporary_plugins: TemporaryPlugins, service: Service) -> Iterator[Callable[..., Host]]:
    """`opened("few", checkpoints, params, ...)`: an app with that form."""
    module = temporary_plugins.write("test", SOURCE)
    plugins = Plugins(temporary_plugins.host)

    def make(name: str, checkpoints: Any = (), params: Any = None, **options: Any) -> Host:
        return Host(FormScreen(f"test.{name}", checkpoints, params or {}, plugins=plugins, estimate=service, **options))

    yield make
    if module in sys.modules:
        sys.modules[module].GO_ON.set()


async def settled(pilot: Pilot[None]) -> None:
    """Everything asked has been answered."""
    await pilot.pause()
    for _ in range(100):
        try:
            await pilot.app.workers.wait_for_complete()
            break
        except WorkerCancelled:  # a change made it ask again
            await pilot.pause(0.01)
    await pilot.pause()


def seen(app: App[None]) -> str:
    """The characters on the screen."""
    return "\n".join(strip.text for strip in app.screen._compositor.render_strips())


def field(app: Host, key: str) -> Field:
    return next(one for one in app.form.query(Field) if one.entry.key == key)


async def typed(pilot: Pilot[None], app: Host, key: str, text: str) -> None:
    """Replace what stands in a field."""
    control = field(app, key).control
    control.focus()
    await pilot.pause()
    assert isinstance(control, Input)
    await pilot.press("end", *(["backspace"] * len(control.value)), *text)
    await settled(pilot)
