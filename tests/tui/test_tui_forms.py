"""The form of an analysis, from the side of the keyboard."""

from __future__ import annotations

import asyncio
import json
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from service_process import background
from textual.widgets import Collapsible
from tui.form_app import SAMPLE, Host, Service, field, seen, settled, typed

from modelscope_app.api import JobFailed
from modelscope_app.testing import TemporaryPlugins
from modelscope_app.tui.forms import kept_values, screen
from modelscope_app.tui.forms.fields import Choice, Field, Flag, TextField
from modelscope_app.tui.forms.screen import FormScreen
from modelscope_app.tui.plugins import Plugins

pytest_plugins = ["modelscope_app.testing", "tui.form_app"]


async def test_a_form_shows_options_help_estimate_and_command(opened: Callable[..., Host], service: Service) -> None:
    app = opened("all", params={"data": "/d/rows.csv", "rows": 9})
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        text = seen(app)
        assert "The title of all" in text and "What is it?" in text
        assert "fits: 12 MB needed (as it declares), 24.1 GB free on cpu" in text
        assert "$ mscope run test.all --rows 9 --data /d/rows.csv" in text
        assert app.form.headless_command() == "mscope run test.all --rows 9 --data /d/rows.csv"
        assert "where and how: device auto, dtype auto, seed 0" in text
        assert "* rows" in text and "* how" not in text  # differs from its default, does not
        kinds = {key: type(field(app, key).control) for key in ("rows", "how", "flag", "sizes")}
        assert kinds == {"rows": TextField, "how": Choice, "flag": Flag, "sizes": TextField}
        field(app, "rows").control.focus()
        await pilot.pause()
        assert "takes an integer from 1 to 100 (default 4)" in seen(app) and "how many rows" in seen(app)
    assert [checked.params["rows"] for checked in service.questions] == [9]


async def test_what_is_wrong_is_said_under_its_field_while_typing(opened: Callable[..., Host], service: Service) -> None:
    app = opened("few")
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        await typed(pilot, app, "rows", "400")
        assert "--rows 400: takes an integer from 1 to 100 (default 4)" in seen(app)
        assert "! rows" in seen(app) and "one field is not right yet (marked with !)" in seen(app)
        assert app.form.headless_command() is None
        asked_before = len(service.questions)
        await pilot.press("backspace")
        await settled(pilot)
        assert "takes an integer from 1 to 100 (default 4)" in seen(app)  # help goes on
        assert "--rows 400" not in seen(app) and "$ mscope run test.few --rows 40" in seen(app)
        assert len(service.questions) == asked_before + 1


async def test_running_is_refused_while_something_is_wrong_and_the_cursor_goes_there(opened: Callable[..., Host]) -> None:
    app = opened("all", params={"rows": 0})
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        field(app, "limit").control.focus()
        await pilot.press("ctrl+r")
        await settled(pilot)
        assert app.asked == [] and app.screen is app.form
        assert app.said == ["cannot run: --rows 0: takes an integer from 1 to 100 (default 4)"]
        assert app.focused is field(app, "rows").control


async def test_a_wrong_option_of_the_host_is_unfolded(opened: Callable[..., Host]) -> None:
    app = opened("few", device="tpu")
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        assert "! where and how: device tpu" in seen(app)
        await pilot.press("ctrl+r")
        await settled(pilot)
        assert not app.form.query_one("#host", Collapsible).collapsed
        assert app.focused is field(app, "device").control
        assert "--device 'tpu': write auto, cpu, cuda or cuda:N" in seen(app)


async def test_one_key_hands_the_job_over(opened: Callable[..., Host]) -> None:
    app = opened("one", [SAMPLE])
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        field(app, "rows").control.focus()
        await pilot.press("end", "2", "ctrl+r")  # at once, before anything was checked
        await settled(pilot)
        [job] = app.asked
        assert (job.analysis, job.checkpoints, job.params) == ("test.one", (SAMPLE,), {"rows": 42, "text": ""})
        assert (job.device, job.dtype, job.seed) == ("auto", "auto", 0)
        await pilot.press("ctrl+r")  # held down too long
        await settled(pilot)
        assert len(app.asked) == 1 and app.screen is app.form  # the app takes it away when the service has the job
        await pilot.press("backspace", "ctrl+r")
        await settled(pilot)
        assert [job.params["rows"] for job in app.asked] == [42, 4]


