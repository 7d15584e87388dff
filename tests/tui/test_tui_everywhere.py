"""Keys that work everywhere, the palette, themes and settings of the app, asked of the real app on a sample checkpoint."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import polars
import pytest
from textual.events import Key
from textual.widgets import Input, OptionList, Static
from tui.slow_disk import SlowCalls, until
from tui_waiting import all_settled

from modelscope_app.api import BadInput, TableView
from modelscope_app.checkpoints.samples import samples_folder
from modelscope_app.plugin_host import PluginHost
from modelscope_app.runs.folder import RunFolder
from modelscope_app.settings import TuiSettings, read_settings
from modelscope_app.testing.temporary_plugins import TemporaryPlugins
from modelscope_app.tui.app import KEY_IDS, AppSettings, MscopeApp, terminal_is_gone
from modelscope_app.tui.checkpoint.tensor_tree import TensorTree
from modelscope_app.tui.copying import copied_file
from modelscope_app.tui.dialogs.export import ExportScreen
from modelscope_app.tui.dialogs.help import HelpScreen
from modelscope_app.tui.dialogs.question import Question
from modelscope_app.tui.dialogs.use_selection import UseScreen, uses_of
from modelscope_app.tui.forms.fields import Field
from modelscope_app.tui.forms.kept_values import last_used
from modelscope_app.tui.forms.screen import FormScreen
from modelscope_app.tui.jobs.screen import JobsScreen
from modelscope_app.tui.library.screen import LibraryScreen
from modelscope_app.tui.messages import JobCancelled
from modelscope_app.tui.on_screen import Exports
from modelscope_app.tui.run.screen import RunScreen
from modelscope_app.tui.selections import Selection
from modelscope_app.tui.themes import THEMES
from modelscope_app.tui.workspace import WorkspaceScreen

pytest_plugins = ["modelscope_app.testing"]

FOLDER = samples_folder()
assert FOLDER is not None
SAMPLE = FOLDER / "digits-mlp"
DOCS = Path(__file__).resolve().parents[2] / "docs" / "app.md"


def words(app: MscopeApp) -> str:
    """Everything on the screen that is on top."""
    return "\n".join(str(widget.render()) for widget in app.screen.query(Static))


async def test_help_explains_the_focused_thing_and_lists_its_keys() -> None:
    app = MscopeApp(str(SAMPLE))
    async with app.run_test(size=(100, 50)) as pilot:
        await all_settled(pilot)
        await pilot.press("question_mark")
        assert isinstance(app.screen, HelpScreen)
        said = words(app)
        assert "Every tensor of the checkpoint" in said and "Search tensors" in said and "Everywhere" in said and "Quit" in said
        await pilot.press("escape")
        await pilot.press("3")
        await all_settled(pilot)
        await pilot.press("question_mark")
        assert "analys" in words(app).lower()


async def test_copying_reaches_the_clipboard_and_the_file() -> None:
    app = MscopeApp(str(SAMPLE))
    async with app.run_test() as pilot:
        await all_settled(pilot)
        await pilot.press("c")
        assert app.clipboard == f"mscope inspect {SAMPLE} --tensors" == copied_file().read_text()
        assert copied_file().stat().st_mode & 0o077 == 0
        assert app.screen.query_one(TensorTree).reveal("layers.1.bias")
        await all_settled(pilot)
        await pilot.press("y")
        assert app.clipboard == copied_file().read_text() == "layers.1.bias"


async def test_export_writes_what_is_on_the_screen(made_run: Callable[..., RunFolder], tmp_path: Path) -> None:
    table = polars.DataFrame({"tensor": ["a", "b"], "norm": [1.0, 2.0]})
    app = MscopeApp(str(made_run({"tensors": table}, [TableView(name="tensors", title="Tensors", table="tensors")]).folder))
    async with app.run_test(size=(100, 30)) as pilot:
        await all_settled(pilot)
        await pilot.press("1")
        await all_settled(pilot)
        for format in ("csv", "parquet", "json", "html", "svg"):
            await pilot.press("e")
            await pilot.pause()
            assert isinstance(app.screen, ExportScreen)
            formats = app.screen.query_one(OptionList)
            formats.highlighted = [str(option.id) for option in formats.options].index(format)
            await pilot.pause()
            app.screen.query_one(Input).value = str(tmp_path / "out" / f"table.{format}")
            await pilot.press("enter")
            await all_settled(pilot)
            assert not isinstance(app.screen, ExportScreen), words(app)
        assert polars.read_csv(tmp_path / "out" / "table.csv").rows() == table.rows()
        assert polars.read_parquet(tmp_path / "out" / "table.parquet").rows() == table.rows()
        assert "<svg" in (tmp_path / "out" / "table.svg").read_text() and "<html" in (tmp_path / "out" / "table.html").read_text()


@pytest.mark.parametrize("leaving", ["ctrl+q", "ctrl+l", "f5"])
async def test_what_was_typed_into_a_form_is_kept_however_it_is_left(leaving: str) -> None:
    app = MscopeApp(str(SAMPLE), AppSettings(keys={"library": "ctrl+l", "jobs": "f5"}))
    async with app.run_test(size=(100, 30)) as pilot:
        await all_settled(pilot)
        app.choose_analysis("weights.stats")
        await all_settled(pilot)
        bins = next(field for field in app.screen.query(Field) if field.entry.key == "bins")
        bins.control.focus()
        await pilot.press("end", *["backspace"] * 5, "7", "7", leaving)
        await all_settled(pilot)
    assert last_used("weights.stats", 1)["bins"] == "77"


async def test_an_export_that_cannot_be_written_is_a_sentence(
    made_run: Callable[..., RunFolder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelscope_app.tui.dialogs.export.READ_SECONDS", 0.0)
    (tmp_path / "file").write_text("")
    run = made_run(facts={"a": 1}).folder
    app = MscopeApp(str(run))
    async with app.run_test(size=(100, 30)) as pilot:
        await all_settled(pilot)
        await pilot.press("1")
        await all_settled(pilot)
        await pilot.press("e")
        await pilot.pause()
        places = {tmp_path / "file" / "under": "cannot be written", run / "facts.json": "belongs to the run itself; choose another place"}
        for place, said in places.items():
            app.screen.query_one(Input).value = str(place)
            await pilot.press("enter")
            await all_settled(pilot)
            if place.exists():
                assert "is there already; enter again replaces it" in words(app)
                await pilot.press("enter")
                await all_settled(pilot)
            assert isinstance(app.screen, ExportScreen) and said in words(app)


async def test_two_enters_write_once_and_close_one_screen() -> None:
    slow = SlowCalls(lambda format, path: path)
    app = MscopeApp(str(SAMPLE))
    async with app.run_test(size=(100, 30)) as pilot:
        await all_settled(pilot)
        await pilot.press("J")
        app.push_screen(ExportScreen(Exports("a view", ("csv",), Path("/nowhere"), "view", slow)))
        await pilot.pause()
        await pilot.press("enter", "enter")
        await until(pilot, lambda: slow.started)
        await pilot.press("enter")
        slow.finish.set()
        await all_settled(pilot)
        assert slow.started == 1 and isinstance(app.screen, JobsScreen)


async def test_an_enter_that_comes_too_soon_replaces_nothing(tmp_path: Path) -> None:
    (tmp_path / "view.csv").write_text("precious")
    written = []
    app = MscopeApp(str(SAMPLE))
    async with app.run_test(size=(100, 30)) as pilot:
        await all_settled(pilot)
        app.push_screen(ExportScreen(Exports("a view", ("csv",), tmp_path, "view", lambda format, path: written.append(path) or path)))
        await pilot.pause()
        await pilot.press("enter")
        await until(pilot, lambda: "is there already" in words(app))
        await pilot.press("enter")
        await all_settled(pilot)
        assert isinstance(app.screen, ExportScreen) and not written


async def test_keys_of_a_list_do_not_speak_for_another_page() -> None:
    app = MscopeApp(str(SAMPLE))
    async with app.run_test(size=(100, 30)) as pilot:
        await all_settled(pilot)
        await pilot.press("t", "y")
        await pilot.pause()
        assert not copied_file().exists(), "the cursor is on a group of tensors, which is nothing to copy"


async def test_a_file_that_is_there_is_replaced_by_a_second_enter_alone(
    made_run: Callable[..., RunFolder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelscope_app.tui.dialogs.export.READ_SECONDS", 0.0)
    mine, other = tmp_path / "mine.csv", tmp_path / "other.csv"
    for file in (mine, other):
        file.write_text("precious")
    table = polars.DataFrame({"norm": [1.0]})
    app = MscopeApp(str(made_run({"tensors": table}, [TableView(name="tensors", title="Tensors", table="tensors")]).folder))
    async with app.run_test(size=(100, 30)) as pilot:
        await all_settled(pilot)
        await pilot.press("1")
        await all_settled(pilot)
        await pilot.press("e")
        await pilot.pause()
        for file in (mine, other):
            app.screen.query_one(Input).value = str(file)
            await pilot.press("enter")
            await all_settled(pilot)
            assert isinstance(app.screen, ExportScreen) and f"{file} is there already" in words(app)
            assert file.read_text() == "precious"
        await pilot.press("enter")
        await all_settled(pilot)
        assert not isinstance(app.screen, ExportScreen)
    assert (mine.read_text(), other.read_text()) == ("precious", "norm\n1.0\n")


async def test_only_what_the_cursor_is_on_is_used(made_run: Callable[..., RunFolder]) -> None:
    run = made_run(facts={"a": 1})
    app = MscopeApp(str(SAMPLE))
    async with app.run_test(size=(100, 30)) as pilot:
        await all_settled(pilot)
        assert app.screen.query_one(TensorTree).reveal("layers.1.bias")
        await all_settled(pilot)
        assert app.selected
        app.open_run(run.folder)
        await all_settled(pilot)
        await pilot.press("1", "u")
        await all_settled(pilot)
        assert isinstance(app.screen, RunScreen)
        assert any("Nothing is selected" in notification.message for notification in app._notifications)


async def test_keys_that_arrive_together_take_effect_in_their_order() -> None:
    app = MscopeApp(str(SAMPLE))
    async with app.run_test(size=(100, 30)) as pilot:
        await all_settled(pilot)
        await pilot.press("/")
        await pilot.pause()
        line = app.focused
        assert isinstance(line, Input)
        for burst, left in (("abc", "abc"), (["ctrl+u", "x", "y", "backspace", "z"], "xz"), (["home", "1", "end", "2"], "1xz2")):
            for key in burst:
                app.post_message(Key(key, key if len(key) == 1 else None))
            await all_settled(pilot)
            assert line.value == left


TAKING = """
from pydantic import BaseModel
from modelscope_app.api import Analysis, Selection, hookimpl
MODELSCOPE_API = (1, 1)
class Params(BaseModel):
    query: Selection["tensor", "token"] = ""
