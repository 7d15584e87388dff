"""The tensor tree and one tensor, as somebody at the keyboard meets them."""

from __future__ import annotations

import json
from pathlib import Path

import polars
import pytest
from checkpoints.checkpoint_files import entry, ramp, write_file, write_shard
from tui.recording_host import hosted, press

from modelscope_app.runs.folder import RunFolder
from modelscope_app.runs.index import runs_dir
from modelscope_app.tui.checkpoint.opening import Opened, opened
from modelscope_app.tui.checkpoint.statistics import CHEAP_BYTES
from modelscope_app.tui.checkpoint.tensor_detail import TensorDetail
from modelscope_app.tui.checkpoint.tensor_groups import MOST_LINES, Group, top_groups
from modelscope_app.tui.checkpoint.tensor_tree import MOST_MATCHES, TensorChosen, TensorTree
from modelscope_app.tui.messages import AnalysisChosen, RunOpened, Selected

HOSTILE = "w\x1b[31m\x07\u202e[bold]x[/nothing]"


def model(folder: Path, layers: int = 12) -> Path:
    tensors = {"model.embed_tokens.weight": ramp(9, 4), "model.norm.weight": ramp(4)}
    for layer in range(layers):
        tensors[f"model.layers.{layer}.mlp.up_proj.weight"] = ramp(4, 6)
        tensors[f"model.layers.{layer}.self_attn.q_proj.weight"] = ramp(4, 4)
    write_shard(folder / "model.safetensors", tensors, {"format": "pt"})
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def named(folder: Path, *names: str) -> Opened:
    header = {name: entry("F32", [1], 4 * at, 4 * at + 4) for at, name in enumerate(names)}
    write_file(folder / "model.safetensors", header, bytes(4 * len(names)))
    return opened(folder)


def labels(groups: list[Group]) -> list[str]:
    return [group.label for group in groups]


def test_repeated_layers_are_one_line_that_opens_into_modules_and_then_instances(tmp_path: Path) -> None:
    groups = list(opened(model(tmp_path)).groups)
    assert labels(groups) == ["model.embed_tokens.weight", "12 x model.layers.*", "model.norm.weight"]
    inside = groups[1].children()
    assert labels(inside) == ["mlp.up_proj.weight", "self_attn.q_proj.weight"]
    instances = inside[0].children()
    assert labels(instances) == [f"layers.{layer}" for layer in range(12)]
    assert instances[10].tensor is not None
    assert instances[10].tensor.name == "model.layers.10.mlp.up_proj.weight"


def test_experts_of_a_mixture_never_make_a_level_longer_than_a_hundred_lines(tmp_path: Path) -> None:
    names = [f"m.layers.{layer}.mlp.experts.{expert}.up.weight" for layer in range(3) for expert in range(260)]
    to_see = list(named(tmp_path, *names).groups)
    assert labels(to_see) == ["780 x m.layers.*.mlp.experts.*.up.weight"]
    seen = 0
    while to_see:
        children = to_see.pop().children()
        assert len(children) <= MOST_LINES
        seen += sum(child.tensor is not None for child in children)
        to_see += children
    assert seen == len(names)


@pytest.mark.parametrize(
    "names",
    [
        ("a", "a.b", "a.b.c"),
        ("0", "1", "2"),
        ("layers.0.w", "layers.1.w", "layers.extra.w", "layers"),
        tuple(f"flat{at}" for at in range(250)),
        (".".join("ab" * 300), ".".join("ab" * 300) + ".c"),
        ("layers.1.w", "layers.01.w"),
        ("", ".", ".."),
    ],
    ids=["a tensor that is a module too", "only numbers", "numbers and names", "flat", "deep", "leading zeros", "nothing but dots"],
)
def test_every_tensor_is_found_in_the_tree_exactly_once(names: tuple[str, ...], tmp_path: Path) -> None:
    to_see, found = list(named(tmp_path, *names).groups), []
    while to_see:
        group = to_see.pop()
        found += [group.tensor.name] if group.tensor is not None else []
        to_see += group.children()
    assert sorted(found) == sorted(names)


def test_no_tensors_make_no_groups() -> None:
    assert top_groups([]) == []


async def test_enter_opens_layers_and_then_shows_a_tensor(tmp_path: Path) -> None:
    checkpoint = opened(model(tmp_path))
    async with hosted(TensorTree(checkpoint), size=(40, 24)) as (app, pilot):
        assert "26 tensors" in app.text()
        assert "▶ 12 x model.layers.*" in app.text()
        await press(pilot, "tab", "down", "enter", "down", "right", "down", "down", "down")
        assert "layers.2" in app.text()
        await press(pilot, "enter")
        [chosen] = app.all_sent(TensorChosen)
        assert (chosen.header.name, chosen.checkpoint) == ("model.layers.2.mlp.up_proj.weight", str(tmp_path))
        selected = app.all_sent(Selected)[-1].selection
        assert selected is not None
        assert (selected.kind, selected.value, selected.checkpoint) == ("tensor", chosen.header.name, str(tmp_path))
        await press(pilot, "left", "left")
        assert "layers.2" not in app.text()


