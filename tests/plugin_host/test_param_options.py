"""What a params model looks like from outside."""

from __future__ import annotations

import enum
import json
import re
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import pytest
from pydantic import BaseModel, Field, PositiveInt, RootModel, create_model

from modelscope_app.api import CheckpointPath, DataFile, InputFile, RunReference, Selection, SiteName
from modelscope_app.plugin_host import ParamRow, param_fields, params_json, params_schema, params_table


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


def the_field(annotation: Any, default: Any = ..., **constraints: Any) -> Any:
    model = create_model("Params", value=(annotation, Field(default, **constraints)))
    return param_fields(model)[0]


@pytest.mark.parametrize(
    ("annotation", "constraints", "takes"),
    [
        (int, {}, "an integer"),
        (int, {"ge": 1, "le": 1024}, "an integer from 1 to 1024"),
        (int, {"gt": 0, "lt": 10}, "an integer from 1 to 9"),
        (int, {"ge": 1}, "an integer of at least 1"),
        (int, {"gt": 0}, "an integer of at least 1"),
        (int, {"le": 5}, "an integer of at most 5"),
        (int, {"lt": 5}, "an integer of at most 4"),
        (int, {"ge": 0, "multiple_of": 8}, "an integer of at least 0 that is a multiple of 8"),
        (PositiveInt, {}, "an integer of at least 1"),
        (Annotated[int, Field(ge=3)], {"le": 7}, "an integer from 3 to 7"),
        (float, {}, "a number"),
        (float, {"ge": 0, "le": 1}, "a number from 0 to 1"),
        (float, {"gt": 0}, "a number above 0"),
        (float, {"gt": 0, "lt": 1}, "a number above 0 and below 1"),
        (float, {"ge": 0.5, "lt": 1}, "a number of at least 0.5 and below 1"),
        (float, {"gt": 0, "le": 1}, "a number above 0 and at most 1"),
        (float, {"le": 1e-3}, "a number of at most 0.001"),
        (Fraction, {}, "a number or a fraction such as 3/2"),
        (Fraction, {"ge": 0, "le": 2}, "a number or a fraction such as 3/2, from 0 to 2"),
        (str, {}, "text"),
        (str, {"min_length": 1}, "text of at least 1 character"),
        (str, {"max_length": 4, "pattern": "[ab]+"}, "text of at most 4 characters matching [ab]+"),
        (bool, {}, "true or false"),
        (Literal["first", "last"], {}, "one of first, last"),
        (Literal[1, 2], {}, "one of 1, 2"),
        (Colour, {}, "one of red, blue"),
        (Level, {}, "one of 1, 2"),
        (CheckpointPath, {}, "a checkpoint (a folder, a file or hf:org/name)"),
        (RunReference, {}, "a run id or run folder"),
        (DataFile, {}, "a data file (jsonl, parquet, csv or txt)"),
        (InputFile, {}, "a file"),
        (SiteName, {}, "a site such as resid_post.5"),
        (Selection["token", "example"], {}, "text, or what is selected (token, example)"),
        (Selection["tensor"], {}, "text, or what is selected (tensor)"),
        (int | None, {}, "an integer, or none"),
        (Optional[int], {"ge": 1}, "an integer of at least 1, or none"),  # noqa: UP045
        (SiteName | None, {}, "a site such as resid_post.5"),
        (int | Literal["all"], {"ge": 0}, "an integer of at least 0 or all"),
        (int | Literal["all"] | None, {}, "an integer or all or none"),
        (list[int], {}, "a comma-separated list, each an integer"),
        (list[Annotated[int, Field(ge=0)]], {}, "a comma-separated list, each an integer of at least 0"),
        (list[SiteName], {"min_length": 1}, "a comma-separated list of at least 1, each a site such as resid_post.5"),
        (tuple[float, ...], {"max_length": 3}, "a comma-separated list of at most 3, each a number"),
        (tuple[int, int], {}, "a comma-separated list of exactly 2, each an integer"),
        (list[Literal["q", "k"]], {}, "a comma-separated list, each one of q, k"),
        (list[int] | None, {}, "a comma-separated list, each an integer, or none"),
    ],
)
def test_a_type_says_what_it_takes(annotation: Any, constraints: dict[str, Any], takes: str) -> None:
    assert the_field(annotation, **constraints).takes == takes


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (dict[str, int], r"dict[str, int] cannot be written on a command line"),
        (set[int], "set[int] cannot be written"),
        (bytes, "bytes cannot be written"),
        (Any, "Any cannot be written"),
        (Path, "Path does not say what the path is; use CheckpointPath, DataFile, InputFile or RunReference"),
        (list, "a list must say of what, as in list[int]"),
        (tuple, "a list must say of what"),
        (list[list[int]], "a list of lists"),
        (list[int | None], "a list of lists or of optional values"),
        (list[int] | int, "a union of a list and something else"),
        (tuple[int, str], "mixes types; give each value a param of its own"),
        (Literal["1", 1], "two choices are written the same way"),
        (Literal[b"x"], "is neither text nor an integer"),
        (create_model("Inner", x=(int, 1)), "Inner cannot be written on a command line"),
    ],
)
def test_a_type_nobody_can_write_is_refused_where_it_is_declared(annotation: Any, words: str) -> None:
    with pytest.raises(TypeError, match="param value: .*" + re.escape(words)):
        the_field(annotation)


