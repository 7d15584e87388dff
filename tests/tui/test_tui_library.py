"""The library: recent checkpoints, folders, runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from checkpoints.checkpoint_files import ramp, write_shard
from tui.recording_host import hosted, press, settled
from tui.slow_disk import SlowCalls, until

from modelscope_app.checkpoints.glance import glance
from modelscope_app.checkpoints.samples import sample_checkpoints
from modelscope_app.locations import state_dir
from modelscope_app.runs.index import runs_dir
from modelscope_app.tui.library.folder_browser import FolderBrowser, PlaceTree
from modelscope_app.tui.library.places import MOST_ENTRIES, places_in
from modelscope_app.tui.library.recent import MOST, forget, recent, remember
from modelscope_app.tui.library.screen import LibraryScreen
from modelscope_app.tui.messages import CheckpointOpened, RunOpened

HOSTILE = "w\x1b[31m\x07\u202e[bold]x[ nothing]"


def model(folder: Path, architecture: str = "LlamaForCausalLM") -> Path:
    write_shard(folder / "model.safetensors", {"w": ramp(64, 4)})
    (folder / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    return folder


@pytest.fixture
def no_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelscope_app.checkpoints.samples.samples_folder", lambda: None)


@pytest.fixture(autouse=True)
def no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def opened(app) -> list[str]:
    return [message.path for message in app.all_sent(CheckpointOpened)]


# The store


def test_the_latest_checkpoint_comes_first_and_once(tmp_path: Path) -> None:
    for name in ("a", "b", "a"):
        remember(str(tmp_path / name))
    remember("hf:org/name", clock=lambda: 5.0)
    assert [one.path for one in recent()] == ["hf:org/name", str(tmp_path / "a"), str(tmp_path / "b")]
    forget("hf:org/name")
    assert [one.path for one in recent()] == [str(tmp_path / "a"), str(tmp_path / "b")]


def test_only_the_latest_fifty_are_kept() -> None:
    for number in range(MOST + 5):
        remember(f"/models/{number}")
    assert len(recent()) == MOST
    assert recent()[0].path == f"/models/{MOST + 4}"


def test_a_relative_path_is_kept_as_an_absolute_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    remember("model")
    assert recent()[0].path == str(tmp_path / "model")


@pytest.mark.parametrize("content", ["{", "[]", '{"checkpoints": 3}', '{"checkpoints": [3, {"path": 1}, {"path": "/a"}, {"opened": 1}]}'])
def test_a_damaged_store_counts_as_empty_and_is_written_anew(content: str) -> None:
    state_dir().mkdir(parents=True)
    (state_dir() / "recent-checkpoints.json").write_text(content)
    assert recent() == []
    remember("/models/a")
    assert [one.path for one in recent()] == ["/models/a"]


def test_a_state_folder_that_cannot_be_written_is_no_error() -> None:
    state_dir().parent.mkdir(parents=True, exist_ok=True)
    state_dir().write_text("a file stands here")
    remember("/models/a")
    assert recent() == []


# What is at a path


def test_a_glance_tells_checkpoints_series_and_the_rest_apart(tmp_path: Path) -> None:
    model(tmp_path / "one")
    for step in (1, 2):
        model(tmp_path / "run" / f"step_{step}")
    (tmp_path / "plain").mkdir()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "model.safetensors").write_bytes(b"short")
    found = glance(tmp_path / "one")
    assert found is not None
    assert found.words.startswith("LlamaForCausalLM, F32, 1.1 kB")
    series = glance(tmp_path / "run")
    assert series is not None
    assert series.words == "series of 2, LlamaForCausalLM, F32"
    assert glance(tmp_path / "plain") is None
    assert glance(tmp_path / "one" / "config.json") is None
    damaged, gone = glance(tmp_path / "damaged"), glance(tmp_path / "nothing")
    assert damaged is not None and damaged.kind == "damaged" and "too short" in damaged.words
    assert gone is not None and gone.kind == "gone"


def test_a_very_long_folder_is_listed_in_part(tmp_path: Path) -> None:
    for number in range(MOST_ENTRIES + 3):
        (tmp_path / f"f{number}.safetensors").touch()
    places = places_in(str(tmp_path))
    assert len(places) == MOST_ENTRIES + 1
    assert places[-1].name == "… 3 more; type a path to get there"
    assert [place.name for place in places[:3]] == ["f0.safetensors", "f1.safetensors", "f2.safetensors"]


# Recent


async def test_without_recent_checkpoints_the_page_says_what_to_do(no_samples: None, tmp_path: Path) -> None:
    async with hosted(LibraryScreen(tmp_path)) as (app, pilot):
        assert "No recent checkpoints. Press 2 to browse folders" in app.text()
        await press(pilot, "enter", "x")
        assert not opened(app)


async def test_without_recent_checkpoints_the_samples_are_offered(tmp_path: Path) -> None:
    async with hosted(LibraryScreen(tmp_path)) as (app, pilot):
        assert "Or open one of the samples below" in app.text()
        assert "digits-mlp" in app.text()
        await press(pilot, "enter")
        assert opened(app) == [str(sample_checkpoints()[0])]


async def test_recent_checkpoints_say_what_they_are_and_enter_opens_one(no_samples: None, tmp_path: Path) -> None:
    remember(str(model(tmp_path / "first")), clock=lambda: 1000.0)
    remember(str(model(tmp_path / "second")), clock=lambda: 2000.0)
    async with hosted(LibraryScreen(tmp_path, clock=lambda: 2120.0)) as (app, pilot):
        assert "second  LlamaForCausalLM, F32" in app.text()
        assert "2 min ago" in app.text()
        await press(pilot, "down", "enter")
        assert opened(app) == [str(tmp_path / "first")]


async def test_a_path_that_is_gone_says_so_does_not_open_and_can_be_taken_off(no_samples: None, tmp_path: Path) -> None:
    remember(str(model(tmp_path / "there")))
    remember(str(tmp_path / "away"))
    async with hosted(LibraryScreen(tmp_path)) as (app, pilot):
        assert "! away  gone" in app.text()
        await press(pilot, "enter")
        assert not opened(app)
        await press(pilot, "x")
        assert [one.path for one in recent()] == [str(tmp_path / "there")]
        await press(pilot, "enter")
        assert opened(app) == [str(tmp_path / "there")]


async def test_a_path_that_breaks_what_looks_at_it_is_a_sentence_and_the_next_one_is_looked_at(
    no_samples: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks_at_odd(path: str) -> object:
        if path.endswith("odd"):
            raise RecursionError("too odd")
        return glance(path)

    monkeypatch.setattr("modelscope_app.checkpoints.glance.glance", breaks_at_odd)
    remember(str(model(tmp_path / "even")))
    remember(str(model(tmp_path / "odd")))
    async with hosted(LibraryScreen(tmp_path)) as (app, _):
        assert "! odd  cannot be looked into: too odd" in app.text()
        assert "even  LlamaForCausalLM, F32" in app.text()


@pytest.mark.parametrize("size", [(40, 12), (80, 24)])
async def test_hostile_paths_are_harmless(size: tuple[int, int], no_samples: None, tmp_path: Path) -> None:
    remember(str(model(tmp_path / HOSTILE, architecture=HOSTILE * 50)))
    remember("/gone/" + "x" * 10_000)
    async with hosted(LibraryScreen(tmp_path), size=size) as (app, pilot):
        assert not any(sign in app.text() for sign in ("\x1b", "\x07", "\u202e"))
        await press(pilot, "2", "down", "left")
        assert not any(sign in app.text() for sign in ("\x1b", "\x07", "\u202e"))
        await press(pilot, "enter")
        assert opened(app) == [str(tmp_path / HOSTILE)]


# Folders


async def test_folders_mark_checkpoints_and_series_and_enter_opens_them(tmp_path: Path) -> None:
    model(tmp_path / "one")
    for step in (1, 2):
        model(tmp_path / "run" / f"step_{step}")
    (tmp_path / "sub" / "deeper").mkdir(parents=True)
    model(tmp_path / "sub" / "inside")
    async with hosted(LibraryScreen(tmp_path)) as (app, pilot):
        await press(pilot, "2")
        assert "* one/" in app.text()
        assert "LlamaForCausalLM, F32, 1.1 kB" in app.text()
        assert "+ run/" in app.text()
        assert "series of 2" in app.text()
        await press(pilot, "enter", "down", "enter")
        assert opened(app) == [str(tmp_path / "one"), str(tmp_path / "run")]
        await press(pilot, "down", "enter")
        assert "* inside/" in app.text()
        assert "deeper/" in app.text()


async def test_the_folder_above_is_a_key_away(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    async with hosted(LibraryScreen(tmp_path / "sub")) as (app, pilot):
        await press(pilot, "2")
        assert "no folders and no safetensors files" in app.text()
        await press(pilot, "backspace")
        assert "sub/" in app.text()


@pytest.mark.parametrize("count", [3, 90, 2100])
async def test_the_cursor_stands_on_the_folder_one_came_from(tmp_path: Path, count: int) -> None:
    for number in range(count):
        (tmp_path / f"sub{number}" / "inside").mkdir(parents=True)
    last = tmp_path / f"sub{count - 1}"
    async with hosted(LibraryScreen(last)) as (app, pilot):
        await press(pilot, "2", "backspace")
        assert f"sub{count - 1}/" in app.text()
        assert app.screen.query_one(FolderBrowser).copied().text == str(last)
        await press(pilot, "enter", "down")
        assert app.screen.query_one(FolderBrowser).copied().text == str(last / "inside")
        await press(pilot, "backspace")
        assert app.screen.query_one(FolderBrowser).copied().text == str(tmp_path)


@pytest.fixture
def slow_listing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SlowCalls:
    """Of the folder `top/slow`, which holds `in-slow`, beside `top/other`, which holds `in-other`."""
    (tmp_path / "top" / "slow" / "in-slow").mkdir(parents=True)
    (tmp_path / "top" / "other" / "in-other").mkdir(parents=True)
    slow = SlowCalls(places_in, lambda folder: folder == str(tmp_path / "top" / "slow"))
    monkeypatch.setattr("modelscope_app.tui.library.places.places_in", slow)
    monkeypatch.setattr("modelscope_app.tui.library.folder_browser.places_in", slow)
    return slow


async def test_a_listing_that_comes_late_leaves_the_folder_shown_by_then_alone(tmp_path: Path, slow_listing: SlowCalls) -> None:
    async with hosted(LibraryScreen(tmp_path / "top" / "slow")) as (app, pilot):
        await pilot.press("2")
        await until(pilot, lambda: slow_listing.started)
        await pilot.press("backspace")
        await until(pilot, lambda: "other/" in app.text())
        await pilot.press("home")
        slow_listing.finish.set()
        await settled(pilot)
        assert app.screen.query_one(FolderBrowser).copied() is None, "the cursor stays on the folder above"
        await press(pilot, "down", "enter")
        assert "in-other/" in app.text()
        assert "in-slow/" not in app.text()


async def test_a_listing_for_a_line_that_is_gone_is_dropped(tmp_path: Path, slow_listing: SlowCalls) -> None:
    for number in range(8):
        (tmp_path / f"beside{number}").mkdir()
    async with hosted(LibraryScreen(tmp_path / "top")) as (app, pilot):
        await press(pilot, "2", "down")
        await pilot.press("enter")
        await until(pilot, lambda: slow_listing.started)
        await pilot.press("backspace")
        await until(pilot, lambda: "top/" in app.text())
        slow_listing.finish.set()
        await settled(pilot)
        assert "in-slow/" not in app.text()
        tree = app.screen.query_one(PlaceTree)
        assert all(tree.get_node_by_id(node.id) is node for node in tree.root.children)


async def test_a_folder_closed_while_it_is_listed_stays_closed_and_opens_with_what_was_found(
    tmp_path: Path, slow_listing: SlowCalls
) -> None:
    async with hosted(LibraryScreen(tmp_path / "top")) as (app, pilot):
        await press(pilot, "2", "down")
        await pilot.press("enter")
        await until(pilot, lambda: slow_listing.started)
        await pilot.press("left")
        slow_listing.finish.set()
        await settled(pilot)
        assert "in-slow/" not in app.text()
        await press(pilot, "right")
        assert "in-slow/" in app.text()
        assert slow_listing.started == 1


async def test_what_breaks_while_a_folder_is_listed_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_home() -> Path:
        raise RuntimeError("there is no home")

    monkeypatch.setattr("modelscope_app.checkpoints.hub_cache.hub_cache", without_home)
    async with hosted(LibraryScreen(tmp_path)) as (app, pilot):
        await press(pilot, "2")
        assert "cannot be listed: there is no home" in app.text()


async def test_a_folder_that_cannot_be_listed_says_why(tmp_path: Path) -> None:
    async with hosted(LibraryScreen(tmp_path / "nothing")) as (app, pilot):
        await press(pilot, "2")
        assert "cannot be listed: No such file" in app.text()


async def test_a_damaged_checkpoint_says_why_and_does_not_open(tmp_path: Path) -> None:
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "model.safetensors").write_bytes(b"short")
    async with hosted(LibraryScreen(tmp_path), size=(120, 24)) as (app, pilot):
        await press(pilot, "2", "enter")
        assert "! damaged/" in app.text()
        assert "too short to be safetensors" in app.text()
        assert not opened(app)


async def test_models_of_the_local_cache_are_listed_by_name(no_hub: Path, tmp_path: Path) -> None:
    snapshot = model(no_hub / "models--org--tiny" / "snapshots" / "0123456789abcdef0123456789abcdef01234567")
    refs = snapshot.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text(snapshot.name)
    (tmp_path / "here").mkdir()
    async with hosted(LibraryScreen(tmp_path / "here")) as (app, pilot):
        await press(pilot, "2", "down", "down", "enter")
        assert "* hf:org/tiny" in app.text()
        await press(pilot, "down", "enter")
        assert opened(app) == ["hf:org/tiny"]


async def test_a_typed_path_opens_a_checkpoint_a_run_or_a_folder(tmp_path: Path, made_run) -> None:
    model(tmp_path / "one")
    (tmp_path / "sub").mkdir()
    run = made_run(folder=tmp_path / "run")
    async with hosted(LibraryScreen(tmp_path), size=(200, 24)) as (app, pilot):
        await press(pilot, "2", "slash", *"on", "right", "enter")
        assert opened(app) == [str(tmp_path / "one")]
        await press(pilot, "escape", "slash", "ctrl+u", *"run", "enter")
        assert [message.folder for message in app.all_sent(RunOpened)] == [run.folder]
        await press(pilot, "ctrl+u", *"nothing", "enter")
        assert "gone: nothing is there" in app.text()
        await press(pilot, "ctrl+u", *"hf:org/absent", "enter")
        assert "not in the local Hugging Face cache" in app.text()
        await press(pilot, "ctrl+u", *"sub", "enter")
        assert str(tmp_path / "sub") in app.text()
        assert "no folders and no safetensors files" in app.text()
        assert len(opened(app)) == 1


async def test_a_folder_with_a_damaged_file_in_it_can_be_gone_into_by_typing_its_path(tmp_path: Path) -> None:
    (tmp_path / "mixed" / "inside").mkdir(parents=True)
    (tmp_path / "mixed" / "model.safetensors").write_bytes(b"short")
    async with hosted(LibraryScreen(tmp_path), size=(160, 24)) as (app, pilot):
        await press(pilot, "2", "slash", *"mixed", "enter")
        assert "inside/" in app.text() and "too short to be safetensors" in app.text()
        assert not opened(app)


async def test_a_path_pasted_behind_the_folder_stands_for_itself(tmp_path: Path) -> None:
    model(tmp_path / "one")
    (tmp_path / "elsewhere").mkdir()
    async with hosted(LibraryScreen(tmp_path / "elsewhere"), size=(160, 24)) as (app, pilot):
        await press(pilot, "2", "slash", *str(tmp_path / "one"), "enter")
        assert opened(app) == [str(tmp_path / "one")]


@pytest.fixture
def slow_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SlowCalls:
    """At the checkpoint `slow/model`, while `other` is none."""
    model(tmp_path / "slow" / "model")
    (tmp_path / "other").mkdir()
    slow = SlowCalls(glance, lambda path: str(path).endswith("/model"))
    monkeypatch.setattr("modelscope_app.checkpoints.glance.glance", slow)
    return slow


@pytest.mark.parametrize("leave", [("escape", "backspace"), ("escape", "1"), ("ctrl+u", *"../other", "enter")])
async def test_a_typed_path_that_is_known_too_late_opens_nothing(
    no_samples: None, tmp_path: Path, slow_look: SlowCalls, leave: tuple[str, ...]
) -> None:
    async with hosted(LibraryScreen(tmp_path / "other"), size=(200, 24)) as (app, pilot):
        await press(pilot, "2", "slash")
        await pilot.press("ctrl+u", *"../slow/model", "enter")
        await until(pilot, lambda: slow_look.started)
        await pilot.press(*leave)
        slow_look.finish.set()
        await settled(pilot)
        assert not opened(app)
        await press(pilot, "escape", "2")
        assert "looking ..." not in app.text()


async def test_a_typed_path_that_breaks_what_looks_at_it_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(path: object) -> Path:
        raise RecursionError(f"too odd: {HOSTILE}")

    monkeypatch.setattr("modelscope_app.checkpoints.finding.absolute", breaks)
    async with hosted(LibraryScreen(tmp_path), size=(200, 24)) as (app, pilot):
        await press(pilot, "2", "slash", "enter")
        assert "it cannot be opened: too odd: w\\x1b" in app.text()


# Runs and the screen


async def test_the_third_page_lists_every_run(tmp_path: Path, made_run) -> None:
    run = made_run(folder=runs_dir() / "a", facts={"tensors": 3})
    async with hosted(LibraryScreen(tmp_path)) as (app, pilot):
        await press(pilot, "3")
        assert "tensors 3" in app.text()
        await press(pilot, "enter")
        assert [message.folder for message in app.all_sent(RunOpened)] == [run.folder]


async def test_the_screen_can_begin_with_any_page(tmp_path: Path) -> None:
    async with hosted(LibraryScreen(tmp_path, page="all-runs")) as (app, _):
        assert "No runs yet" in app.text()
        assert app.screen.explanation().title == "Library"
