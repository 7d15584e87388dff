"""`mscope inspect`, as somebody at a terminal or a script meets it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from checkpoints.checkpoint_files import entry, ramp, write_file, write_shard, write_sharded
from click.testing import CliRunner, Result

from modelscope_app.api import BadInput
from modelscope_app.cli.inspect import command

ESCAPES = "w\x1b[31m\x07\u202e[bold]x\n"


def inspect(*arguments: object, width: int = 80) -> Result:
    return CliRunner(env={"COLUMNS": str(width)}).invoke(command, [str(argument) for argument in arguments])


def shown(*arguments: object, width: int = 80) -> str:
    result = inspect(*arguments, width=width)
    assert result.exit_code == 0, result.exception
    assert result.stderr == ""
    return result.stdout


def as_json(*arguments: object) -> Any:
    text = shown(*arguments, "--json")
    assert text.isascii()
    assert text.count("\n") == 1
    return json.loads(text)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    tensors = {f"model.layers.{layer}.mlp.up_proj.weight": ramp(4, 6) for layer in range(30)}
    write_shard(tmp_path / "tiny" / "model.safetensors", {"model.embed_tokens.weight": ramp(9, 4), **tensors}, {"format": "pt"})
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "tie_word_embeddings": True, "hidden_size": 4}
    (tmp_path / "tiny" / "config.json").write_text(json.dumps(config))
    return tmp_path / "tiny"


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    header = {
        "__metadata__": {ESCAPES: ESCAPES},
        ESCAPES: entry("F32", [2], 0, 8),
        f"layers.0.{ESCAPES}.w": entry(f"X{ESCAPES}", [2], 8, 16),
    }
    folder = tmp_path / "hostile\x1b[2J"
    write_file(folder / "model.safetensors", header, bytes(16))
    (folder / "config.json").write_text(json.dumps({"architectures": [ESCAPES], "model_type": ESCAPES, "activation": ESCAPES}))
    return folder


def test_the_page_says_what_the_checkpoint_is(model: Path) -> None:
    text = shown(model)
    for expected in (
        "LlamaForCausalLM (llama)",
        "756 in 31 tensors",
        "3.0 kB in model.safetensors",
        "F32",
        "lm_head.weight is model.embed_tokens.weight",
        "hidden_size 4, tie_word_embeddings true",
        "30 x model.layers.*",
        "format: pt",
    ):
        assert expected in text


@pytest.mark.parametrize("width", [80, 120])
def test_no_line_of_the_page_is_wider_than_the_terminal(width: int, model: Path) -> None:
    lines = shown(model, width=width).splitlines()[1:]  # the first is name and path, which may be any length
    assert max(map(len, lines)) <= width


def test_no_line_of_the_page_ends_in_spaces(model: Path) -> None:
    assert not [line for line in shown(model, "--fingerprint", "--tensors").splitlines() if line != line.rstrip()]


def test_json_says_the_same_and_more(model: Path) -> None:
    value = as_json(model)
    assert value["path"] == str(model)
    assert (value["tensors"], value["parameters"], value["bytes"], value["layers"]) == (31, 756, 3024, 30)
    assert (value["model_type"], value["architectures"]) == ("llama", ["LlamaForCausalLM"])
    assert value["by_dtype"] == {"F32": {"tensors": 31, "parameters": 756, "bytes": 3024}}
    assert value["shards"][0]["file"] == "model.safetensors"
    assert value["fingerprint"] is None
    assert "tensor_headers" not in value


def test_tensors_are_listed_in_natural_order(model: Path) -> None:
    headers = as_json(model, "--tensors")["tensor_headers"]
    assert [header["name"] for header in headers][:3] == [
        "model.embed_tokens.weight",
        "model.layers.0.mlp.up_proj.weight",
        "model.layers.1.mlp.up_proj.weight",
    ]
    assert headers[1] == {
        "name": "model.layers.0.mlp.up_proj.weight",
        "dtype": "F32",
        "shape": [4, 6],
        "parameters": 24,
        "bytes": 96,
        "shard": "model.safetensors",
    }
    lines = shown(model, "--tensors").splitlines()
    assert "F32  [4, 6]  model.layers.29.mlp.up_proj.weight" in lines[-1]


def test_a_fingerprint_is_computed_only_when_asked_for(model: Path, own_folders: Path) -> None:
    assert "full:" not in shown(model)
    asked = as_json(model, "--fingerprint")["fingerprint"]
    assert asked.startswith("full:")
    assert asked in shown(model, "--fingerprint")


@pytest.mark.parametrize("options", [(), ("--tensors",), ("--fingerprint",)])
def test_nothing_a_terminal_would_obey_gets_through(options: tuple[str, ...], hostile: Path) -> None:
    text = shown(hostile, *options)
    assert all(character == "\n" or character.isprintable() for character in text)
    assert "w\\x1b[31m\\x07\\u202e[bold]x\\n" in text.replace("\n", "")


def test_json_keeps_the_real_names(hostile: Path) -> None:
    value = as_json(hostile, "--tensors")
    assert ESCAPES in {header["name"] for header in value["tensor_headers"]}
    assert value["metadata"] == {ESCAPES: ESCAPES}


def test_colour_never_reaches_a_pipe(model: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    done = subprocess.run([sys.executable, "-c", RUN, str(model)], env=environment, check=True, capture_output=True)
    assert b"\x1b" not in done.stdout


def test_a_series_shows_its_members(tmp_path: Path) -> None:
    for step in (5, 100, 20):
        write_shard(tmp_path / f"checkpoint-{step}" / "model.safetensors", {"w": ramp(3)})
    value = as_json(tmp_path)
    assert (value["kind"], value["steps"], value["shape_differences"]) == ("series", [5, 20, 100], [])
    assert [member["parameters"] for member in value["checkpoints"]] == [3, 3, 3]
    text = shown(tmp_path)
    assert text.index("checkpoint-5") < text.index("checkpoint-20") < text.index("checkpoint-100")
    assert "same tensors and shapes" in text


def test_a_series_whose_members_differ_says_where(tmp_path: Path) -> None:
    for step in (1, 2):
        write_shard(tmp_path / f"step_{step}.safetensors", {"w": ramp(step)})
    assert as_json(tmp_path)["shape_differences"] == ["step_2.safetensors has w of shape [2], and in step_1.safetensors it is [1]"]
    assert "of shape [2]" in shown(tmp_path)


def test_members_of_a_series_with_the_same_content_have_the_same_fingerprint(tmp_path: Path) -> None:
    for step, start in ((1, 0), (2, 0), (3, 1)):
        write_shard(tmp_path / f"step_{step}.safetensors", {"w": ramp(4, start=start)})
    one, two, three = (member["fingerprint"] for member in as_json(tmp_path, "--fingerprint")["checkpoints"])
    assert one == two != three


def test_an_empty_checkpoint_is_shown(tmp_path: Path) -> None:
    write_file(tmp_path / "model.safetensors", "{}")
    assert "0 in 0 tensors" in shown(tmp_path)
    assert as_json(tmp_path)["parameters"] == 0


def test_a_model_of_many_modules_is_cut_with_a_word(tmp_path: Path) -> None:
    write_shard(tmp_path / "model.safetensors", {f"part_{number}.w": ramp(1) for number in range(100)})
    text = shown(tmp_path)
    assert "60 more lines; --json has them all" in text
    assert len(as_json(tmp_path)["by_module"]) == 100


def test_the_lines_of_the_page_add_up(tmp_path: Path) -> None:
    names = ["top", "a.own", "a.b.w", "a.c.0.w", "a.c.1.w", "a.c.1.d.w", "e.w"]
    write_shard(tmp_path / "model.safetensors", {name: ramp(10**position) for position, name in enumerate(names)})
    lines = [line.split() for line in shown(tmp_path).split("module ")[1].splitlines()[1:]]
    outer = {line[-4]: int(line[-2].replace(",", "")) for line in lines if line[-4] != "d"}
    assert outer == {"top": 1, "a": 10, "a.b": 100, "a.c.*": 111_000, "e": 1_000_000}


def test_what_is_wrong_is_raised_for_the_main_program_to_print(tmp_path: Path) -> None:
    result = inspect(tmp_path / "nothing", "--json")
    assert isinstance(result.exception, BadInput)
    assert result.stdout == ""


RUN = "from modelscope_app.cli.inspect import command; command()"
LOADED = "\nimport sys; print(sorted(sys.modules), file=sys.stderr)"


@pytest.mark.parametrize(("options", "also_not"), [((), ()), (("--json", "--tensors"), ("rich",)), (("--fingerprint",), ())])
def test_nothing_heavy_is_imported(options: tuple[str, ...], also_not: tuple[str, ...], tmp_path: Path) -> None:
    write_sharded(tmp_path / "model", {"x.safetensors": {"a.0.w": ramp(3)}, "y.safetensors": {"a.1.w": ramp(3)}})
    script = f"from modelscope_app.cli.inspect import command; command(standalone_mode=False){LOADED}"
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "model"), *options], check=True, capture_output=True, text=True)
    loaded = {name.partition(".")[0] for name in json.loads(done.stderr.replace("'", '"'))}
    assert "modelscope_app" in loaded
    assert not loaded & {"torch", "polars", "textual", "transformers", "numpy", "safetensors", *also_not}
