"""The list of analyses: search, what suits the open checkpoint, and plugins that are broken."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from textual.app import App, ComposeResult
from textual.pilot import Pilot
from textual.widgets import Button, Input
from tui.form_app import seen, settled

from modelscope_app.api import Checkpoints
from modelscope_app.testing import TemporaryPlugins
from modelscope_app.tui.analyses import AnalysesBrowser, Opened, why_not
from modelscope_app.tui.messages import AnalysisChosen
from modelscope_app.tui.plugins import Plugins

pytest_plugins = ["modelscope_app.testing"]

SOURCE = r"""
from pydantic import BaseModel
from modelscope_app.api import Analysis, Checkpoints, hookimpl

MODELSCOPE_API = (1, 1)

class Nothing(BaseModel):
    pass

@hookimpl
def modelscope_analyses():
    def one(name, title, summary, takes=Checkpoints()):
        return Analysis(name, title, summary, Nothing, "nowhere:run", checkpoints=takes)

    return [
        one("stats", "Statistics", "How large are the weights?"),
        one("diff", "Difference", "How far did they move?", Checkpoints(2, 2)),
        one("curve", "Along training", "How do they grow?", Checkpoints(kind="series")),
        one("say", "What it says", "What comes next?", Checkpoints(kind="language-model")),
        one("game", "A game", "Who wins?", Checkpoints(0, 0)),
        one("evil", "[red]t\x1b[31m\u202e", "[/] \x1b]0;x\x07" + "s" * 10_000),
    ]
