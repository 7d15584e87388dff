"""From what a person wrote to params, and what is said when they wrote something else."""

from __future__ import annotations

import enum
from fractions import Fraction
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from modelscope_app.api import BadInput, DataFile, JobFailed, SiteName, UsageError
from modelscope_app.plugin_host import params_json, parse_params


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Params(BaseModel):
    bins: int = Field(64, ge=1, le=512)
    rate: float = Field(0.5, ge=0, le=1)
    scale: float = 1.0
    any_scale: float = Field(1.0, allow_inf_nan=True)
    ratio: Fraction = Field(Fraction(3, 2), gt=0)
    center: bool = True
    note: str = ""
    maybe: int | None = Field(None, ge=1)
    side: Literal["left", "right"] = "right"
    level: Literal[1, 2] = 1
    layer: Annotated[int, Field(ge=0)] | Literal["all"] = "all"
    colour: Colour = Colour.BLUE
    layers: list[Annotated[int, Field(ge=0)]] = []
    sites: tuple[SiteName, ...] = ("resid_post.0",)
    pair: tuple[int, int] = (1, 2)
    sides: list[Literal["left", "right"]] = ["left"]
    rates: list[float] = [0.5]
    ratios: list[Fraction] = []
    only: list[str] | None = None
    some: list[int] | None = [1]


@pytest.mark.parametrize(
    ("name", "written", "value"),
    [
        ("bins", "8", 8),
        ("bins", 8, 8),
        ("bins", "+8", 8),
        ("rate", "0.25", 0.25),
        ("rate", "1e-3", 0.001),
        ("rate", 1, 1.0),
        ("scale", "-2", -2.0),
        ("any_scale", "inf", float("inf")),
        ("ratio", "3/2", Fraction(3, 2)),
        ("ratio", "0.1", Fraction(1, 10)),
        ("ratio", 0.1, Fraction(1, 10)),
        ("ratio", "1e-3", Fraction(1, 1000)),
        ("ratio", 2, Fraction(2)),
        ("center", "false", False),
        ("center", "no", False),
        ("center", "1", True),
        ("center", True, True),
        ("note", "none", "none"),
        ("note", " a, b ", " a, b "),
        ("note", "", ""),
        ("maybe", "3", 3),
        ("maybe", "none", None),
        ("maybe", None, None),
        ("side", "left", "left"),
        ("level", "2", 2),
        ("level", 2, 2),
        ("layer", "5", 5),
        ("layer", "all", "all"),
        ("colour", "red", Colour.RED),
        ("layers", "1,2, 3", [1, 2, 3]),
        ("layers", [1, "2"], [1, 2]),
        ("layers", "", []),
        ("sites", "resid_pre.1,mlp_out.2", ("resid_pre.1", "mlp_out.2")),
        ("sites", ["a,b"], ("a,b",)),
        ("pair", "3,4", (3, 4)),
        ("sides", "left,right", ["left", "right"]),
        ("rates", "0.5,1", [0.5, 1.0]),
        ("ratios", "1/3,0.5", [Fraction(1, 3), Fraction(1, 2)]),
        ("ratios", [0.1, "1/3"], [Fraction(1, 10), Fraction(1, 3)]),
        ("only", "a,b", ["a", "b"]),
        ("some", "none", None),
    ],
)
def test_a_value_means_what_its_writer_meant(name: str, written: object, value: object) -> None:
    found = getattr(parse_params(Params, {name: written}), name)
    assert found == value
    assert type(found) is type(value)


BINS = "takes an integer from 1 to 512 (default 64)"
RATE = "takes a number from 0 to 1 (default 0.5)"
RATIO = "takes a number or a fraction such as 3/2, above 0 (default 3/2)"
LAYERS = "takes a comma-separated list, each an integer of at least 0 (default empty)"


