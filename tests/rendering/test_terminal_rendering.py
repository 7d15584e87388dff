"""Runs and views printed to a terminal."""

from __future__ import annotations

import io
from pathlib import Path

import polars
import pytest
from rendering.written_runs import HOSTILE, NAN, WrittenRun, everything, hostile
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from modelscope_app.api import BadInput, BarsView, HeatMapView, LinesView, TableView, TokenStripView
from modelscope_app.rendering.character_plots import sparkline
from modelscope_app.rendering.marks import BLOCKS, PLAIN
from modelscope_app.rendering.terminal import print_run, view_renderable


def printed(
    run: WrittenRun, view_name: str | None = None, width: int = 80, encoding: str = "utf-8", colour: bool = False, **options: int
) -> str:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
    console = Console(file=stream, width=width, force_terminal=colour, color_system="truecolor" if colour else None, no_color=not colour)
    if view_name is None:
        print_run(run, console, **options)
    else:
        view = next(view for view in run.views if view.name == view_name)
        console.print(view_renderable(run, view, **options))
    stream.flush()
    return stream.buffer.getvalue().decode(encoding)


def test_a_run_prints_facts_views_and_where_its_tables_lie(tmp_path: Path) -> None:
    text = printed(everything(tmp_path / "run"))
    for expected in (
        "samples.everything  done",
        "best_auroc         0.9134 [0.8721, 0.9412]",
        "kl_to_base         unknown",
        "peak_memory_bytes  269.1 MB",
        "Intervals are 95% bootstrap intervals over examples.",
        "… 280 more rows in tables/tensors.parquet",
        "wide  4,800 rows × 3 columns  tables/wide.parquet",
    ):
        assert expected in text


@pytest.mark.parametrize("width", [40, 80, 132])
@pytest.mark.parametrize("make", [everything, hostile])
def test_no_line_is_wider_than_the_terminal(tmp_path: Path, make: object, width: int) -> None:
    run = make(tmp_path / "run")  # type: ignore[operator]
    for line in printed(run, width=width).splitlines():
        assert cell_len(line) <= width or str(run.folder) in line or "  tables/" in line


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_without_unicode_gets_ascii(tmp_path: Path, encoding: str) -> None:
    for make in (everything, hostile):
        text = printed(make(tmp_path / make.__name__), encoding=encoding)
        assert text.isascii()
    assert "$x_$" in text and "\\u05e9" in text


def test_hostile_names_are_printed_and_never_obeyed(tmp_path: Path) -> None:
    text = printed(hostile(tmp_path / "run"))
    assert "\x1b" not in text and "\u202e" not in text
    assert r"\x1b[31mred\x1b[0m" in text
    assert HOSTILE[1] in text and HOSTILE[2] in text and HOSTILE[3] in text


def test_with_colour_the_only_escapes_are_styles_of_our_own(tmp_path: Path) -> None:
    text = printed(hostile(tmp_path / "run"), colour=True)
    assert "\x1b[" in text
    assert "\x1b[31mred" not in text


def test_a_view_that_does_not_fit_is_a_sentence_and_the_next_is_still_drawn(tmp_path: Path) -> None:
    views = [BarsView(name="b", title="Broken", table="t", label="a", value="gone"), TableView(name="t", title="Whole", table="t")]
    run = WrittenRun(tmp_path / "run", {"t": polars.DataFrame({"a": ["there"]})}, views)
    text = printed(run, width=200)
    assert "cannot be drawn: view 'b' asks for column 'gone'" in text
    assert "there" in text.split("Whole")[1]
    with pytest.raises(BadInput, match="gone"):
        view_renderable(run, views[0])


def test_facts_are_printed_even_when_no_view_asks_for_them(tmp_path: Path) -> None:
    assert "answer  42" in printed(WrittenRun(tmp_path / "run", {}, [], {"answer": 42}))


def test_a_table_shows_as_many_columns_as_fit_and_names_the_rest(tmp_path: Path) -> None:
    frame = polars.DataFrame({f"column_{at}": [at] for at in range(30)})
    run = WrittenRun(tmp_path / "run", {"t": frame}, [TableView(name="t", title="T", table="t")])
    narrow = printed(run, "t", width=40)
    assert "… 26 more columns: column_4, column_5" in narrow.replace("\n", " ")
    assert "more columns" not in printed(run, "t", width=400)


