"""What a form remembers, checks and completes, without a screen."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field, field_validator, model_validator

from modelscope_app.api import Analysis, BadInput, Checkpoints, DataFile, MscopeError, UsageError
from modelscope_app.plugin_host import BoundAnalysis, PluginHost, param_fields
from modelscope_app.testing import write_checkpoint
from modelscope_app.tui.forms import kept_values
from modelscope_app.tui.forms.checking import Asked, Loaded, checked, checked_params, layers_of
from modelscope_app.tui.forms.completion import ListSuggester, completed_path
from modelscope_app.tui.forms.entries import checkpoint_entries, param_entry, sites_of
from modelscope_app.tui.plugins import Plugins

SAMPLE = Path(__file__).resolve().parents[2] / "sample_checkpoints" / "digits-mlp"


class Params(BaseModel):
    rows: int = Field(4, ge=1, le=100, description="how many")
    data: DataFile = Field(description="rows to read")
    sizes: list[Annotated[int, Field(ge=1)]] = Field([1, 2], description="several")
    how: Literal["fast", "slow"] = Field("fast", description="which way")
    limit: int | None = Field(None, description="at most")
    text: str = Field("a; b", description="anything; also semicolons")
    flag: bool = Field(True, description="on or off")
    scale: float = Field(0.5, description="how much")

    @field_validator("text")
    @classmethod
    def no_bell(cls, value: str) -> str:
        if value == "bell":
            raise ValueError("no bells; and no whistles")
        return value

    @model_validator(mode="after")
    def rows_and_scale(self) -> Params:
        if self.rows > 50 and self.scale > 1:
            raise ValueError("many rows take a scale of at most 1; see the paper")
        return self


FIELDS = param_fields(Params)


def problems(**values: object) -> dict[str, str]:
    return checked_params(Params, FIELDS, values)[1]


def test_each_wrong_field_has_the_sentence_of_the_command_line() -> None:
    found = problems(rows="0", sizes="1,0", how="medium", text="bell")
    assert found == {
        "rows": "--rows 0: takes an integer from 1 to 100 (default 4)",
        "data": "--data is required: it takes a data file (jsonl, parquet, csv or txt)",
        "sizes": "--sizes 1,0: element 2 is wrong; takes a comma-separated list, each an integer of at least 1 (default 1,2)",
        "how": "--how medium: takes one of fast, slow (default fast)",
        "text": "--text bell: no bells; and no whistles; takes text (default a; b)",
    }


def test_what_is_wrong_with_several_fields_together_belongs_to_none() -> None:
    assert problems(data="/d.csv", rows="60", scale="2") == {"": "many rows take a scale of at most 1; see the paper"}
    assert problems(data="/d.csv", rows="60", scale="1") == {}


def test_a_check_of_the_plugin_that_breaks_is_one_sentence() -> None:
    class Breaking(BaseModel):
        rows: int = 1

        @field_validator("rows")
        @classmethod
        def check(cls, value: int) -> int:
            raise KeyError("what nobody has")

    params, found = checked_params(Breaking, param_fields(Breaking), {"rows": "3"})
    assert params is None and "check of its params broke (KeyError" in found["rows"]


def loaded(takes: Checkpoints = Checkpoints(0, 0)) -> Loaded:  # noqa: B008 - a frozen value
    analysis = Analysis("one", "One", "one?", Params, "nowhere:run", checkpoints=takes)
    return Loaded(BoundAnalysis("test.one", "test", analysis, "dist", "1"), FIELDS)


def test_a_form_that_is_right_comes_to_params_and_the_command() -> None:
    asked = Asked({"data": "rows.csv", "rows": "9", "flag": False, "how": "slow"}, [], "cpu", "bf16", "3")
    found = checked(loaded(), asked)
    assert found.is_right and found.seed == 3 and found.params["rows"] == 9 and found.params["sizes"] == [1, 2]
    assert found.params["data"] == str(Path("rows.csv").absolute())
    assert found.command == (
        f"mscope run test.one --rows 9 --data {Path('rows.csv').absolute()} --how slow --no-flag --device cpu --dtype bf16 --seed 3"
    )


@pytest.mark.parametrize(
    ("asked", "key", "sentence"),
    [
        (Asked({"data": "d"}, [], device="tpu"), "device", "--device 'tpu'"),
        (Asked({"data": "d"}, [], dtype="int3"), "dtype", "--dtype 'int3'"),
        (Asked({"data": "d"}, [], seed="-1"), "seed", "--seed takes a whole number from 0 to 2^63 - 1"),
        (Asked({"data": "d"}, [], seed="99999999999999999999"), "seed", "--seed takes a whole number"),
        (Asked({"data": "d"}, [], seed="²"), "seed", "--seed takes a whole number"),
    ],
)
def test_options_of_the_host_are_checked_as_on_the_command_line(asked: Asked, key: str, sentence: str) -> None:
    found = checked(loaded(), asked).problems
    assert list(found) == [key] and found[key].startswith(sentence)


def test_each_checkpoint_is_looked_at_alone(tmp_path: Path) -> None:
    two = loaded(Checkpoints(2, 3, "language-model"))
    found = checked(two, Asked({"data": "d"}, [str(tmp_path / "nowhere"), "", str(SAMPLE)])).problems
    assert "nowhere" in found["checkpoints 0"]
    assert found["checkpoints 1"].startswith("required: test.one takes a checkpoint")
    assert "needs a language model with its tokenizer" in found["checkpoints 2"]
    many = checked(loaded(Checkpoints(1, 2)), Asked({"data": "d"}, [str(SAMPLE)] * 3)).problems
    assert many == {"checkpoints": "test.one takes 1 to 2 checkpoints, and 3 were given"}


def test_a_series_is_not_a_checkpoint() -> None:
    found = checked(loaded(Checkpoints(kind="series")), Asked({"data": "d"}, [str(SAMPLE)])).problems
    assert list(found) == ["checkpoints 0"]


def test_there_are_lines_for_as_many_checkpoints_as_are_taken() -> None:
    def lines(takes: Checkpoints, count: int) -> list[tuple[str, bool]]:
        return [(entry.label, entry.required) for entry in checkpoint_entries(takes, count)]

    assert lines(Checkpoints(), 0) == lines(Checkpoints(), 1) == [("checkpoint", True)]
    assert lines(Checkpoints(2, 2), 1) == [("checkpoint 1", True), ("checkpoint 2", True)]
    assert lines(Checkpoints(1, None), 1) == [("checkpoint 1", True), ("checkpoint 2", False)]
    assert lines(Checkpoints(0, 0), 0) == []
    assert lines(Checkpoints(kind="series"), 1) == [("series", True)]
    assert len(lines(Checkpoints(1, 2), 3)) == 3  # one too many stays on the screen, and is said


def test_every_type_has_its_line() -> None:
    entries = {field.name: param_entry(field) for field in FIELDS}
    assert (entries["flag"].drawn, entries["flag"].default) == ("flag", True)
    assert (entries["how"].drawn, entries["how"].choices) == ("choice", ("fast", "slow"))
    assert (entries["limit"].drawn, entries["limit"].default, entries["limit"].default_text) == ("text", None, "none")
    assert (entries["sizes"].default, entries["sizes"].is_list, entries["sizes"].empty_is_a_value) == ("1,2", True, True)
    assert (entries["data"].pick, entries["data"].required, entries["data"].default) == ("data-file", True, None)


@pytest.mark.parametrize(("config", "layers"), [({"num_hidden_layers": 3}, 3), ({"n_layer": 2}, 2), ({}, None), ({"n_layer": -1}, None)])
def test_sites_are_those_of_the_layers_in_the_config(tmp_path: Path, config: dict[str, Any], layers: int | None) -> None:
    assert layers_of(str(write_checkpoint(tmp_path / "one", {"w": [1.0]}, config))) == layers
    assert layers_of(str(tmp_path / "nothing")) is None
    assert len(sites_of(3)) == 15


# What is kept


def test_values_used_last_are_kept_for_one_version() -> None:
    kept_values.keep_last_used("a.b", 2, {"rows": "9", "flag": False})
    assert kept_values.last_used("a.b", 2) == {"rows": "9", "flag": False}
    assert kept_values.last_used("a.b", 3) == {} == kept_values.last_used("a.c", 2)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format": 1}', b'{"format": 1, "version": 1, "values": 3}', b"\xff", b"[" * 9999])
def test_a_damaged_file_of_last_values_is_none(content: bytes) -> None:
    kept_values.keep_last_used("a.b", 1, {})
    [path] = kept_values.state_dir().joinpath("forms").iterdir()
    path.write_bytes(content)
    assert kept_values.last_used("a.b", 1) == {}


def test_presets_are_params_files() -> None:
    path = kept_values.save_preset("a.b", " my preset ", {"rows": 9, "sizes": [1, 2]})
    assert path.name == "my preset.json" and json.loads(path.read_text()) == {"rows": 9, "sizes": [1, 2]}
    kept_values.save_preset("a.b", "another", {})
    assert kept_values.presets("a.b") == ["another", "my preset"]
    assert kept_values.read_preset("a.b", "my preset") == {"rows": 9, "sizes": [1, 2]}
    kept_values.delete_preset("a.b", "another")
    kept_values.delete_preset("a.b", "another")
    assert kept_values.presets("a.b") == ["my preset"] and kept_values.presets("never.used") == []


@pytest.mark.parametrize("name", ["", " ", "../x", "a/b", ".hidden", "x" * 65, "a\x1b[31m", "a\nb"])
def test_a_preset_cannot_be_called_anything(name: str) -> None:
    with pytest.raises(UsageError, match="the name of a preset"):
        kept_values.save_preset("a.b", name, {})


def test_an_id_cannot_lead_out_of_the_folder() -> None:
    assert kept_values.preset_folder("../../x/y.z").parent.name == "presets"
    assert kept_values.preset_folder("..").name != ".."


@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff", b"[" * 99999])
def test_a_damaged_preset_is_a_sentence(content: bytes) -> None:
    path = kept_values.save_preset("a.b", "x", {})
    path.write_bytes(content)
    with pytest.raises(BadInput, match=r"x\.json: "):
        kept_values.read_preset("a.b", "x")


# Completion


def test_paths_are_completed(tmp_path: Path) -> None:
    for name in ("rows.csv", "rows.png", "results.jsonl", ".hidden.csv", "evil\x1b[31m.csv"):
        (tmp_path / name).touch()
    (tmp_path / "runs").mkdir()
    allowed = (".csv", ".jsonl")
    assert completed_path(f"{tmp_path}/r", allowed) == f"{tmp_path}/results.jsonl"
    assert completed_path(f"{tmp_path}/ro", allowed) == f"{tmp_path}/rows.csv"
    assert completed_path(f"{tmp_path}/ru", allowed) == f"{tmp_path}/runs/"
    assert completed_path(f"{tmp_path}/rows.p", None) == f"{tmp_path}/rows.png"
    for nothing in (f"{tmp_path}/", f"{tmp_path}/x", f"{tmp_path}/evil", "/nowhere/x", "hf:org/na", "~nobody-of-this-name/x", "a\0b"):
        assert completed_path(nothing, allowed) is None


async def test_the_last_of_several_values_is_completed() -> None:
    offered = ListSuggester(["resid_pre.0", "resid_post.0", "mlp_out.0"])
    assert await offered.get_suggestion("resid_po") == "resid_post.0"
    assert await offered.get_suggestion("resid_pre.0,m") == "resid_pre.0,mlp_out.0"
    assert await offered.get_suggestion("") is None
    assert await offered.get_suggestion("x") is None


# The thread of plugins


def nobody() -> PluginHost:
    return PluginHost(disabled=(), search_path=[])


async def test_plugins_are_asked_in_one_thread_that_ends_with_the_process() -> None:
    plugins = Plugins(nobody)
    threads = [await plugins.ask(lambda host: threading.current_thread()) for _ in range(3)]
    assert len(set(threads)) == 1 and threads[0].daemon and threads[0] is not threading.main_thread()


@pytest.mark.parametrize("error", [KeyError("x"), SystemExit(3), KeyboardInterrupt(), RuntimeError("a\x1b[31mb")])
async def test_whatever_a_plugin_raises_is_a_sentence_and_the_next_question_is_answered(error: BaseException) -> None:
    plugins = Plugins(nobody)

    def fail(host: PluginHost) -> Any:
        raise error

    with pytest.raises(MscopeError, match="a plugin failed") as caught:
        await plugins.ask(fail)
    assert "\x1b" not in str(caught.value)
    assert await plugins.ask(lambda host: host.names()) == ()


async def test_a_host_that_cannot_be_made_is_a_sentence_each_time() -> None:
    def broken() -> PluginHost:
        raise BadInput("config.toml: not valid TOML")

    plugins = Plugins(broken)
    for _ in range(2):
        with pytest.raises(BadInput, match="not valid TOML"):
            await plugins.ask(lambda host: host.names())


async def test_a_question_that_was_cancelled_before_its_turn_is_left_out() -> None:
    plugins = Plugins(nobody)
    go_on, asked = threading.Event(), []
    first = asyncio.ensure_future(plugins.ask(lambda host: go_on.wait(10)))
    second = asyncio.ensure_future(plugins.ask(lambda host: asked.append(2)))
    await asyncio.sleep(0)
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    go_on.set()
    assert await first
    await plugins.ask(lambda host: None)
    assert asked == []


async def test_what_a_plugin_prints_does_not_go_to_stdout(capfd: pytest.CaptureFixture[str]) -> None:
    plugins = Plugins(nobody)
    await plugins.ask(lambda host: print("from a plugin", flush=True))
    said = capfd.readouterr()
    assert said.out == "" and "from a plugin" in said.err
