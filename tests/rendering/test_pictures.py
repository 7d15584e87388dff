"""Views as matplotlib figures and picture files."""

from __future__ import annotations

import io
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import numpy
import polars
import pytest
from matplotlib.text import Text
from PIL import Image
from rendering.written_runs import HOSTILE, NAN, WrittenRun, everything, hostile

from modelscope_app.api import BadInput, BarsView, GraphView, HeatMapView, HistogramView, LinesView
from modelscope_app.rendering.pictures import picture_bytes, view_figure


def texts_of(svg: bytes) -> str:
    return " ".join("".join(element.itertext()) for element in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text"))


@pytest.mark.parametrize("make", [everything, hostile])
def test_every_view_becomes_a_figure_an_svg_and_a_png_without_a_warning(tmp_path: Path, make: object) -> None:
    run = make(tmp_path / "run")  # type: ignore[operator]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for view in run.views:
            figure = view_figure(run, view)
            svg = picture_bytes(figure)
            ElementTree.fromstring(svg)
            with Image.open(io.BytesIO(picture_bytes(figure, "png"))) as picture:
                assert picture.width >= 1000 and picture.height > 60
            assert picture_bytes(figure) == svg == picture_bytes(view_figure(run, view))


def test_names_are_drawn_as_they_are_and_never_as_mathematics(tmp_path: Path) -> None:
    run = hostile(tmp_path / "run")
    for name in ("bars-names", "lines-names", "heat-names", "graph-names", "table-names", "tokens-names"):
        figure = view_figure(run, next(view for view in run.views if view.name == name))
        drawn = texts_of(picture_bytes(figure))
        assert HOSTILE[3] in drawn, name
        assert not any(text.get_parse_math() for text in figure.findobj(Text) if text.get_text()), name
        assert "\x1b" not in drawn and "\u202e" not in drawn


def test_drawing_leaves_matplotlib_as_it_was_and_ignores_the_users_style(tmp_path: Path) -> None:
    run = everything(tmp_path / "run")
    view = next(view for view in run.views if view.name == "loss")
    plain = picture_bytes(view_figure(run, view))
    with matplotlib.rc_context({"font.size": 30, "text.usetex": True, "axes.facecolor": "red", "svg.fonttype": "path"}):
        before = dict(matplotlib.rcParams)
        assert picture_bytes(view_figure(run, view)) == plain
        assert dict(matplotlib.rcParams) == before


def test_pyplot_is_never_imported(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, 'tests'); from rendering.written_runs import everything; "
        "from modelscope_app.rendering.html import report_html; report_html(everything(Path(sys.argv[1]))); "
        "print('matplotlib.pyplot' in sys.modules, 'matplotlib' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "run")], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    assert done.stdout.split() == ["False", "True"]


def test_two_threads_draw_the_same_pictures_as_one(tmp_path: Path) -> None:
    run = everything(tmp_path / "run")
    views = [view for view in run.views if view.name in ("loss", "methods", "heads", "circuit")]
    alone = [picture_bytes(view_figure(run, view)) for view in views]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda view: picture_bytes(view_figure(run, view)), views)) == alone


def test_more_than_twelve_lines_are_greyed_and_the_picture_says_so(tmp_path: Path) -> None:
    run = everything(tmp_path / "run")
    crowded, few = (
        texts_of(picture_bytes(view_figure(run, next(view for view in run.views if view.name == name)))) for name in ("norms", "four")
    )
    assert "Coloured: the 6 of 30 lines that change most; all others are grey." in crowded and "24 others (grey)" in crowded
    assert "grey" not in few


def test_twelve_lines_differ_in_more_than_colour(tmp_path: Path) -> None:
    frame = polars.DataFrame([{"x": x, "y": x * at, "s": at} for at in range(12) for x in range(30)])
    run = WrittenRun(tmp_path / "run", {"t": frame}, [LinesView(name="l", title="L", table="t", x="x", y="y", series="s")])
    lines = view_figure(run, run.views[0]).axes[0].lines
    styles = [(line.get_color(), line._dash_pattern) for line in lines]  # type: ignore[attr-defined]
    assert len(set(map(str, styles))) == 12
    assert len({str(dash) for _, dash in styles}) == 4