def test_bars_reach_in_proportion_to_both_sides_of_zero(tmp_path: Path) -> None:
    frame = polars.DataFrame({"name": list("abcd"), "value": [2.0, 1.0, -1.0, NAN]})
    run = WrittenRun(tmp_path / "run", {"t": frame}, [BarsView(name="b", title="B", table="t", label="name", value="value")])
    lines = printed(run, "b").splitlines()[1:5]
    lengths = [line.count("█") for line in lines]
    assert lengths[0] == pytest.approx(2 * lengths[1], abs=1) and lengths[1] == pytest.approx(lengths[2], abs=1) and lengths[3] == 0
    assert lines[2].index("█") < lines[0].index("█") <= lines[2].rindex("█") + 1
    assert "?" in lines[3] and "unknown" in lines[3]
    assert [line.split()[-1] for line in lines[:3]] == ["2", "1", "-1"]


def test_a_single_line_is_plotted_from_corner_to_corner(tmp_path: Path) -> None:
    frame = polars.DataFrame({"x": list(range(50)), "y": [float(at) for at in range(50)]})
    run = WrittenRun(tmp_path / "run", {"t": frame}, [LinesView(name="l", title="L", table="t", x="x", y="y")])
    lines = printed(run, "l", encoding="ascii").splitlines()
    plot = [line.split("|", 1)[1] for line in lines if "|" in line]
    assert plot[0].rstrip().endswith("*") and plot[-1].startswith("*")
    first = [row.index("*") for row in plot]
    assert first == sorted(first, reverse=True)
    assert lines[2].startswith("  49 |") or lines[2].strip().startswith("49 |")
    assert "last: 49 at x 49" in lines[-1]


def test_many_lines_say_which_of_them_are_shown(tmp_path: Path) -> None:
    text = printed(everything(tmp_path / "run"), "norms")
    assert "The 12 of 30 lines that change most." in text
    assert sum("▁▁▁" in line and "███" in line for line in text.splitlines()) == 12


def test_a_sparkline_rises_with_its_values_and_leaves_unknown_ones_blank() -> None:
    import numpy

    assert sparkline(numpy.array([0.0, 1.0, NAN, 7.0]), 10, BLOCKS) == "▁▂ █"
    assert sparkline(numpy.array([1.0, 10.0, 100.0]), 10, PLAIN, "log") == ".+@"
    assert len(sparkline(numpy.arange(1000.0), 10, BLOCKS)) == 10


def test_heat_map_cells_carry_sign_and_size_without_colour(tmp_path: Path) -> None:
    cells = [{"r": row, "c": column, "v": float((row - 1) * column)} for row in range(3) for column in range(30)]
    run = WrittenRun(
        tmp_path / "run",
        {"t": polars.DataFrame(cells)},
        [HeatMapView(name="h", title="H", table="t", row="r", column="c", value="v", center=0.0)],
    )
    below, middle, above = printed(run, "h").splitlines()[2:5]
    assert below.rstrip().endswith("-█") and above.rstrip().endswith("+█")
    assert set(middle[1:]) == {" "}
    wide = printed(run, "h", width=160).splitlines()[2]
    assert wide.split() == ["0", *(str(-column if column else 0) for column in range(30))]


def test_a_token_strip_shows_tenths_and_on_demand_numbers(tmp_path: Path) -> None:
    frame = polars.DataFrame({"token": ["The", " sea", "\n"], "score": [0.5, 1.0, NAN]})
    run = WrittenRun(tmp_path / "run", {"t": frame}, [TokenStripView(name="s", title="S", table="t", token="token", scores=("score",))])
    tenths = printed(run, "s").splitlines()
    assert tenths[2].rstrip() == "The sea\\n" and tenths[3].rstrip() == "5  9   ?"
    assert printed(run, "s", numbers=True).splitlines()[3].split() == ["0.5", "1", "?"]


def test_without_colour_nothing_is_lost(tmp_path: Path) -> None:
    run = everything(tmp_path / "run")
    assert Text.from_ansi(printed(run, colour=True)).plain.split() == printed(run).split()


def test_cutting_keeps_both_ends_of_a_name() -> None:
    assert BLOCKS.cut("model.layers.29.mlp.down_proj.weight", 20) == "model.lay…roj.weight"
    assert cell_len(BLOCKS.cut("日本語" * 20, 9)) <= 9
    assert PLAIN.cut("é" * 40, 10).isascii()


def test_names_of_lines_keep_the_part_that_differs(tmp_path: Path) -> None:
    names = [f"model.layers.{layer}.self_attn.{part}.weight" for layer in (5, 17) for part in ("q_proj", "k_proj")]
    frame = polars.DataFrame([{"x": x, "y": x + at, "tensor": name} for x in range(9) for at, name in enumerate(names)])
    lines_view = LinesView(name="l", title="L", table="t", x="x", y="y", series="tensor")
    bars_view = BarsView(name="b", title="B", table="t", label="tensor", value="y")
    run = WrittenRun(tmp_path / "run", {"t": frame}, [lines_view, bars_view])
    lines = printed(run, "l").splitlines()
    assert lines[1].startswith("model.layers.*.weight ")
    assert sorted(line.split()[0] for line in lines[2:6]) == sorted(name[13:-7] for name in names)
    bars = printed(run, "b", width=40)
    assert "17.self_…tn.k_proj" in bars and "Each name stands for the * in model.layers.*.weight." in bars.replace("\n", " ")