"""


class Host(App[None]):
    """Shows the list, and keeps what was chosen."""

    def __init__(self, browser: AnalysesBrowser) -> None:
        super().__init__()
        self.browser = browser
        self.chosen: list[AnalysisChosen] = []
        self.said: list[str] = []

    def compose(self) -> ComposeResult:
        yield self.browser
        yield Button("elsewhere")

    def on_mount(self) -> None:
        self.call_after_refresh(self.browser.focus)

    def on_analysis_chosen(self, message: AnalysisChosen) -> None:
        self.chosen.append(message)

    def notify(self, message: str, **options: Any) -> None:  # type: ignore[override]
        assert options.get("markup") is False
        self.said.append(message)


@pytest.fixture
def listed(temporary_plugins: TemporaryPlugins) -> Callable[..., Host]:
    temporary_plugins.write("test", SOURCE)

    def make(checkpoint: str | None = "/models/one", is_series: bool = False, **options: Any) -> Host:
        return Host(AnalysesBrowser(checkpoint, is_series, plugins=Plugins(temporary_plugins.host), **options))

    return make


async def on(pilot: Pilot[None], app: Host, id: str) -> None:
    """Put the cursor on an analysis."""
    for _ in range(10):
        offer = app.browser.highlighted
        if offer is not None and offer.id == id:
            return
        await pilot.press("down")
    raise AssertionError(f"{id} is not in the list")


async def test_analyses_stand_by_plugin_with_their_question_and_what_they_take(listed: Callable[..., Host]) -> None:
    app = listed()
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        text = seen(app)
        for words in ("─ test", "Statistics  test.stats  1 checkpoint", "How large are the weights?", "2 checkpoints", "no checkpoint"):
            assert words in text
        assert app.focused is not None and not isinstance(app.focused, Input)
        assert app.browser.highlighted is not None and app.browser.highlighted.id == "test.stats"


async def test_enter_asks_for_the_form_with_the_open_checkpoint(listed: Callable[..., Host]) -> None:
    app = listed()
    async with app.run_test() as pilot:
        await settled(pilot)
        await pilot.press("enter")
        await on(pilot, app, "test.diff")
        await pilot.press("enter")
        await on(pilot, app, "test.game")
        await pilot.press("enter")
        await pilot.pause()
    assert [(message.analysis, message.checkpoints) for message in app.chosen] == [
        ("test.stats", ("/models/one",)),
        ("test.diff", ("/models/one",)),
        ("test.game", ()),
    ]


async def test_what_does_not_suit_the_checkpoint_says_why_and_is_not_chosen(listed: Callable[..., Host]) -> None:
    app = listed(has_tokenizer=False)
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        assert "no: takes a series, and this is one checkpoint" in seen(app)
        assert "no: needs a language model with its tokenizer, and there is no tokenizer.json" in " ".join(seen(app).split())
        await on(pilot, app, "test.curve")
        await pilot.press("enter")
        await pilot.pause()
        assert app.chosen == [] and app.said == ["test.curve takes a series, and this is one checkpoint"]
        app.browser.show_for("/models/run", is_series=True)
        await pilot.pause()
        assert app.browser.highlighted is not None and app.browser.highlighted.id == "test.curve"
        await pilot.press("enter")
        await pilot.pause()
        assert app.chosen[0].checkpoints == ("/models/run",)


@pytest.mark.parametrize(
    ("takes", "opened", "reason"),
    [
        (Checkpoints(), Opened("/m"), None),
        (Checkpoints(), Opened(None), None),
        (Checkpoints(0, 0), Opened("/m", is_series=True), None),
        (Checkpoints(), Opened("/m", is_series=True), "takes 1 checkpoint, and this is a series: open one of its checkpoints"),
        (Checkpoints(kind="model"), Opened("/m", has_config=False), "without config.json"),
        (Checkpoints(kind="model"), Opened("/m", has_tokenizer=False), None),
        (Checkpoints(kind="language-model"), Opened("/m", has_config=False), "without config.json"),
    ],
)
def test_what_suits_what(takes: Checkpoints, opened: Opened, reason: str | None) -> None:
    found = why_not(takes, opened)
    assert found == reason or (reason is not None and reason in str(found))


async def test_search_as_you_type(listed: Callable[..., Host]) -> None:
    app = listed()
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        await pilot.press("slash", *"FAR move")
        await pilot.pause()
        assert "test.diff" in seen(app) and "test.stats" not in seen(app)
        await pilot.press("enter")
        await pilot.pause()
        assert app.chosen[0].analysis == "test.diff"
        await pilot.press(*"zz")
        await pilot.pause()
        assert "nothing fits; escape goes back" in seen(app)
        await pilot.press("enter", "escape")
        await pilot.pause()
        assert "test.stats" in seen(app) and not isinstance(app.focused, Input) and len(app.chosen) == 1
        await pilot.press("slash", *"game", "down")
        assert not isinstance(app.focused, Input) and "test.stats" not in seen(app)
        await pilot.press("enter")
        await pilot.pause()
        assert app.chosen[1].analysis == "test.game"


async def test_broken_plugins_stand_at_the_end_with_their_sentence(
    listed: Callable[..., Host], temporary_plugins: TemporaryPlugins
) -> None:
    temporary_plugins.write("broken", "print('noise')\nraise RuntimeError('[bold]no\\x1b[31mgood')")
    app = listed()
    async with app.run_test(size=(100, 30)) as pilot:
        await settled(pilot)
        text = " ".join(seen(app).split())
        assert "mscope plugins doctor" in text and "broken" in text and "[bold]no" in text
        assert text.index("test.game") < text.index("[bold]no") and "\x1b" not in text and "noise" not in text
        await pilot.press("slash", *"game")
        await pilot.pause()
        assert "doctor" not in seen(app)


async def test_no_plugin_at_all_is_said(temporary_plugins: TemporaryPlugins) -> None:
    app = Host(AnalysesBrowser(None, plugins=Plugins(temporary_plugins.host)))
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        assert "no plugin is installed that has an analysis" in seen(app)
        await pilot.press("slash", "enter", "escape")
        assert app.chosen == []


async def test_it_says_that_it_loads(temporary_plugins: TemporaryPlugins) -> None:
    temporary_plugins.write("test", SOURCE)
    go_on = threading.Event()

    def slow() -> Any:
        go_on.wait(10)
        return temporary_plugins.host()

    app = Host(AnalysesBrowser("/m", plugins=Plugins(slow)))
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.pause()
        assert "loading plugins ..." in seen(app)
        assert app.browser.headless_command() == "mscope analyses" and app.browser.copied() is None
        go_on.set()
        await settled(pilot)
        assert "test.stats" in seen(app)


async def test_settings_that_cannot_be_read_are_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Any:
        from modelscope_app.api import BadInput

        raise BadInput("/config.toml: not valid TOML [bold]x")

    app = Host(AnalysesBrowser("/m", plugins=Plugins(broken)))
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        assert "/config.toml: not valid TOML [bold]x" in seen(app)


@pytest.mark.parametrize("size", [(80, 24), (24, 6)])
async def test_hostile_titles_stay_text(listed: Callable[..., Host], size: tuple[int, int]) -> None:
    app = listed()
    async with app.run_test(size=size) as pilot:
        await settled(pilot)
        await on(pilot, app, "test.evil")
        await pilot.pause()
        text = seen(app)
        assert not set("\x1b\x07\u202e") & set(text)
        assert "[red]t" in text


async def test_the_one_the_cursor_is_on_explains_itself(listed: Callable[..., Host]) -> None:
    app = listed()
    async with app.run_test() as pilot:
        await settled(pilot)
        await on(pilot, app, "test.curve")
        explained = app.browser.explanation()
        assert explained.title == "Along training"
        assert explained.text == (
            "How do they grow? It takes 1 series. It has no use for this one: it takes a series, and this is one checkpoint."
        )
        copied = app.browser.copied()
        assert copied is not None and copied.text == "test.curve"
        assert app.browser.headless_command() == "mscope analyses test.curve"