def test_unknown_values_leave_a_gap_in_a_line_and_hatching_in_a_heat_map(tmp_path: Path) -> None:
    frame = polars.DataFrame({"x": [0, 1, 2, 3, 4], "y": [1.0, 2.0, NAN, 2.0, 1.0], "one": [0] * 5})
    run = WrittenRun(tmp_path / "run", {"t": frame})
    line = view_figure(run, LinesView(name="l", title="L", table="t", x="x", y="y")).axes[0].lines[0]
    assert numpy.isnan(line.get_ydata()[2])  # type: ignore[arg-type,call-overload,index]
    figure = view_figure(run, HeatMapView(name="h", title="H", table="t", row="one", column="x", value="y"))
    assert figure.axes[0].patch.get_hatch()
    assert figure.axes[0].images[0].get_array().mask.tolist() == [[False, False, True, False, False]]  # type: ignore[union-attr]
    whole = WrittenRun(tmp_path / "whole", {"t": frame.filter(polars.col("y").is_not_nan())})
    assert not view_figure(whole, HeatMapView(name="h", title="H", table="t", row="one", column="x", value="y")).axes[0].patch.get_hatch()


def test_bars_stand_in_table_order_with_their_numbers_and_unknown_ones_named(tmp_path: Path) -> None:
    run = everything(tmp_path / "run")
    figure = view_figure(run, next(view for view in run.views if view.name == "methods"))
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["gradient", "EK-FAC", "TRAK", "random", "loss difference", "broken"]
    assert axes.yaxis_inverted()
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([0.31, 0.52, 0.44, -0.03, 0.21, 0])  # type: ignore[attr-defined]
    assert "0.52 [0.47, 0.57]" in [text.get_text() for text in axes.texts] and "unknown" in [text.get_text() for text in axes.texts]


def test_a_histograms_outline_encloses_its_counts(tmp_path: Path) -> None:
    frame = polars.DataFrame({"bin_left": [0.0, 1.0, 5.0], "bin_right": [1.0, 3.0, 6.0], "count": [2, 4, 8]})
    run = WrittenRun(tmp_path / "run", {"t": frame})
    view = HistogramView(name="h", title="H", table="t", left="bin_left", right="bin_right", count="count")
    x, y = (numpy.asarray(data, dtype=float) for data in view_figure(run, view).axes[0].lines[0].get_data())
    assert numpy.trapezoid(y, x) == pytest.approx(2 * 1 + 4 * 2 + 8 * 1)


def test_close_ticks_and_huge_ones_stay_readable(tmp_path: Path) -> None:
    frame = polars.DataFrame({"x": [1e9, 2e9, 3e9], "y": [0.500001, 0.500002, 0.500003]})
    run = WrittenRun(tmp_path / "run", {"t": frame})
    axes = view_figure(run, LinesView(name="l", title="L", table="t", x="x", y="y")).axes[0]
    heights = [label.get_text() for label in axes.get_yticklabels()]
    assert len(set(heights)) == len(heights) > 2
    assert "2e9" in [label.get_text() for label in axes.get_xticklabels()]


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.7), (1.0, 30.0), (1e-9, 1e9)])
def test_a_logarithmic_axis_always_has_ticks(tmp_path: Path, low: float, high: float) -> None:
    run = WrittenRun(tmp_path / "run", {"t": polars.DataFrame({"x": [0.0, 1.0], "y": [low, high]})})
    axes = view_figure(run, LinesView(name="l", title="L", table="t", x="x", y="y", y_scale="log")).axes[0]
    bottom, top = axes.get_ylim()
    inside = [
        text for place, text in zip(axes.get_yticks(), axes.get_yticklabels(), strict=True) if bottom <= place <= top and text.get_text()
    ]
    assert 3 <= len(inside) <= 12


def test_a_big_run_makes_small_pictures_that_say_what_they_leave_out(tmp_path: Path) -> None:
    rng = numpy.random.default_rng(0)
    frames = {
        "line": polars.DataFrame({"x": numpy.arange(200_000), "y": rng.normal(size=200_000)}),
        "bars": polars.DataFrame({"name": [str(at) for at in range(5000)], "value": rng.normal(size=5000)}),
        "cells": polars.DataFrame([{"r": row, "c": column, "v": row * column} for row in range(700) for column in range(300)]),
        "edges": polars.DataFrame({"a": [f"a{at}" for at in range(900)], "b": [f"b{at}" for at in range(900)], "w": rng.normal(size=900)}),
    }
    views = [
        (LinesView(name="l", title="L", table="line", x="x", y="y"), ""),
        (BarsView(name="b", title="B", table="bars", label="name", value="value"), "The first 50 of 5,000 bars."),
        (HeatMapView(name="h", title="H", table="cells", row="r", column="c", value="v"), "A cell here stands for 2 x 1 cells"),
        (GraphView(name="g", title="G", table="edges", source="a", target="b", weight="w"), "The strongest 40 of 900 edges."),
    ]
    run = WrittenRun(tmp_path / "run", frames)
    for view, note in views:
        svg = picture_bytes(view_figure(run, view))
        assert len(svg) < 500_000
        assert note in texts_of(svg)