def test_rows_of_a_table_that_differ_look_different(tmp_path: Path) -> None:
    names = [f"vision_tower.vision_model.encoder.layers.{layer}.self_attention.q_proj.weight" for layer in range(3)] + ["head"]
    run = WrittenRun(tmp_path / "run", {"t": polars.DataFrame({"tensor": names})}, [TableView(name="t", title="T", table="t")])
    rows = [line.strip() for line in printed(run, "t", width=100).splitlines()[2:6]]
    assert len(set(rows)) == 4 and all(cell_len(row) < 100 for row in rows)


def test_evenly_spaced_points_stand_to_scale_and_missing_ones_leave_a_gap(tmp_path: Path) -> None:
    rows = [{"layer": layer, "y": float(layer), "m": name} for name in "ab" for layer in range(8) if (name, layer) != ("b", 3)]
    view = LinesView(name="l", title="L", table="t", x="layer", y="y", series="m")
    lines = printed(WrittenRun(tmp_path / "run", {"t": polars.DataFrame(rows)}, [view]), "l").splitlines()
    assert lines[2].split()[1] == "▁▂▃▄▅▆▇█"
    assert lines[3].split()[1:3] == ["▁▂▃", "▅▆▇█"]
    assert "not to scale" not in "".join(lines)


@pytest.mark.parametrize(
    ("steps", "scale", "drawn", "to_scale"),
    [
        ([0, 1, 2, 3, 4, 1000], "linear", "▁▂▄▅▇█", False),
        ([0, 1, 2, 3, 4, 10], "linear", "▁▂▄▅▇     █", True),
        ([1, 10, 100, 1000], "log", "▁▃▆█", True),
        ([-1.7e308, 1.7e308], "linear", "▁█", True),
    ],
)
def test_unevenly_spaced_points_stand_to_scale_or_it_is_said_that_they_do_not(
    tmp_path: Path, steps: list[float], scale: str, drawn: str, to_scale: bool
) -> None:
    frame = polars.DataFrame([{"step": float(step), "y": float(at), "m": name} for name in "ab" for at, step in enumerate(steps)])
    view = LinesView(name="l", title="L", table="t", x="step", y="y", series="m", x_scale=scale)  # type: ignore[arg-type]
    text = printed(WrittenRun(tmp_path / "run", {"t": frame}, [view]), "l", width=60)
    assert f"a  {drawn} " in text
    assert ("step in order, not to scale: its values are unevenly spaced." in text) is not to_scale


def test_a_stretch_without_points_is_as_wide_as_it_is_long(tmp_path: Path) -> None:
    steps = [step for step in range(1000) if not 400 <= step < 600]
    frame = polars.DataFrame([{"step": step, "y": float(step), "m": name} for name in "ab" for step in steps])
    view = LinesView(name="l", title="L", table="t", x="step", y="y", series="m")
    line = printed(WrittenRun(tmp_path / "run", {"t": frame}, [view]), "l").splitlines()[2]
    drawn = line[3 : line.rindex("█") + 1]
    assert drawn.count(" ") == pytest.approx(0.2 * len(drawn), abs=1.5)
    assert drawn.index(" ") == pytest.approx(0.4 * len(drawn), abs=1.5)


def test_the_modules_across_a_heat_map_are_named(tmp_path: Path) -> None:
    cells = [{"layer": layer, "module": module, "v": float(layer)} for layer in range(3) for module in ("mlp.up", "mlp.down", "attn.q")]
    run = WrittenRun(
        tmp_path / "run",
        {"t": polars.DataFrame(cells)},
        [HeatMapView(name="h", title="H", table="t", row="layer", column="module", value="v")],
    )
    assert all(name in printed(run, "h").splitlines()[1] for name in ("mlp.up", "mlp.down", "attn.q"))


@pytest.mark.parametrize("width", [40, 80, 200])
def test_what_goes_into_a_pipe_has_no_padding(tmp_path: Path, width: int) -> None:
    run = everything(tmp_path / "run")
    for view in run.views:
        if not isinstance(view, (HeatMapView, TokenStripView)):  # whose cells may be blank
            assert not [line for line in printed(run, view.name, width=width).splitlines() if line != line.rstrip()], view.name
