"""A view meets its table: what is checked, what is unknown, what is left out."""

from __future__ import annotations

import doctest
import importlib
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy
import polars
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rendering.written_runs import HOSTILE, INF, LONG, NAN, WrittenRun, everything, hostile

from modelscope_app.api import (
    BadInput,
    BarsView,
    GraphView,
    HeatMapView,
    HistogramView,
    LinesView,
    TableView,
    TokenStripView,
    View,
)
from modelscope_app.rendering.drawings import (
    BarsDrawing,
    GraphDrawing,
    HeatMapDrawing,
    HistogramDrawing,
    Line,
    LinesDrawing,
    TableDrawing,
    TokenStripDrawing,
    drawing,
)
from modelscope_app.rendering.graph_layers import graph_layers
from modelscope_app.rendering.palette import level_colour
from modelscope_app.rendering.thinning import most_changing, pooled, thinned
from modelscope_app.rendering.wording import number_text

MODULES = ("wording", "palette", "thinning", "graph_layers", "records", "export", "chart_figures")


@pytest.mark.parametrize("module", MODULES)
def test_the_examples_in_docstrings_hold(module: str) -> None:
    result = doctest.testmod(importlib.import_module(f"modelscope_app.rendering.{module}"))
    assert result.attempted > 0 or module == "thinning"
    assert not result.failed


def test_importing_the_package_and_its_terminal_loads_neither_polars_nor_matplotlib() -> None:
    heavy = "{'polars', 'matplotlib', 'numpy', 'torch', 'jinja2'}"
    code = f"import modelscope_app.rendering.terminal, modelscope_app.rendering.export, sys; print({heavy} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "set()"


def run_of(folder: Path, **columns: object) -> WrittenRun:
    return WrittenRun(folder / "run", {"t": polars.DataFrame(columns, strict=False)})


@pytest.mark.parametrize(
    "view",
    [
        TableView(name="v", title="", table="t", columns=("gone",)),
        TableView(name="v", title="", table="t", sort_by="gone"),
        LinesView(name="v", title="", table="t", x="number", y="gone"),
        LinesView(name="v", title="", table="t", x="number", y="number", series="gone"),
        BarsView(name="v", title="", table="t", label="word", value="number", low="gone"),
        HistogramView(name="v", title="", table="t", left="number", right="number", count="gone"),
        HeatMapView(name="v", title="", table="t", row="word", column="gone", value="number"),
        TokenStripView(name="v", title="", table="t", token="word", scores=("number", "gone")),
        GraphView(name="v", title="", table="t", source="word", target="gone"),
    ],
)
def test_a_column_that_is_missing_is_named_with_view_table_and_what_there_is(tmp_path: Path, view: View) -> None:
    run = run_of(tmp_path, number=[1.0], word=["a"])
    with pytest.raises(BadInput, match=r"view 'v' asks for column 'gone', which table 't' lacks; it has: number, word"):
        drawing(run, view)


@pytest.mark.parametrize(
    "view",
    [
        LinesView(name="v", title="", table="t", x="word", y="number"),
        BarsView(name="v", title="", table="t", label="number", value="word"),
        HistogramView(name="v", title="", table="t", left="number", right="number", count="word"),
        HeatMapView(name="v", title="", table="t", row="number", column="number", value="word"),
        TokenStripView(name="v", title="", table="t", token="number", scores=("word",)),
        GraphView(name="v", title="", table="t", source="number", target="number", weight="word"),
    ],
)
def test_words_where_numbers_belong_are_refused_by_name(tmp_path: Path, view: View) -> None:
    run = run_of(tmp_path, number=[1.0], word=["a"])
    with pytest.raises(BadInput, match="view 'v' needs numbers in column 'word' of table 't', which holds String"):
        drawing(run, view)


def test_a_table_that_is_missing_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no table 'gone'; it has: t"):
        drawing(run_of(tmp_path, a=[1]), TableView(name="v", title="", table="gone"))


@pytest.mark.parametrize("descending", [False, True])
def test_unknown_values_are_ranked_last_in_both_directions(tmp_path: Path, descending: bool) -> None:
    run = run_of(tmp_path, name=list("abcdef"), value=[2.0, NAN, INF, None, -1.0, -INF])
    drawn = drawing(run, TableView(name="v", title="", table="t", sort_by="value", descending=descending))
    assert isinstance(drawn, TableDrawing)
    assert drawn.frame["name"].to_list() == (["a", "e"] if descending else ["e", "a"]) + ["b", "c", "d", "f"]


def test_edges_rank_by_size_and_unknown_weights_come_last(tmp_path: Path) -> None:
    run = run_of(tmp_path, source=list("abcde"), target=list("vwxyz"), weight=[0.1, NAN, -3.0, INF, 2.0])
    drawn = drawing(run, GraphView(name="v", title="", table="t", source="source", target="target", weight="weight"))
    assert isinstance(drawn, GraphDrawing)
    assert [edge.source for edge in drawn.edges] == ["c", "e", "a", "b", "d"]
    assert drawn.notes == ("2 of 5 values are unknown.",)