def test_aliases_root_models_and_hidden_names_are_refused() -> None:
    class Aliased(BaseModel):
        top_k: int = Field(1, alias="k")

    class Hidden(BaseModel):
        bias: bool = True
        no_bias: int = 1

    with pytest.raises(TypeError, match="param top_k: an alias would give it two names; name the field itself k"):
        param_fields(Aliased)
    with pytest.raises(TypeError, match="--bias has the form --no-bias, which is another param"):
        param_fields(Hidden)
    with pytest.raises(TypeError, match="named fields"):
        param_fields(RootModel[list[int]])


def test_a_type_that_is_only_imported_for_checking_is_refused() -> None:
    model = create_model("Params", value=("NotImportedHere", ...))
    with pytest.raises(TypeError, match="not importable where the params are declared"):
        param_fields(model)


class Params(BaseModel):
    """Options."""

    data: DataFile = Field(description="rows\n    to read")
    top_k: int = Field(16, ge=1, le=1024, description="how many to keep")
    center: bool = True
    maybe: bool | None = None
    sites: list[SiteName] = ["resid_post.0", "mlp_out.1"]
    side: Literal["left", "right"] = "right"
    layer: int | Literal["all"] = "all"
    ratio: Fraction = Fraction(3, 2)
    colour: Colour = Colour.BLUE
    notes: list[str] = Field(default_factory=list)
    other: SiteName | None = None


def test_a_field_says_everything_a_front_end_needs() -> None:
    fields = {field.name: field for field in param_fields(Params)}
    assert list(fields) == list(Params.model_fields)
    assert (fields["data"].required, fields["data"].default, fields["data"].default_text) == (True, None, "required")
    assert fields["data"].help == "rows to read"
    assert (fields["top_k"].option, fields["top_k"].default, fields["top_k"].default_text) == ("--top-k", 16, "16")
    assert [field.name for field in fields.values() if field.is_flag] == ["center"]
    assert [field.name for field in fields.values() if field.is_list] == ["sites", "notes"]
    assert fields["side"].choices == ("left", "right")
    assert fields["colour"].choices == ("red", "blue")
    assert fields["layer"].choices == ()  # more than the choices is allowed
    meanings = {name: field.meaning.kind for name, field in fields.items() if field.meaning}
    assert meanings == {"data": "data-file", "sites": "site", "other": "site"}
    texts = {name: field.default_text for name, field in fields.items()}
    assert texts["sites"] == "resid_post.0,mlp_out.1"
    assert (texts["center"], texts["maybe"], texts["ratio"], texts["colour"], texts["notes"]) == ("true", "none", "3/2", "blue", "empty")


def test_the_table_of_options_and_the_json_are_the_same_declaration() -> None:
    assert params_table(Params)[1] == ParamRow("--top-k", "an integer from 1 to 1024", "16", "how many to keep")
    as_json = [field.to_json() for field in param_fields(Params)]
    json.dumps(as_json, allow_nan=False)
    assert [row.option for row in params_table(Params)] == [value["option"] for value in as_json]
    assert as_json[4] | {"default": None} == {
        "name": "sites",
        "option": "--sites",
        "takes": "a comma-separated list, each a site such as resid_post.5",
        "default": None,
        "required": False,
        "help": "",
        "choices": [],
        "flag": False,
        "list": True,
        "meaning": "site",
        "selections": [],
    }


def test_a_default_that_depends_on_other_params_says_so() -> None:
    class Dependent(BaseModel):
        low: int = 3
        high: int = Field(default_factory=lambda values: values["low"] + 1)

    assert [field.default_text for field in param_fields(Dependent)] == ["3", "from other options"]


def test_stored_params_have_absolute_paths_and_exact_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Paths(BaseModel):
        checkpoint: CheckpointPath = "model"
        cached: CheckpointPath = "hf:org/name"
        data: list[DataFile] = ["a.jsonl", "/b.csv"]
        file: InputFile | None = "../c.txt"
        nothing: InputFile | None = None
        by_id: RunReference = "20260101-stats"
        by_path: RunReference = "runs/one"
        existing: RunReference = "here"
        site: SiteName = "resid_post.5"
        text: str = "a/b"
        ratio: Fraction = Fraction(3, 2)
        scale: float = Field(float("inf"), allow_inf_nan=True)
        colour: Colour = Colour.RED
        pair: tuple[int, int] = (1, 2)

    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    stored = params_json(Paths())
    assert stored == {
        "checkpoint": f"{tmp_path}/model",
        "cached": "hf:org/name",
        "data": [f"{tmp_path}/a.jsonl", "/b.csv"],
        "file": f"{tmp_path}/../c.txt",
        "nothing": None,
        "by_id": "20260101-stats",
        "by_path": f"{tmp_path}/runs/one",
        "existing": f"{tmp_path}/here",
        "site": "resid_post.5",
        "text": "a/b",
        "ratio": "3/2",
        "scale": "inf",
        "colour": "red",
        "pair": [1, 2],
    }
    json.dumps(stored, allow_nan=False)


def test_the_schema_is_json_whatever_the_defaults_are() -> None:
    class Endless(BaseModel):
        scale: float = Field(float("inf"), allow_inf_nan=True)
        ratio: Fraction = Fraction(3, 2)

    schema = params_schema(Endless)
    json.dumps(schema, allow_nan=False)
    assert (schema["properties"]["scale"]["default"], schema["properties"]["ratio"]["default"]) == ("inf", "3/2")
    assert params_schema(Params) == Params.model_json_schema()