async def test_values_are_there_again_next_time_but_not_the_checkpoint(opened: Callable[..., Host]) -> None:
    app = opened("one", [SAMPLE])
    async with app.run_test() as pilot:
        await settled(pilot)
        await typed(pilot, app, "rows", "77")
        app.form.query_one("#host", Collapsible).collapsed = False
        await settled(pilot)
        await typed(pilot, app, "seed", "3")
        await pilot.press("escape")
        await settled(pilot)
        assert app.screen is not app.form and app.asked == []
    assert kept_values.last_used("test.one", 1) == {"rows": "77", "seed": "3"}
    again = opened("one", params={"text": "given"})
    async with again.run_test() as pilot:
        await settled(pilot)
        assert field(again, "rows").value == "77" and field(again, "text").value == "given"
        assert field(again, "checkpoints 0").value is None and field(again, "seed").value == "3"
    given = opened("one", params={"rows": 5})
    async with given.run_test() as pilot:
        await settled(pilot)
        assert field(given, "rows").value == "5"
        await pilot.press("ctrl+d")
        await settled(pilot)
        assert field(given, "rows").value == "4" and field(given, "seed").value == "0"


async def test_what_nobody_typed_is_not_there_the_next_time(opened: Callable[..., Host]) -> None:
    typed_in = opened("few")
    async with typed_in.run_test() as pilot:
        await settled(pilot)
        await typed(pilot, typed_in, "rows", "77")
        await pilot.press("escape")
    for rows in (5, 4):  # 4 is the default
        handed_over = opened("few", params={"rows": rows, "text": "layers.3"}, device="cpu", seed=7)
        async with handed_over.run_test() as pilot:
            await settled(pilot)
            assert (field(handed_over, "rows").value, field(handed_over, "seed").value) == (str(rows), "7")
            await pilot.press("escape")
            await settled(pilot)
        assert kept_values.last_used("test.few", 1) == {"rows": "77"}


async def test_a_form_may_be_opened_with_nothing_in_an_option(opened: Callable[..., Host]) -> None:
    app = opened("all", params={"limit": None, "data": "/d/rows.csv"})
    async with app.run_test() as pilot:
        await settled(pilot)
        await pilot.press("escape")
        await settled(pilot)
        assert app.screen is not app.form


async def test_the_service_is_asked_once_when_typing_has_stopped(
    opened: Callable[..., Host], service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = opened("few")
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)  # it was asked once about the form as it opened
        service.questions.clear()
        monkeypatch.setattr(screen, "ESTIMATE_AFTER_SECONDS", 1.0)  # from here on six keys are typed within it
        field(app, "text").control.focus()
        await pilot.press(*"abcdef")
        assert "asking what it would need ..." in seen(app)
        service.go_on = asyncio.Event()
        while not service.questions:
            await pilot.pause(0.02)
        await pilot.press("g")  # typing goes on while the service thinks
        assert field(app, "text").value == "abcdefg"
        service.go_on.set()
        await settled(pilot)
        assert [checked.params["text"] for checked in service.questions] == ["abcdef", "abcdefg"]
        assert "fits: 12 MB" in seen(app)


async def test_a_service_that_cannot_answer_keeps_nobody_from_running(opened: Callable[..., Host], service: Service) -> None:
    service.error = JobFailed("the service does not answer at /run/x; its log is /y [bold]z")
    app = opened("few")
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        assert "no estimate: the service does not answer at /run/x; its log is /y [bold]z" in seen(app)
        await pilot.press("ctrl+r")
        await settled(pilot)
        assert len(app.asked) == 1


async def test_arrows_and_enter_lead_from_field_to_field(opened: Callable[..., Host]) -> None:
    app = opened("few")
    async with app.run_test() as pilot:
        await settled(pilot)
        assert app.focused is field(app, "rows").control
        await pilot.press("down")
        assert app.focused is field(app, "text").control
        await pilot.press("up")
        assert app.focused is field(app, "rows").control
        await pilot.press("enter")
        assert app.focused is field(app, "text").control