def test_no_infinity_reaches_a_front_end_and_every_unknown_is_counted(tmp_path: Path) -> None:
    run = run_of(tmp_path, x=[0, 1, 2, 3, None], y=[1.0, INF, NAN, None, 5.0], name=list("abcde"))
    lines = drawing(run, LinesView(name="v", title="", table="t", x="x", y="y"))
    bars = drawing(run, BarsView(name="v", title="", table="t", label="name", value="y"))
    assert isinstance(lines, LinesDrawing) and isinstance(bars, BarsDrawing)
    numpy.testing.assert_array_equal(lines.lines[0].y, [1.0, NAN, NAN, NAN])
    numpy.testing.assert_array_equal(bars.values, [1.0, NAN, NAN, NAN, 5.0])
    assert lines.notes == ("3 of 5 values are unknown.", "1 row with an unknown x left out.")
    assert bars.notes == ("3 of 5 values are unknown.",)


def test_lines_run_along_x_whatever_the_order_of_rows_one_per_series_unknown_series_last(tmp_path: Path) -> None:
    run = run_of(tmp_path, x=[3, 1, 2, 1, 5, 6], y=[30.0, 10.0, 20.0, 1.0, 7.0, 8.0], layer=[10, 10, 10, 2, None, None])
    drawn = drawing(run, LinesView(name="v", title="", table="t", x="x", y="y", series="layer"))
    assert isinstance(drawn, LinesDrawing)
    assert [line.name for line in drawn.lines] == ["2", "10", "unknown"]
    assert drawn.lines[1].y.tolist() == [10.0, 20.0, 30.0]


def test_an_interval_that_reaches_below_a_logarithmic_axis_is_kept_and_counted(tmp_path: Path) -> None:
    frame = polars.DataFrame({"x": [0, 1, 2, 3], "y": [1.0, 0.5, 0.2, 0.1], "low": [0.5, 0.0, -0.1, NAN], "high": [2.0, 1.0, 0.6, 0.2]})
    run = WrittenRun(tmp_path / "run", {"t": frame})
    drawn = drawing(run, LinesView(name="v", title="", table="t", x="x", y="y", low="low", high="high", y_scale="log"))
    assert isinstance(drawn, LinesDrawing)
    low, high = drawn.lines[0].low, drawn.lines[0].high
    assert low is not None and low[:3].tolist() == [0.5, 0.0, -0.1] and high is not None and high.tolist() == [2.0, 1.0, 0.6, 0.2]
    assert drawn.notes == ("2 intervals reach to zero or below, which is farther down than a logarithmic axis goes.",)


def test_a_logarithmic_axis_leaves_out_what_has_no_logarithm_and_says_so(tmp_path: Path) -> None:
    run = run_of(tmp_path, x=[1, 2, 3], y=[0.0, -1.0, 10.0])
    drawn = drawing(run, LinesView(name="v", title="", table="t", x="x", y="y", y_scale="log"))
    assert isinstance(drawn, LinesDrawing)
    numpy.testing.assert_array_equal(drawn.lines[0].y, [NAN, NAN, 10.0])
    numpy.testing.assert_array_equal(drawn.lines[0].values, [0.0, -1.0, 10.0])
    assert drawn.notes == ("2 values at or below zero cannot stand on a logarithmic axis.",)


def test_a_histogram_is_ordered_by_its_edges_and_leaves_out_bins_it_cannot_place(tmp_path: Path) -> None:
    run = run_of(tmp_path, bin_left=[1.0, 0.0, NAN], bin_right=[2.0, 1.0, 3.0], count=[5, 4, 3])
    drawn = drawing(run, HistogramView(name="v", title="", table="t", left="bin_left", right="bin_right", count="count"))
    assert isinstance(drawn, HistogramDrawing)
    assert drawn.groups[0].counts.tolist() == [4.0, 5.0]
    assert drawn.x_label == "bin"
    assert drawn.notes == ("1 bin with an unknown edge or count left out.",)


def test_heat_map_cells_stand_at_their_names_numbers_ascending_and_gaps_unknown(tmp_path: Path) -> None:
    run = run_of(tmp_path, layer=[10, 2, 2], part=["mlp", "attn", "mlp"], value=[1.0, 2.0, INF])
    drawn = drawing(run, HeatMapView(name="v", title="", table="t", row="layer", column="part", value="value"))
    assert isinstance(drawn, HeatMapDrawing)
    assert (drawn.rows, drawn.columns) == (("2", "10"), ("mlp", "attn"))
    numpy.testing.assert_array_equal(drawn.values, [[NAN, 2.0], [1.0, NAN]])


def test_a_heat_map_with_two_values_for_a_cell_is_refused(tmp_path: Path) -> None:
    run = run_of(tmp_path, layer=[1, 1], part=["mlp", "mlp"], value=[1.0, 2.0])
    with pytest.raises(BadInput, match="two rows for the cell 1, mlp"):
        drawing(run, HeatMapView(name="v", title="", table="t", row="layer", column="part", value="value"))


