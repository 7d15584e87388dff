"""Text is ranked in natural order: that of `natural_key`, which is the slow obvious way."""

from __future__ import annotations

import sys

import polars
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelscope_app.checkpoints import natural_key
from modelscope_app.jobs.memory import mark_peak, peak_bytes, resident_bytes
from modelscope_app.rendering.columns import ranked
from modelscope_app.rendering.natural_sort import natural_columns

PIECES = ["", "0", "1", "9", "00", "10", ".", "-", "h", "H", "é", "名", "\U0001f600", "٣", "\x00", "\x01", "\x02", "\n", ":", "/", "|", "~"]
NUMBERS = ["0" * 30, "7" * 59, "7" * 60, "7" * 61, "1" * 61, "9" * 5000, "0" * 70 + "5"]
NAMES = st.lists(st.none() | st.lists(st.sampled_from(PIECES + NUMBERS), max_size=5).map("".join) | st.text(max_size=5), max_size=12)


def ranked_rows(names: list[str | None], descending: bool, dtype: type[polars.DataType] = polars.String) -> list[int]:
    frame = polars.DataFrame({"name": polars.Series(names, dtype=polars.String).cast(dtype)}).with_row_index("row")
    return ranked(frame, "name", descending)["row"].to_list()


def by_natural_key(names: list[str | None], descending: bool) -> list[int]:
    known = {name for name in names if name is not None}
    order: list[str | None] = [*sorted(known, key=natural_key, reverse=descending), None]
    return sorted(range(len(names)), key=lambda row: order.index(names[row]))


@given(NAMES, st.booleans())
def test_names_are_ranked_as_natural_key_ranks_them_unknown_last_and_ties_stable(names: list[str | None], descending: bool) -> None:
    assert ranked_rows(names, descending) == by_natural_key(names, descending)


@given(NAMES, st.booleans(), st.integers(1, 40))
def test_texts_longer_than_what_is_written_at_once(names: list[str | None], descending: bool, at_once: int) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("modelscope_app.rendering.natural_sort._BYTES_AT_ONCE", at_once)
        assert ranked_rows(names, descending) == by_natural_key(names, descending)


@pytest.mark.parametrize("descending", [False, True])
def test_more_names_than_are_written_at_once(descending: bool) -> None:
    names: list[str | None] = [f"h.{at % 357}.{at * 7919 % 250_001:0{at % 2 * 7}}.w" for at in range(250_001)]
    names[3] = names[200_000] = None
    names[5] = names[100_001] = "h.12.\x00" + "1" * 70
    known = sorted((name for name in names if name is not None), key=natural_key, reverse=descending)
    assert [names[row] for row in ranked_rows(names, descending)] == [*known, None, None]


@pytest.mark.alone
@pytest.mark.skipif(sys.platform != "linux", reason="a high-water mark can be set on Linux alone")
def test_memory_stays_near_that_of_long_texts() -> None:
    texts = polars.Series("name", [f"prompt {at} " + "what 1 + 1 is " * 300 for at in range(20_000)])
    text_bytes = texts.str.len_bytes().sum()
    natural_columns(texts.head(100))
    mark_peak()
    before = resident_bytes()
    natural_columns(texts)
    assert peak_bytes() - before < 5 * text_bytes  # two copies without zeros, the keys, and what is being written


def test_a_categorical_is_text() -> None:
    assert ranked_rows(["h.10", None, "h.2"], False, polars.Categorical) == [2, 0, 1]


@pytest.mark.parametrize("values", [[], [None], ["h.1"]])
def test_few_names(values: list[str | None]) -> None:
    assert ranked_rows(values, True) == list(range(len(values)))