async def test_a_search_narrows_while_typing_and_escape_brings_the_tree_back(tmp_path: Path) -> None:
    async with hosted(TensorTree(opened(model(tmp_path))), size=(60, 24)) as (app, pilot):
        await press(pilot, "tab", "down", "enter")
        before = app.text()
        await press(pilot, "slash", *"LAYERS.1 up")
        assert "3 of 26 tensors" in app.text()
        assert "model.layers.10.mlp.up_proj.weight" in app.text()
        await press(pilot, "down", "down", "enter")
        assert [message.header.name for message in app.all_sent(TensorChosen)] == ["model.layers.10.mlp.up_proj.weight"]
        await press(pilot, "escape")
        assert app.text() == before


async def test_a_search_that_finds_one_tensor_shows_it_on_enter(tmp_path: Path) -> None:
    async with hosted(TensorTree(opened(model(tmp_path))), size=(60, 24)) as (app, pilot):
        await press(pilot, "tab", "slash", *"norm", "enter")
        assert [message.header.name for message in app.all_sent(TensorChosen)] == ["model.norm.weight"]


async def test_a_search_without_a_match_says_so(tmp_path: Path) -> None:
    async with hosted(TensorTree(opened(model(tmp_path))), size=(60, 24)) as (app, pilot):
        await press(pilot, "tab", "slash", *"zzz", "enter")
        assert "0 of 26 tensors" in app.text()
        assert not app.all_sent(TensorChosen)


async def test_many_matches_are_counted_and_the_first_shown(tmp_path: Path) -> None:
    names = [f"m.layers.{layer}.experts.{expert}.up.weight" for layer in range(4) for expert in range(200)]
    async with hosted(TensorTree(named(tmp_path, *names)), size=(40, 24)) as (app, pilot):
        await press(pilot, "tab", "slash", *"up")
        assert f"800 of 800 tensors, {MOST_MATCHES} shown" in app.text()
        assert "* in m.layers.*.up.weight" in app.text()
        assert "0.experts.2 " in app.text()


async def test_a_tensor_asked_for_by_name_is_opened_to(tmp_path: Path) -> None:
    async with hosted(TensorTree(opened(model(tmp_path))), size=(40, 24)) as (app, pilot):
        tree = app.query_one(TensorTree)
        assert tree.reveal("model.layers.7.self_attn.q_proj.weight")
        await press(pilot, "tab")
        assert tree.tensor is not None
        assert tree.tensor.name == "model.layers.7.self_attn.q_proj.weight"
        assert not tree.reveal("no such tensor")


async def test_a_large_checkpoint_is_grouped_after_the_first_paint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelscope_app.tui.checkpoint.tensor_tree._GROUPED_AT_ONCE", 5)
    monkeypatch.setattr("modelscope_app.tui.checkpoint.tensor_tree._GROUPED_AFTER_SECONDS", 0.001)
    checkpoint = opened(model(tmp_path))
    assert "groups" not in vars(checkpoint)
    async with hosted(TensorTree(checkpoint), size=(40, 24)) as (app, pilot):
        await press(pilot, "tab")
        assert "12 x model.layers.*" in app.text()
        assert app.query_one(TensorTree).reveal("model.layers.7.mlp.up_proj.weight")


async def test_the_tree_says_that_it_reads_that_it_failed_and_that_there_is_nothing(tmp_path: Path) -> None:
    async with hosted(TensorTree(), size=(40, 24)) as (app, pilot):
        assert "Reading headers" in app.text()
        app.query_one(TensorTree).fail(f"{HOSTILE} is damaged")
        await press(pilot, "slash")
        assert "is damaged" in app.text()
        assert "\x1b" not in app.text()
        app.query_one(TensorTree).show(named(tmp_path))
        await press(pilot)
        assert "There is no tensor in it." in app.text()
        assert "0 tensors" in app.text()


@pytest.mark.parametrize("width", [20, 28, 80])
async def test_hostile_and_very_long_names_stay_in_their_line(width: int, tmp_path: Path) -> None:
    names = (HOSTILE, "x" * 10_000, "layers.0." + "y" * 10_000, "layers.1." + "y" * 10_000, "字" * 300)
    async with hosted(TensorTree(named(tmp_path, *names)), size=(width, 24)) as (app, pilot):
        await press(pilot, "tab", "down", "enter", "slash", "y")
        text = app.text()
        assert not any(sign in text for sign in ("\x1b", "\x07", "\u202e"))
        await press(pilot, "escape")
        assert "\\x1b" in app.text() if width == 80 else "\x1b" not in app.text()


# One tensor


def tables(name: str) -> dict[str, polars.DataFrame]:
    row = {"tensor": [name], "min": [-1.5], "max": [2.5], "mean": [0.25], "nan": [3], "norm": [None], "note": [None]}
    bins = {"tensor": [name] * 4, "left": [0.0, 1.0, 2.0, 3.0], "right": [1.0, 2.0, 3.0, 4.0], "count": [1, 5, 10, 0]}
    return {"tensors": polars.DataFrame(row), "histograms": polars.DataFrame(bins)}