@pytest.mark.parametrize(
    ("name", "written", "message"),
    [
        ("bins", "0", f"--bins 0: {BINS}"),
        ("bins", "513", f"--bins 513: {BINS}"),
        ("bins", "1.5", f"--bins 1.5: {BINS}"),
        ("bins", "many", f"--bins many: {BINS}"),
        ("bins", "", f"--bins '': {BINS}"),
        ("bins", True, f"--bins true: {BINS}"),
        ("bins", None, f"--bins none: {BINS}"),
        ("bins", [8], f"--bins 8: {BINS}"),
        ("bins", "9" * 5000, f"--bins {'9' * 79}…: {BINS}"),
        ("bins", "\x1b[31m8", f"--bins \\x1b[31m8: {BINS}"),
        ("rate", "1.1", f"--rate 1.1: {RATE}"),
        ("rate", "nan", f"--rate nan: {RATE}"),
        ("rate", False, f"--rate false: {RATE}"),
        ("scale", "nan", "--scale nan: takes a number (default 1.0)"),
        ("scale", "-Infinity", "--scale -Infinity: takes a number (default 1.0)"),
        ("scale", "1e999", "--scale 1e999: takes a number (default 1.0)"),
        ("scale", float("inf"), "--scale inf: takes a number (default 1.0)"),
        ("scale", "1/2", "--scale 1/2: takes a number (default 1.0)"),
        ("ratio", "0", f"--ratio 0: {RATIO}"),
        ("ratio", "1/0", f"--ratio 1/0: division by zero; {RATIO}"),
        ("ratio", "half", f"--ratio half: {RATIO}"),
        ("ratio", "nan", f"--ratio nan: {RATIO}"),
        ("ratio", float("inf"), f"--ratio inf: {RATIO}"),
        ("ratio", "1e999999999", f"--ratio 1e999999999: more digits than anybody needs; {RATIO}"),
        ("ratio", True, f"--ratio true: {RATIO}"),
        ("center", "maybe", "--center maybe: takes true or false (default true)"),
        ("note", 3, "--note 3: takes text (default empty)"),
        ("note", ["a"], "--note a: takes text (default empty)"),
        ("maybe", "0", "--maybe 0: takes an integer of at least 1, or none (default none)"),
        ("side", "up", "--side up: takes one of left, right (default right)"),
        ("level", "3", "--level 3: takes one of 1, 2 (default 1)"),
        ("level", True, "--level true: takes one of 1, 2 (default 1)"),
        ("layer", "some", "--layer some: takes an integer of at least 0 or all (default all)"),
        ("layer", "-1", "--layer -1: takes an integer of at least 0 or all (default all)"),
        ("colour", "green", "--colour green: takes one of red, blue (default blue)"),
        ("layers", "1,-2,3", f"--layers 1,-2,3: element 2 is wrong; {LAYERS}"),
        ("layers", "1,,3", f"--layers 1,,3: there is nothing between two commas; {LAYERS}"),
        ("layers", [1, True], f"--layers 1,true: element 2 is wrong; {LAYERS}"),
        ("layers", 3, f"--layers 3: {LAYERS}"),
        ("pair", "1", "--pair 1: takes a comma-separated list of exactly 2, each an integer (default 1,2)"),
        ("pair", "1,2,3", "--pair 1,2,3: takes a comma-separated list of exactly 2, each an integer (default 1,2)"),
        ("sides", "left,up", "--sides left,up: element 2 is wrong; takes a comma-separated list, each one of left, right (default left)"),
        ("rates", "0.5,nan", "--rates 0.5,nan: takes a comma-separated list, each a number (default 0.5)"),
        (
            "ratios",
            "1/2,1/0",
            "--ratios 1/2,1/0: division by zero; takes a comma-separated list, each a number or a fraction such as 3/2 (default empty)",
        ),
        ("bin", "8", "no option 'bin'; did you mean --bins?"),
        ("--any-scales", "8", "no option '--any-scales'; did you mean --any-scale?"),
    ],
)
def test_a_wrong_value_names_the_option_and_what_it_takes(name: str, written: object, message: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_params(Params, {name: written})
    assert str(error.value) == message


class Needed(BaseModel):
    data: DataFile
    top_k: int = Field(ge=1)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"top-k": "3"}, "--data is required: it takes a data file (jsonl, parquet, csv or txt)"),
        ({"data": "x", "top_k": "0"}, "--top-k 0: takes an integer of at least 1"),
        (
            {"top_k": "0"},
            "--data is required: it takes a data file (jsonl, parquet, csv or txt); --top-k 0: takes an integer of at least 1",
        ),
        ({"data": "x", "top_k": 1, "top-k": 2}, "--top-k is given twice"),
        ({"zebra": 1}, "no option 'zebra'; there are --data, --top-k"),
    ],
)
def test_what_is_missing_twice_or_unknown_is_said(raw: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_params(Needed, raw)
    assert str(error.value) == message


def test_an_analysis_without_options_says_so() -> None:
    class Nothing(BaseModel):
        pass

    assert parse_params(Nothing, {}) == Nothing()
    with pytest.raises(UsageError, match="no option 'x'; it takes none"):
        parse_params(Nothing, {"x": 1})


class Checked(BaseModel):
    low: int = 1
    high: int = 9
    even: int = 2

    @field_validator("even")
    @classmethod
    def is_even(cls, value: int) -> int:
        if value == 7:
            raise BadInput("seven is not for us")
        if value == 13:
            raise LookupError("thirteen")
        assert value != 5, "five is right out"
        if value % 2:
            raise ValueError("must be even")
        return value

    @model_validator(mode="after")
    def low_is_below_high(self) -> Checked:
        if self.low >= self.high:
            raise ValueError("--low must be below --high")
        return self


def test_what_a_plugins_own_checks_say_is_shown() -> None:
    with pytest.raises(UsageError, match=r"^--even 3: must be even; takes an integer \(default 2\)$"):
        parse_params(Checked, {"even": "3"})
    with pytest.raises(UsageError, match=r"^--even 5: five is right out"):
        parse_params(Checked, {"even": "5"})
    with pytest.raises(UsageError, match=r"^--low must be below --high$"):
        parse_params(Checked, {"low": "9"})
    with pytest.raises(BadInput, match=r"^seven is not for us$"):
        parse_params(Checked, {"even": 7})


def test_a_check_of_a_plugin_that_breaks_is_the_plugins_fault() -> None:
    with pytest.raises(JobFailed, match=r"own check of its params broke .*thirteen"):
        parse_params(Checked, {"even": 13})


def test_a_strict_model_is_read_from_a_command_line_all_the_same() -> None:
    class Strict(BaseModel):
        model_config = ConfigDict(strict=True, frozen=True, extra="forbid")
        bins: int = 3
        layers: tuple[int, ...] = ()

    assert parse_params(Strict, {"bins": "4", "layers": "1,2"}) == Strict(bins=4, layers=(1, 2))


numbers = st.floats(allow_nan=False, allow_infinity=False)
fractions = st.fractions(min_value=Fraction(1, 10**6), max_value=10**6, max_denominator=10**6)


@given(
    bins=st.integers(1, 512),
    scale=numbers,
    any_scale=st.floats(allow_nan=False),
    ratio=fractions,
    note=st.text(),
    maybe=st.none() | st.integers(1),
    layer=st.just("all") | st.integers(0),
    layers=st.lists(st.integers(0)),
    sites=st.lists(st.text()).map(tuple),
    rates=st.lists(numbers),
    ratios=st.lists(fractions),
    only=st.none() | st.lists(st.text()),
)
@hypothesis_settings(deadline=None, max_examples=60)
def test_stored_params_are_read_back_as_they_were(**values: Any) -> None:
    params = Params(**values)
    assert parse_params(Params, params_json(params)) == params