async def test_choices_and_flags_are_changed_by_keys_and_say_it_in_words(opened: Callable[..., Host]) -> None:
    app = opened("all", params={"data": "/d"})
    async with app.run_test(size=(80, 30)) as pilot:
        await settled(pilot)
        field(app, "how").control.focus()
        await pilot.press("enter", "down", "enter")
        await settled(pilot)
        assert "--how slow" in str(app.form.headless_command())
        field(app, "flag").control.focus()
        assert "yes" in seen(app)
        await pilot.press("space")
        await settled(pilot)
        assert "--no-flag" in str(app.form.headless_command()) and field(app, "flag").value is False


async def test_another_checkpoint_can_always_be_added_where_any_number_is_taken(opened: Callable[..., Host]) -> None:
    app = opened("any", [SAMPLE])
    async with app.run_test() as pilot:
        await settled(pilot)
        assert [one.entry.label for one in app.form.query(Field)][:2] == ["checkpoint 1", "checkpoint 2"]
        field(app, "checkpoints 1").fill(SAMPLE)
        await settled(pilot)
        assert field(app, "checkpoints 2").value is None
        await pilot.press("ctrl+r")
        await settled(pilot)
        assert app.asked[0].checkpoints == (SAMPLE, SAMPLE)


async def test_a_checkpoint_that_is_none_is_said(opened: Callable[..., Host], tmp_path: Path) -> None:
    app = opened("one", [str(tmp_path / "nothing")])
    async with app.run_test(size=(100, 24)) as pilot:
        await settled(pilot)
        assert "! checkpoint" in seen(app) and "nothing" in str(field(app, "checkpoints 0").problem)


# States


async def test_a_form_that_loads_says_so(opened: Callable[..., Host], temporary_plugins: TemporaryPlugins, service: Service) -> None:
    go_on = threading.Event()

    def slow() -> Any:
        go_on.wait(10)
        return temporary_plugins.host()

    opened("few")  # writes the plugin
    app = Host(FormScreen("test.few", plugins=Plugins(slow), estimate=service))
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.pause()
        assert "loading test.few ..." in seen(app)
        await pilot.press("ctrl+r", "ctrl+d", "ctrl+s", "ctrl+o")
        assert app.screen is app.form and app.asked == []
        go_on.set()
        await settled(pilot)
        assert "loading" not in seen(app) and "rows" in seen(app)


@pytest.mark.parametrize(("id", "sentence"), [("test.fewer", "did you mean test.few?"), ("x\x1b[31m.y", "no analysis")])
async def test_an_analysis_that_is_not_there_is_a_sentence(
    opened: Callable[..., Host], temporary_plugins: TemporaryPlugins, id: str, sentence: str
) -> None:
    opened("few")
    app = Host(FormScreen(id, plugins=Plugins(temporary_plugins.host)))
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        assert sentence in seen(app) and "\x1b" not in seen(app)
        await pilot.press("escape")
        await settled(pilot)
        assert app.screen is not app.form


async def test_a_broken_plugin_is_a_sentence(temporary_plugins: TemporaryPlugins) -> None:
    temporary_plugins.write("broken", "print('[bold]noise')\nraise SystemExit('gone \\x1b[31m [bold]wrong')")
    app = Host(FormScreen("broken.one", plugins=Plugins(temporary_plugins.host)))
    async with app.run_test(size=(100, 24)) as pilot:
        await settled(pilot)
        text = " ".join(seen(app).split())
        assert "is broken" in text and "[bold]wrong" in text and "mscope plugins doctor" in text and "\x1b" not in text


async def test_an_analysis_without_options_can_be_run(opened: Callable[..., Host]) -> None:
    app = opened("nothing", ["/models/open"])
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        assert "it takes no options" in seen(app)
        await pilot.press("ctrl+r")
        await settled(pilot)
        assert app.asked[0].params == {} and app.asked[0].checkpoints == ()


async def test_sixty_options_fit_into_a_small_terminal(opened: Callable[..., Host]) -> None:
    app = opened("many")
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        await pilot.press("up", "up")  # round to the end, over where and how
        await pilot.pause()
        focused = app.focused
        assert focused is not None and focused is field(app, "p59").control, focused.query_ancestor(Field).entry.key
        assert "p59" in seen(app) and "p0 " not in seen(app) and "fits: 12 MB" in seen(app)