NAME = "model.embed_tokens.weight"


def detail(checkpoint: Opened, name: str = NAME, now: float = 1767323045.0 + 7200) -> TensorDetail:
    header = next(header for header in checkpoint.headers if header.name == name)
    return TensorDetail(checkpoint, header, clock=lambda: now)


async def test_a_tensor_says_what_its_header_says_and_how_to_get_statistics(tmp_path: Path) -> None:
    checkpoint = opened(model(tmp_path))
    async with hosted(detail(checkpoint)) as (app, pilot):
        for expected in (
            "F32",
            "9 x 4",
            "36",
            "144 bytes",
            "model.safetensors, bytes",
            "lm_head.weight is this tensor",
            "No statistics yet",
        ):
            assert expected in app.text()
        await press(pilot, "tab", "enter")
        [asked] = app.all_sent(AnalysisChosen)
        assert (asked.analysis, asked.checkpoints) == ("weights.stats", (str(tmp_path),))
        assert app.query_one(TensorDetail).copied().text == NAME


async def test_a_tensor_of_a_layer_says_how_many_are_like_it(tmp_path: Path) -> None:
    checkpoint = opened(model(tmp_path))
    async with hosted(detail(checkpoint, "model.layers.3.mlp.up_proj.weight")) as (app, _):
        assert "one of 12 like model.layers.*.mlp.up_proj.weight" in app.text()


async def test_statistics_of_a_run_are_shown_with_a_histogram_and_enter_opens_the_run(tmp_path: Path, made_run) -> None:
    checkpoint = opened(model(tmp_path / "m"))
    run: RunFolder = made_run(tables(NAME), checkpoint=checkpoint.path, folder=runs_dir() / "a")
    async with hosted(detail(checkpoint), size=(80, 30)) as (app, pilot):
        for expected in ("statistics of 2 h ago", "-1.5", "2.5", "0.25", "unknown", "█", "highest bar 10 of 16 values"):
            assert expected in app.text()
        assert "The checkpoint has changed since" in app.text()  # the run's fingerprint is another one
        await press(pilot, "tab", "enter")
        assert [message.folder for message in app.all_sent(RunOpened)] == [run.folder]


async def test_statistics_of_the_same_content_are_shown_without_doubt(tmp_path: Path, made_run) -> None:
    checkpoint = opened(model(tmp_path / "m"))
    assert checkpoint.checkpoint is not None
    run: RunFolder = made_run(tables(NAME), checkpoint=checkpoint.path, folder=runs_dir() / "a")
    job = json.loads((run.folder / "job.json").read_text())
    job["checkpoints"][0]["fingerprint"] = checkpoint.checkpoint.fingerprint
    (run.folder / "job.json").write_text(json.dumps(job))
    assert checkpoint.checkpoint.bytes < CHEAP_BYTES
    async with hosted(detail(checkpoint), size=(80, 30)) as (app, _):
        assert "2.5" in app.text()
        assert "changed since" not in app.text()


async def test_a_damaged_table_is_a_sentence_and_the_rest_stays(tmp_path: Path, made_run) -> None:
    checkpoint = opened(model(tmp_path / "m"))
    run: RunFolder = made_run(tables(NAME), checkpoint=checkpoint.path, folder=runs_dir() / "a")
    run.tables["tensors"].write_bytes(b"not parquet")
    async with hosted(detail(checkpoint)) as (app, pilot):
        assert "No statistics:" in app.text()
        assert "damaged" in app.text()
        await press(pilot, "tab", "r")
        assert app.all_sent(AnalysisChosen)


async def test_runs_that_failed_or_are_of_other_checkpoints_give_no_statistics(tmp_path: Path, made_run) -> None:
    checkpoint = opened(model(tmp_path / "m"))
    made_run(tables(NAME), checkpoint=checkpoint.path, folder=runs_dir() / "a", state="failed")
    made_run(tables(NAME), checkpoint="/elsewhere", folder=runs_dir() / "b")
    async with hosted(detail(checkpoint)) as (app, pilot):
        assert "No statistics yet" in app.text()
        made_run(tables(NAME), checkpoint=checkpoint.path, folder=runs_dir() / "c")
        app.query_one(TensorDetail).refresh_runs()
        await press(pilot)
        assert "statistics of" in app.text()


@pytest.mark.parametrize("size", [(24, 24), (80, 24)])
async def test_a_hostile_tensor_is_shown_harmlessly_and_copied_whole(size: tuple[int, int], tmp_path: Path) -> None:
    name = HOSTILE + "." + "n" * 10_000
    checkpoint = named(tmp_path, name)
    async with hosted(detail(checkpoint, name), size=size) as (app, _):
        assert not any(sign in app.text() for sign in ("\x1b", "\x07", "\u202e"))
        assert "\\x1b[31m" in app.text()
        assert app.query_one(TensorDetail).copied().text == name
