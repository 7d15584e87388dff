"""The overview page of a checkpoint and of a series."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from checkpoints.checkpoint_files import entry, ramp, write_file, write_shard, write_sharded
from tui.recording_host import hosted, press, settled
from tui.slow_disk import SlowCalls, until

from modelscope_app.api import BadInput
from modelscope_app.checkpoints import open_checkpoint
from modelscope_app.checkpoints.chat_template import chat_templates
from modelscope_app.tui.checkpoint.entries import read_inside
from modelscope_app.tui.checkpoint.opening import opened
from modelscope_app.tui.checkpoint.overview_page import EntryTree, OverviewPage
from modelscope_app.tui.checkpoint.reader import Reader
from modelscope_app.tui.messages import CheckpointOpened, Selected

HOSTILE = "w\x1b[31m\x07\u202e[bold]x[/nothing]"


def model(folder: Path, **config: object) -> Path:
    tensors = {f"model.layers.{layer}.mlp.up_proj.weight": ramp(4, 6) for layer in range(30)}
    write_shard(folder / "model.safetensors", {"model.embed_tokens.weight": ramp(9, 4), **tensors}, {"format": "pt"})
    whole = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "tie_word_embeddings": True, "hidden_size": 4, **config}
    (folder / "config.json").write_text(json.dumps(whole))
    return folder


def with_template(folder: Path, template: object) -> Path:
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    (folder / "tokenizer.json").write_text("{}")
    return folder


def series(folder: Path, *steps: int) -> Path:
    for step in steps:
        model(folder / f"step_{step}")
    return folder


async def to_line(app, pilot, start: str) -> None:
    """Put the cursor on the first line whose text begins so."""
    tree = app.query_one(EntryTree)
    to_see = list(tree.root.children)
    while to_see:
        node = to_see.pop(0)
        if node.data.line.name.strip().startswith(start):
            tree.move_cursor(node)
            await pilot.pause()
            return
        to_see = [*(node.children if node.is_expanded else []), *to_see]
    raise AssertionError(f"no line {start!r}")


async def test_the_page_says_what_the_checkpoint_is(tmp_path: Path) -> None:
    async with hosted(OverviewPage(opened(model(tmp_path)))) as (app, _):
        for expected in (
            "LlamaForCausalLM (llama)",
            "756 in 31 tensors",
            "3.0 kB in model.safetensors",
            "lm_head.weight is model.embed_tokens.weight",
            "30 x model.layers.*",
            "720  95.2% ███",
            "hidden_size 4",
            "format: pt",
            "1 and then f computes it",
        ):
            assert expected in app.text()


async def test_the_page_begins_with_what_its_head_does_not_say(tmp_path: Path) -> None:
    async with hosted(OverviewPage(opened(model(tmp_path / "llama")))) as (app, pilot):
        assert app.lines()[0].split() == ["architecture", "LlamaForCausalLM", "(llama)"]
        assert app.query_one(OverviewPage).copied().text == "LlamaForCausalLM (llama)"
        await to_line(app, pilot, "module sizes")
        assert app.query_one(OverviewPage).copied().text == str(tmp_path / "llama")
    async with hosted(OverviewPage(opened(series(tmp_path / "run", 5, 10)))) as (app, _):
        assert app.lines()[0].split()[:3] == ["series", "2", "checkpoints"]


async def test_config_opens_to_every_entry_and_entries_inside_it(tmp_path: Path) -> None:
    folder = model(tmp_path, rope_scaling={"factor": 8, "kinds": ["a", "b"]}, note="n" * 500)
    async with hosted(OverviewPage(opened(folder)), size=(80, 40)) as (app, pilot):
        await press(pilot, "tab")
        await to_line(app, pilot, "config")
        await press(pilot, "enter")
        assert "tie_word_embeddings" in app.text()
        await to_line(app, pilot, "rope_scaling")
        await press(pilot, "enter")
        assert "factor" in app.text()
        await to_line(app, pilot, "note")
        assert app.query_one(OverviewPage).copied().text == "n" * 500
        await press(pilot, "enter")
        assert isinstance(app.screen, Reader)
        assert app.text().count("n") >= 500
        await press(pilot, "escape")
        assert not isinstance(app.screen, Reader)


async def test_the_chat_template_is_shown_cut_and_read_in_full_on_enter(tmp_path: Path) -> None:
    lines = [f"{{% line {number} %}}\x1b[2J" for number in range(40)]
    folder = with_template(model(tmp_path), "\n".join(lines))
    async with hosted(OverviewPage(opened(folder)), size=(80, 50)) as (app, pilot):
        await press(pilot, "tab")
        await to_line(app, pilot, "chat template")
        await press(pilot, "enter")
        assert "{% line 11 %}\\x1b[2J" in app.text()
        assert "{% line 12 %}" not in app.text()
        assert "28 more lines" in app.text()
        await press(pilot, "down", "enter")
        assert "{% line 39 %}\\x1b[2J" in app.text()
        assert app.screen.copied().text == "\n".join(lines)


async def test_a_template_that_cannot_be_read_is_a_sentence(tmp_path: Path) -> None:
    folder = with_template(model(tmp_path), "hello")
    checkpoint = opened(folder)
    (folder / "tokenizer_config.json").write_text("{")
    async with hosted(OverviewPage(checkpoint), size=(240, 24)) as (app, pilot):
        await press(pilot, "tab")
        await to_line(app, pilot, "chat template")
        await press(pilot, "enter")
        assert "tokenizer_config.json" in app.text().split("chat template")[1]


async def test_what_breaks_while_a_section_is_read_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(_: object) -> None:
        raise RecursionError("too odd")

    monkeypatch.setattr("modelscope_app.checkpoints.chat_template.chat_templates", breaks)
    async with hosted(OverviewPage(opened(with_template(model(tmp_path), "hello"))), size=(240, 40)) as (app, pilot):
        await press(pilot, "tab")
        await to_line(app, pilot, "chat template")
        await press(pilot, "enter")
        assert "cannot be read: too odd" in app.text()


async def test_a_section_read_for_a_checkpoint_shown_before_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = SlowCalls(read_inside, lambda entry: entry.reads_files)
    monkeypatch.setattr("modelscope_app.tui.checkpoint.overview_page.read_inside", slow)
    run = series(tmp_path / "run", *range(20))
    folder = with_template(model(tmp_path / "one"), "hello there")
    async with hosted(OverviewPage(opened(folder)), size=(80, 40)) as (app, pilot):
        await press(pilot, "tab")
        await to_line(app, pilot, "chat template")
        await pilot.press("enter")
        await until(pilot, lambda: slow.started)
        app.query_one(OverviewPage).show(opened(run))
        slow.finish.set()
        await settled(pilot)
        assert "hello there" not in app.text()
        tree = app.query_one(EntryTree)
        assert all(tree.get_node_by_id(node.id) is node for section in tree.root.children for node in section.children)


async def test_f_computes_the_fingerprint(tmp_path: Path) -> None:
    checkpoint = opened(model(tmp_path))
    async with hosted(OverviewPage(checkpoint)) as (app, pilot):
        await press(pilot, "tab", "f")
        assert checkpoint.checkpoint is not None
        assert checkpoint.checkpoint.fingerprint in app.text()


async def test_a_fingerprint_of_changed_files_is_a_sentence(tmp_path: Path) -> None:
    checkpoint = opened(model(tmp_path))
    (tmp_path / "model.safetensors").unlink()
    async with hosted(OverviewPage(checkpoint), size=(200, 40)) as (app, pilot):
        await press(pilot, "tab", "f")
        assert "is gone since the checkpoint was opened" in app.text()


async def test_a_fingerprint_that_breaks_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(_: object) -> None:
        raise RecursionError("too odd")

    monkeypatch.setattr("modelscope_app.checkpoints.fingerprint.fingerprint", breaks)
    async with hosted(OverviewPage(opened(model(tmp_path))), size=(80, 40)) as (app, pilot):
        await press(pilot, "tab", "f")
        assert "cannot be computed: too odd" in app.text()


async def test_shards_are_listed(tmp_path: Path) -> None:
    shards = {f"model-0000{number}-of-00003.safetensors": {f"w{number}": ramp(2)} for number in (1, 2, 3)}
    async with hosted(OverviewPage(opened(write_sharded(tmp_path, shards))), size=(80, 40)) as (app, pilot):
        assert "24 bytes in 3 shards" in app.text()
        await press(pilot, "tab")
        await to_line(app, pilot, "files")
        await press(pilot, "enter")
        assert "model-00002-of-00003.safetensors" in app.text()


async def test_a_member_of_a_series_shows_the_others_and_opens_one(tmp_path: Path) -> None:
    folder = series(tmp_path, 5, 10)
    async with hosted(OverviewPage(opened(folder / "step_5")), size=(80, 40)) as (app, pilot):
        assert "step 5 of 5, 10" in app.text()
        await press(pilot, "tab")
        await to_line(app, pilot, "series")
        await press(pilot, "enter")
        await to_line(app, pilot, "step 10")
        await press(pilot, "enter")
        assert [message.path for message in app.all_sent(CheckpointOpened)] == [str(folder / "step_10")]
        selected = app.all_sent(Selected)[-1].selection
        assert selected is not None
        assert (selected.kind, selected.value) == ("checkpoint", str(folder / "step_10"))


async def test_a_series_is_a_table_of_its_members(tmp_path: Path) -> None:
    async with hosted(OverviewPage(opened(series(tmp_path, 10, 2)))) as (app, pilot):
        for expected in ("2 checkpoints of one training run", "same tensors and shapes", "step 2 ", "step 10", "756 in 31 tensors"):
            assert expected in app.text()
        await press(pilot, "tab")
        await to_line(app, pilot, "step 10")
        await press(pilot, "enter")
        assert [message.path for message in app.all_sent(CheckpointOpened)] == [str(tmp_path / "step_10")]


async def test_a_series_says_how_its_members_differ_and_which_cannot_be_opened(tmp_path: Path) -> None:
    series(tmp_path, 1, 2)
    write_shard(tmp_path / "step_2" / "model.safetensors", {"other": ramp(2)})
    async with hosted(OverviewPage(opened(tmp_path))) as (app, _):
        assert "step_2 lacks the tensor model.embed_tokens.weight" in app.text()
    (tmp_path / "step_1" / "model.safetensors").write_bytes(b"short")
    found = opened(tmp_path)
    assert found.tensors_in == str(tmp_path / "step_2")
    async with hosted(OverviewPage(found), size=(120, 24)) as (app, pilot):
        assert "1 of 2; the lines below say why" in app.text()
        await press(pilot, "tab")
        await to_line(app, pilot, "step 1")
        await press(pilot, "enter")
        assert isinstance(app.screen, Reader)
        assert not app.all_sent(CheckpointOpened)


async def test_loading_and_error_have_a_sentence(tmp_path: Path) -> None:
    async with hosted(OverviewPage()) as (app, pilot):
        assert "Reading headers" in app.text()
        app.query_one(OverviewPage).fail(HOSTILE)
        await press(pilot)
        assert "\\x1b[31m" in app.text()
        app.query_one(OverviewPage).show(opened(model(tmp_path)))
        await press(pilot)
        assert "LlamaForCausalLM" in app.text()


async def test_a_checkpoint_with_nothing_in_it_or_around_it_is_shown(tmp_path: Path) -> None:
    write_file(tmp_path / "model.safetensors", {})
    async with hosted(OverviewPage(opened(tmp_path))) as (app, _):
        for expected in ("unknown: no config.json says it", "0 in 0 tensors", "none: there is no config.json"):
            assert expected in app.text()


@pytest.mark.parametrize("size", [(20, 10), (80, 24)])
async def test_hostile_text_is_harmless_wherever_it_stands(size: tuple[int, int], tmp_path: Path) -> None:
    folder = tmp_path / "hostile\x1b[2J"
    header = {
        "__metadata__": {HOSTILE: HOSTILE * 400},
        HOSTILE: entry("F32", [2], 0, 8),
        f"layers.0.{HOSTILE}.w": entry(HOSTILE, [2], 8, 16),
    }
    write_file(folder / "model.safetensors", header, bytes(16))
    config = {"architectures": [HOSTILE], "model_type": HOSTILE, HOSTILE: {HOSTILE: [HOSTILE]}, "deep": [[[[[[1]]]]]]}
    (folder / "config.json").write_text(json.dumps(config))
    with_template(folder, HOSTILE)
    async with hosted(OverviewPage(opened(folder)), size=size) as (app, pilot):
        await press(pilot, "tab")
        for section in ("config", "tokenizer", "chat template", "metadata", "files"):
            await to_line(app, pilot, section)
            await press(pilot, "right", "down", "right")
        assert not any(sign in app.text() for sign in ("\x1b", "\x07", "\u202e"))
        assert max(map(len, app.lines())) <= size[0]


def test_templates_of_their_own_go_before_those_in_the_config(tmp_path: Path) -> None:
    folder = with_template(model(tmp_path), [{"name": "default", "template": "a"}, {"name": "tools", "template": "b"}, {"name": "broken"}])
    assert chat_templates(open_checkpoint(folder)) == [("tokenizer_config.json: default", "a"), ("tokenizer_config.json: tools", "b")]
    (folder / "chat_template.jinja").write_text("own")
    assert chat_templates(open_checkpoint(folder)) == [("chat_template.jinja", "own")]


def test_what_is_no_checkpoint_raises_the_sentence(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no \.safetensors file"):
        opened(tmp_path)