@pytest.mark.parametrize("size", [(80, 24), (40, 12)])
async def test_hostile_text_of_a_plugin_stays_text(opened: Callable[..., Host], size: tuple[int, int]) -> None:
    app = opened("hostile", [f"{SAMPLE}\x1b[31m"], {"text": "\u202e\x07[/]", "rosw\x1b[31m[/]": 1})
    async with app.run_test(size=size) as pilot:
        await settled(pilot)
        for key in ("text", "how", "n" * 2000, "rows"):
            field(app, key).control.focus()
            await pilot.pause()
            text = seen(app)
            assert not set("\x1b\x07\u202e") & set(text)
            if size == (80, 24):
                assert "[bold red]x[/]" in text  # the title, as it is written
        assert field(app, "text").value == "\u202e\x07[/]"  # what is drawn otherwise stays what it is
        field(app, "how").control.focus()
        await pilot.press("enter")
        await pilot.pause()
        assert not set("\x1b\x07\u202e") & set(seen(app))


async def test_ten_kilobytes_of_value_do_not_push_anything_away(opened: Callable[..., Host]) -> None:
    app = opened("few", params={"text": "x" * 10_000})
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        assert "fits: 12 MB" in seen(app) and "rows" in seen(app)
        assert str(app.form.headless_command()).count("x") >= 10_000


async def test_a_check_that_hangs_leaves_the_screen_alive(opened: Callable[..., Host]) -> None:
    app = opened("misbehaving")
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        await pilot.press(*"wait")
        await pilot.pause()
        await pilot.press(*" a bit")
        assert field(app, "text").value == "wait a bit"
        await pilot.press("escape")
        await pilot.pause()
        assert app.screen is not app.form


@pytest.mark.parametrize("how", ["print", "exit"])
async def test_a_check_that_prints_or_exits_does_not_reach_the_screen(opened: Callable[..., Host], how: str) -> None:
    app = opened("misbehaving")
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        await typed(pilot, app, "text", how)
        assert "printed by a plugin" not in seen(app)
        assert ("a plugin failed (SystemExit" in seen(app)) is (how == "exit")
        assert app.is_running


async def test_everything_in_it_explains_itself_and_the_command_is_copied(opened: Callable[..., Host]) -> None:
    app = opened("few")
    async with app.run_test() as pilot:
        await settled(pilot)
        assert field(app, "rows").explanation().title == "rows"
        assert "takes an integer from 1 to 100" in field(app, "rows").explanation().text
        copied = app.form.copied()
        assert copied is not None and copied.text == "mscope run test.few"
        assert "ctrl+r" in app.form.explanation().text.lower()


# The command is what runs


async def test_the_command_of_a_form_run_headless_is_the_job_it_asks_for(service: Service, tmp_path: Path) -> None:
    form = FormScreen("weights.stats", [SAMPLE], {"bins": 7, "only": "*weight*,'it s $HOME'"}, seed=5, estimate=service, plugins=Plugins())
    app = Host(form)
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        command = form.headless_command()
        await pilot.press("ctrl+s")
        await pilot.pause()
        await pilot.press(*"mine", "enter")
        await settled(pilot)
        await pilot.press("ctrl+r")
        await settled(pilot)
    [asked] = app.asked
    preset = kept_values.preset_path("weights.stats", "mine")
    for number, line in enumerate((command, f"mscope run weights.stats {SAMPLE} --seed 5 --params {shlex.quote(str(preset))}")):
        words = shlex.split(str(line))
        folder = tmp_path / f"run-{number}"
        subprocess.run([sys.executable, "-m", "modelscope_app.cli.main", *words[1:], "--quiet", "--out", str(folder)], check=True)
        job = json.loads((folder / "job.json").read_text())
        assert job["params"] == asked.params == {"bins": 7, "only": "*weight*,'it s $HOME'"}
        assert [checkpoint["path"] for checkpoint in job["checkpoints"]] == list(asked.checkpoints)
        assert (job["device"], job["dtype"], job["seed"]) == (asked.device, asked.dtype, asked.seed)
        assert job["command"] == command


async def test_the_service_is_started_and_asked_for_the_estimate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with background(tmp_path / "site", monkeypatch):
        app = Host(FormScreen("weights.stats", [SAMPLE], plugins=Plugins()))
        async with app.run_test(size=(80, 24)) as pilot:
            await settled(pilot)
            assert "fits: " in seen(app) and "needed (as it declares)" in seen(app) and "free on " in seen(app)
            await pilot.press("escape")
            await settled(pilot)