def test_a_view_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    run = everything(tmp_path / "run")
    with pytest.raises(BadInput, match="gone"):
        view_figure(run, LinesView(name="l", title="L", table="curve", x="step", y="gone"))


def histograms(*edges: tuple[float, float, int]) -> polars.DataFrame:
    return polars.DataFrame(
        [
            {"t": f"model.layers.{group}.mlp.weight", "bin_left": low + at * width, "bin_right": low + (at + 1) * width, "count": count}
            for group, (low, width, count) in enumerate(edges)
            for at in range(8)
        ]
    )


def test_groups_of_other_bins_get_a_panel_each_and_none_is_lost(tmp_path: Path) -> None:
    """An embedding of values about 0.02 beside a norm that reaches 40 would be a spike beside a flat line."""
    view = HistogramView(name="h", title="H", table="t", left="bin_left", right="bin_right", count="count", group="t")
    run = WrittenRun(tmp_path / "run", {"t": histograms((-0.1, 0.025, 100_000), (0, 5, 30), (-1, 0.25, 900))})
    figure = view_figure(run, view)
    panels = [axes for axes in figure.axes if axes.lines]
    assert [axes.get_title(loc="left") for axes in panels] == [f"model.layers.{at}.mlp.weight" for at in range(3)]
    for axes, span, count in zip(panels, (0.2, 40, 2), (100_000, 30, 900), strict=True):
        (left, right), (_, top) = axes.get_xlim(), axes.get_ylim()
        assert span <= right - left <= 2 * span and count <= top <= 2 * count
    assert "Every panel has its own axes." in texts_of(picture_bytes(figure))


def test_groups_of_the_same_bins_lie_over_each_other(tmp_path: Path) -> None:
    view = HistogramView(name="h", title="H", table="t", left="bin_left", right="bin_right", count="count", group="t")
    run = WrittenRun(tmp_path / "run", {"t": histograms((-1, 0.25, 10), (-1, 0.25, 20))})
    figure = view_figure(run, view)
    assert [len(axes.lines) for axes in figure.axes] == [2]


def test_a_band_that_reaches_below_a_logarithmic_axis_goes_to_its_bottom(tmp_path: Path) -> None:
    frame = polars.DataFrame({"x": [0, 1, 2], "y": [1.0, 0.5, 0.2], "low": [0.5, 0.0, -0.1], "high": [2.0, 1.0, 0.6]})
    run = WrittenRun(tmp_path / "run", {"t": frame})
    figure = view_figure(run, LinesView(name="l", title="L", table="t", x="x", y="y", low="low", high="high", y_scale="log"))
    axes = figure.axes[0]
    corners = numpy.concatenate([path.vertices for path in axes.collections[0].get_paths()])
    bottom = axes.get_ylim()[0]
    assert 0.1 < bottom < 0.2
    assert [corners[corners[:, 0] == x, 1].min() for x in (0, 1, 2)] == pytest.approx([0.5, bottom, bottom])
    assert "2 intervals reach to zero or below" in texts_of(picture_bytes(figure))


def test_a_legend_keeps_the_part_of_its_names_that_differs(tmp_path: Path) -> None:
    names = [f"model.layers.{layer}.self_attn.q_proj.weight" for layer in (3, 14, 15)]
    frame = polars.DataFrame([{"x": x, "y": x * at, "s": name} for at, name in enumerate(names) for x in range(4)])
    run = WrittenRun(tmp_path / "run", {"t": frame})
    drawn = texts_of(picture_bytes(view_figure(run, LinesView(name="l", title="L", table="t", x="x", y="y", series="s"))))
    assert " 3 14 15 " in f" {drawn} " and "Each name stands for the * in model.layers.*.self_attn.q_proj.weight." in drawn


def test_an_axis_of_layers_has_no_tick_between_two_of_them(tmp_path: Path) -> None:
    run = WrittenRun(tmp_path / "run", {"t": polars.DataFrame({"x": range(1, 17), "y": range(16)})})
    ticks = view_figure(run, LinesView(name="l", title="L", table="t", x="x", y="y")).axes[0].get_xticks()
    assert all(tick == round(tick) for tick in ticks)