def test_texts_of_a_token_strip_keep_reading_order(tmp_path: Path) -> None:
    run = run_of(tmp_path, text=["b", "b", "a"], token=["x", " y", "z"], one=[1.0, 2.0, 3.0], two=[4.0, NAN, 6.0])
    drawn = drawing(run, TokenStripView(name="v", title="", table="t", token="token", scores=("one", "two"), text="text"))
    assert isinstance(drawn, TokenStripDrawing)
    assert [(text.name, text.tokens) for text in drawn.texts] == [("b", ("x", " y")), ("a", ("z",))]
    numpy.testing.assert_array_equal(drawn.texts[0].scores, [[1.0, 2.0], [4.0, NAN]])


def test_every_drawing_of_hostile_names_is_harmless_and_short(tmp_path: Path) -> None:
    run = hostile(tmp_path / "run")
    for view in run.views:
        shown = repr(drawing(run, view)) if not isinstance(view, TableView) else ""
        assert "\x1b" not in shown and "\u202e" not in shown
        assert LONG[:300] not in shown
    bars = drawing(run, next(view for view in run.views if view.name == "bars-names"))
    assert isinstance(bars, BarsDrawing)
    assert bars.names[:5] == (r"\x1b[31mred\x1b[0m", *HOSTILE[1:5])


def test_every_kind_of_view_can_be_drawn(tmp_path: Path) -> None:
    run = everything(tmp_path / "run")
    kinds = {type(drawing(run, view)).__name__ for view in run.views}
    assert len(kinds) == 8


@given(st.floats(-1e300, 1e300))
def test_a_number_reads_as_itself_to_four_digits(value: float) -> None:
    assert float(number_text(value).replace(",", "")) == pytest.approx(value, rel=6e-4)


@given(st.integers(-(10**14), 10**14))
def test_a_whole_number_reads_whole(value: int) -> None:
    assert int(number_text(value).replace(",", "")) == value


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 17), st.integers(1, 13), st.integers(1, 6), st.integers(1, 6), st.sampled_from([None, 0.5]), st.integers(0, 99))
def test_pooling_equals_looking_at_every_block(rows: int, columns: int, tall: int, wide: int, center: float | None, seed: int) -> None:
    rng = numpy.random.default_rng(seed)
    values = numpy.where(rng.random((rows, columns)) < 0.3, NAN, rng.normal(size=(rows, columns)))
    made = pooled(values, tall, wide, center)
    assert made.shape[0] <= tall and made.shape[1] <= wide
    high, across = -(-rows // tall), -(-columns // wide)
    for (row, column), value in numpy.ndenumerate(made):
        block = values[row * high : (row + 1) * high, column * across : (column + 1) * across].ravel()
        known = [cell for cell in block if not numpy.isnan(cell)]
        if not known:
            assert numpy.isnan(value)
        else:
            assert value == max(known, key=lambda cell: cell if center is None else abs(cell - center))


def test_a_thinned_line_keeps_its_ends_its_extremes_and_its_gaps() -> None:
    y = numpy.random.default_rng(0).normal(size=100_000)
    y[50_000:50_003] = NAN
    y[77_777], y[3_333] = 99.0, -99.0
    line = thinned(Line("", numpy.arange(100_000.0), y, None, y + 1), 200)
    assert len(line.x) <= 5 * 200
    assert (line.x[0], line.x[-1]) == (0, 99_999)
    assert (numpy.nanmax(line.y), numpy.nanmin(line.y)) == (99.0, -99.0)
    assert numpy.isnan(line.y).any()
    numpy.testing.assert_array_equal(line.high, line.y + 1)


def test_the_lines_that_change_most_are_chosen_by_range_on_their_axis() -> None:
    x = numpy.arange(2.0)
    lines = [Line(name, x, numpy.array(y), None, None) for name, y in (("a", [1.0, 2.0]), ("b", [1000.0, 1100.0]), ("c", [NAN, NAN]))]
    assert most_changing(lines, 1, "linear") == [1]
    assert most_changing(lines, 1, "log") == [0]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)).filter(lambda edge: edge[0] < edge[1]), min_size=1))
def test_in_a_graph_without_cycles_every_edge_points_to_a_later_layer(edges: list[tuple[int, int]]) -> None:
    named = [(str(source), str(target)) for source, target in edges]
    layers = graph_layers(named)
    depth = {node: at for at, layer in enumerate(layers) for node in layer}
    assert sorted(depth) == sorted({node for edge in named for node in edge})
    assert all(depth[source] < depth[target] for source, target in named)


def test_a_graph_with_cycles_and_a_very_long_path_still_gets_layers() -> None:
    ring = [(str(at), str((at + 1) % 5000)) for at in range(5000)]
    assert [layer for layer in graph_layers([*ring, ("7", "7")]) if len(layer) != 1] == []


def test_a_colour_scale_gets_steadily_darker() -> None:
    def brightness(colour: str) -> int:
        return sum(int(colour[at : at + 2], 16) for at in (1, 3, 5))

    scale = [brightness(level_colour(level / 10, diverging=False)) for level in range(11)]
    assert all(before > after for before, after in pairwise(scale))