@hookimpl
def modelscope_analyses():
    return [Analysis(name="trace", title="Trace it", summary="Where does it come from?", params=Params, run="nowhere:run")]
"""


async def test_a_selection_is_offered_to_every_analysis_that_takes_its_kind(temporary_plugins: TemporaryPlugins) -> None:
    temporary_plugins.write("asker", TAKING)
    app = MscopeApp(str(SAMPLE))
    async with app.run_test(size=(100, 30)) as pilot:
        await all_settled(pilot)
        assert app.screen.query_one(TensorTree).reveal("layers.1.bias")
        await all_settled(pilot)
        await pilot.press("u")
        await all_settled(pilot)
        assert isinstance(app.screen, UseScreen)
        menu = app.screen.query_one(OptionList)
        offered = [str(option.prompt) for option in menu.options]
        assert "as only in weights.stats  Weight statistics" in offered
        menu.highlighted = offered.index("as query in asker.trace  Trace it")
        await pilot.press("enter")
        await all_settled(pilot)
        assert isinstance(app.screen, FormScreen)
        assert any(field.value == "layers.1.bias" for field in app.screen.query(Input))


def test_a_checkpoint_can_be_used_where_one_is_taken() -> None:
    uses = uses_of(Selection("checkpoint", "/models/a", "a"), PluginHost(disabled=()))
    assert {use.analysis for use in uses} >= {"weights.stats", "weights.diff"} and "weights.series" not in {use.analysis for use in uses}


async def test_the_palette_finds_analyses_tensors_themes_and_runs(made_run: Callable[..., RunFolder]) -> None:
    made_run(folder=Path(os.environ["MSCOPE_DATA_DIR"]) / "runs" / "20260102-030405-weights-stats-abcd")
    app = MscopeApp(str(SAMPLE))
    async with app.run_test(size=(100, 40)) as pilot:
        await all_settled(pilot)
        for typed, kind in (("weights.diff", FormScreen), ("open run 2026", RunScreen)):
            await pilot.press("ctrl+p")
            await pilot.pause()
            app.screen.query_one(Input).value = typed
            for _ in range(100):
                await pilot.pause(0.02)
                if app.screen.query_one("CommandList", OptionList).option_count:
                    break
            await pilot.press("enter")
            if not isinstance(app.screen, kind):
                await pilot.press("enter")
            await all_settled(pilot)
            assert isinstance(app.screen, kind), typed
            await pilot.press("escape")
            await all_settled(pilot)
        assert isinstance(app.screen, WorkspaceScreen)
        await app.show_tensor("layers.1.bias")
        await all_settled(pilot)
        assert "layers.1.bias" in words(app)


async def test_screens_lead_back_to_where_one_came_from() -> None:
    app = MscopeApp(str(SAMPLE))
    async with app.run_test(size=(100, 40)) as pilot:
        await all_settled(pilot)
        await pilot.press("J")
        assert isinstance(app.screen, JobsScreen)
        await pilot.press("J", "escape")
        assert isinstance(app.screen, WorkspaceScreen)
        await pilot.press("escape")
        await all_settled(pilot)
        assert isinstance(app.screen, LibraryScreen)
        await pilot.press("escape", "L")
        assert isinstance(app.screen, LibraryScreen)
        await pilot.press("enter")
        await all_settled(pilot)
        assert isinstance(app.screen, WorkspaceScreen), "the checkpoint that was open is the first of the recent ones"
        await pilot.press("ctrl+q")
        assert app.return_code == 0


async def test_cancelling_a_job_asks_and_no_is_the_first_answer() -> None:
    app = MscopeApp(str(SAMPLE))
    async with app.run_test(size=(100, 40)) as pilot:
        await all_settled(pilot)
        app.post_message(JobCancelled("20260102-1", "weights.stats"))
        await pilot.pause()
        assert isinstance(app.screen, Question) and app.focused is not None and app.focused.id == "no"
        await pilot.press("enter")
        assert isinstance(app.screen, WorkspaceScreen)


@pytest.mark.parametrize("theme", [*(theme.name for theme in THEMES), "ansi-dark", "ansi-light"])
async def test_every_theme_of_ours_draws_the_same_words(colour: None, theme: str) -> None:
    app = MscopeApp(str(SAMPLE), AppSettings(theme=theme))
    async with app.run_test(size=(80, 24)) as pilot:
        await all_settled(pilot)
        text = re.sub(r"\s+|&#160;", " ", re.sub(r"<[^>]+>", "", app.export_screenshot()))
        for said in ("4,810 in 4 tensors", "1 Overview", "no jobs"):
            assert said in text


def test_what_is_wrong_in_the_settings_is_named_with_what_there_is() -> None:
    with pytest.raises(BadInput, match=r"tui\.theme = 'mscope-drak'.*mscope-dark"):
        MscopeApp(None, AppSettings(theme="mscope-drak"))
    with pytest.raises(BadInput, match=r"tui\.keys\.quti.*quit"):
        MscopeApp(None, AppSettings(keys={"quti": "f5"}))
    with pytest.raises(BadInput, match=r"tui\.keys.*y would be both copy and jobs"):
        MscopeApp(None, AppSettings(keys={"jobs": "y"}))
    with pytest.raises(BadInput, match=r"tui\.keys.*f5 would be both jobs and library"):
        MscopeApp(None, AppSettings(keys={"jobs": "f5", "library": "f5"}))
    with pytest.raises(BadInput, match=r"tui\.keys.*f1 would be both help and jobs"):
        MscopeApp(None, AppSettings(keys={"jobs": "f1"}))
    for key in ("§", "ö", "ctrl+c", "f1,question_mark"):
        MscopeApp(None, AppSettings(keys={"help": key}))
    for wrong in ("banana", "ctrl+nothing", ""):
        with pytest.raises(BadInput, match=r"tui\.keys\.quit.*is no key"):
            MscopeApp(None, AppSettings(keys={"quit": wrong}))
    with pytest.raises(BadInput, match=r"tui\.keys\.quit.*escape means something"):
        MscopeApp(None, AppSettings(keys={"quit": "escape"}))


async def test_keys_can_be_swapped() -> None:
    app = MscopeApp(str(SAMPLE), AppSettings(keys={"jobs": "L", "library": "J"}))
    async with app.run_test() as pilot:
        await all_settled(pilot)
        await pilot.press("L")
        assert isinstance(app.screen, JobsScreen)
        await pilot.press("J")
        await all_settled(pilot)
        assert isinstance(app.screen, LibraryScreen)


async def test_keys_can_be_others() -> None:
    app = MscopeApp(str(SAMPLE), AppSettings(keys={"jobs": "f5", "help": "f1,question_mark"}))
    async with app.run_test() as pilot:
        await all_settled(pilot)
        await pilot.press("J")
        assert isinstance(app.screen, WorkspaceScreen)
        await pilot.press("f5")
        assert isinstance(app.screen, JobsScreen)
        await pilot.press("f1")
        assert isinstance(app.screen, HelpScreen)


def test_the_page_on_the_app_names_every_setting_key_id_and_theme() -> None:
    page = DOCS.read_text()
    block = re.search(r"```toml\n(\[tui\].*?)```", page, re.DOTALL)
    assert block is not None
    written = tomllib.loads(block[1])["tui"]
    assert set(written) == set(TuiSettings.model_fields)
    assert TuiSettings(**written) == TuiSettings() == read_settings().tui
    assert all(f"`{name}`" in page for name in (*KEY_IDS, *(theme.name for theme in THEMES), "ansi-dark", "ansi-light"))


def test_a_terminal_that_was_closed_is_noticed() -> None:
    master, slave = os.openpty()
    assert not terminal_is_gone(slave)
    os.close(master)
    assert terminal_is_gone(slave)
    os.close(slave)


HOSTILE = ["\x1b[31mred\x1b[0m", "[bold]x[/bold]", "w[/b]eight", "[", "שלום.weight", "n" * 10_000]


async def test_hostile_names_of_tensors_and_folders_break_no_screen(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    folder = tmp_path / "[red]a\x1b[1mb"
    folder.mkdir()
    save_file({name: torch.zeros(2) for name in HOSTILE}, folder / "model.safetensors", {"[link]": "\x1b]0;title\x07"})
    app = MscopeApp(str(folder))
    async with app.run_test(size=(80, 24)) as pilot:
        await all_settled(pilot)
        for key in ("down", "enter", "2", "y", "c", "question_mark", "escape", "3", "4", "1", "escape"):
            await pilot.press(key)
            await all_settled(pilot)
            painted = "".join(segment.text for strip in app.screen._compositor.render_strips() for segment in strip)
            assert "\x1b" not in painted and "\x07" not in painted
        await pilot.press("ctrl+p")
        for key in ("e", "i", "g", "h", "t"):
            await pilot.press(key)
            await pilot.pause(0.05)
        assert app.is_running


async def test_the_palette_shows_hostile_names_as_they_are(made_run: Callable[..., RunFolder], tmp_path: Path) -> None:
    made_run(checkpoint="/models/x[/b]", folder=Path(os.environ["MSCOPE_DATA_DIR"]) / "runs" / "20260102-030405-weights-stats-abcd")
    import torch
    from safetensors.torch import save_file

    save_file({"w[/b]eight": torch.zeros(2)}, tmp_path / "model.safetensors")
    app = MscopeApp(str(tmp_path))
    async with app.run_test(size=(100, 40)) as pilot:
        await all_settled(pilot)
        for typed in ("w[/b]eight", "open run"):
            await pilot.press("ctrl+p")
            await pilot.pause()
            app.screen.query_one(Input).value = typed
            found = app.screen.query_one("CommandList", OptionList)
            for _ in range(200):
                await pilot.pause(0.02)
                if any("eight" in str(option.prompt) or "Open run" in str(option.prompt) for option in found.options):
                    break
            else:
                raise AssertionError(typed)
            await pilot.press("escape", "escape")
        assert app.is_running


async def test_help_and_the_command_are_there_while_a_text_field_has_the_keyboard() -> None:
    app = MscopeApp(str(SAMPLE))
    async with app.run_test(size=(100, 40)) as pilot:
        await all_settled(pilot)
        app.choose_analysis("weights.stats")
        await all_settled(pilot)
        assert isinstance(app.focused, Input)
        await pilot.press("f3")
        assert app.clipboard.startswith("mscope run weights.stats ")
        await pilot.press("f1")
        assert isinstance(app.screen, HelpScreen)


async def test_a_message_is_never_markup_nor_an_escape_sequence() -> None:
    app = MscopeApp(str(SAMPLE))
    async with app.run_test() as pilot:
        await all_settled(pilot)
        app.notify("gone: [/b]\x1b[31m")
        await pilot.pause()
        (said,) = app._notifications
        assert said.message == "gone: [/b]\\x1b[31m" and not said.markup


@pytest.mark.parametrize("name", ["b" * 300, "nothing", "a\x00b"])
async def test_what_cannot_be_a_path_is_a_sentence(name: str) -> None:
    app = MscopeApp(f"./{name}")
    async with app.run_test() as pilot:
        await all_settled(pilot)
        assert isinstance(app.screen, WorkspaceScreen) and app.screen.found is None and app.is_running
