"""The table of the terminal app against the bare table widget it is made of, both over the same 1,000,000 rows.

    python bench/table.py [--rows 1000000] [--rounds 30]

| figure      | what is measured                                                                                                |
|-------------|-----------------------------------------------------------------------------------------------------------------|
| down        | from writing the arrow key to a pseudo-terminal to the first byte of what is painted; the two take turns          |
| page down   | the same for a page of rows that were not on the screen before                                                    |
| whole       | from the arrow key to the last byte, our line below the table included                                            |
| first paint | from starting the process to the first row on the screen                                                          |
| memory      | resident memory of each process with the table on the screen                                                      |
| sort        | ours: from `s` to the sorted rows painted; the bare widget: `backend.sort` alone, which blocks it                   |
| filter      | from enter in the filter to the filtered rows painted; the bare widget has none                                     |
| search      | from the last key of a text to its first match painted; the bare widget has none                                    |

Each line of output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from pseudo_terminal import PseudoTerminal

DOWN, PAGE_DOWN = b"\x1b[B", b"\x1b[6~"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--show", nargs=2, metavar=("WHICH", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.show:
        show(arguments.show[0], Path(arguments.show[1]))
        return
    with tempfile.TemporaryDirectory(prefix="mscope-bench-") as folder:
        run = made_run(Path(folder) / "run", arguments.rows)
        ours, bare = (PseudoTerminal(_words(which, run), which=which) for which in ("ours", "bare"))
        try:
            for terminal in (ours, bare):
                _print(figure="first paint", who=terminal.which, seconds=terminal.until(b"part."))
                terminal.drain(2.0)
                terminal.press(b"\t" if terminal is bare else b"")
                terminal.drain()
            keys(ours, bare, arguments.rounds)
            for terminal in (ours, bare):
                _print(figure="memory", who=terminal.which, mb=terminal.resident_mb())
            sorting(ours, run)
            asking(ours)
        finally:
            ours.close()
            bare.close()


def keys(ours: PseudoTerminal, bare: PseudoTerminal, rounds: int) -> None:
    """Both in turns, key by key."""
    for figure, key in (("down", DOWN), ("page down", PAGE_DOWN)):
        first: dict[str, list[float]] = {"ours": [], "bare": []}
        last: dict[str, list[float]] = {"ours": [], "bare": []}
        for _ in range(rounds):
            for terminal in (ours, bare):
                one, other = terminal.key_to_paint(key)
                first[terminal.which].append(one)
                last[terminal.which].append(other)
        for name, seconds in ((figure, first), (f"{figure}, whole", last)):
            for who in ("ours", "bare"):
                _print(figure=name, who=who, seconds=statistics.median(seconds[who]), most=max(seconds[who]), rounds=rounds)
            _print(figure=f"{name}, ours over bare", ratio=statistics.median(seconds["ours"]) / statistics.median(seconds["bare"]))


def sorting(ours: PseudoTerminal, run: Path) -> None:
    """By a column of numbers, then by one of text."""
    import polars
    from textual_fastdatatable.backend import PolarsBackend

    frame = polars.read_parquet(run / "tables" / "rows.parquet")
    for name, to_column in (("norm", b"\x1b[C\x1b[C"), ("tensor", b"\x1b[D\x1b[D")):
        ours.press(to_column)
        ours.drain()
        seconds = ours.timed(b"s", f"sorted by {name} ascending".encode())
        _print(figure=f"sort by {name}", who="ours", seconds=seconds)
        began = time.perf_counter()
        PolarsBackend.from_dataframe(frame).sort(name)
        _print(figure=f"sort by {name}", who="bare", seconds=time.perf_counter() - began)
    ours.timed(b"s", b"descending")


def asking(ours: PseudoTerminal) -> None:
    """Filter and search."""
    ours.press(b"f")
    ours.drain()
    ours.press(b"layer >= 30 and tensor contains 99")
    ours.drain()
    _print(figure="filter", who="ours", seconds=ours.timed(b"\r", b" match"))
    ours.press(b"/")
    ours.drain()
    ours.press(b"99")
    ours.drain()
    _print(figure="search", who="ours", seconds=ours.timed(b"9", b"with '999'"))


def _words(which: str, run: Path) -> list[str]:
    return [sys.executable, str(Path(__file__).resolve()), "--show", which, str(run)]


def show(which: str, run: Path) -> None:
    """One of the two, as an app of its own."""
    from textual.app import App, ComposeResult

    class Ours(App[None]):
        def compose(self) -> ComposeResult:
            from modelscope_app.runs.folder import RunFolder
            from modelscope_app.tui.views import board_for

            opened = RunFolder.open(run)
            yield board_for(opened, opened.views[0])

        def on_view_board_shown(self) -> None:
            from modelscope_app.tui.views.board import ViewBoard

            self.query_one(ViewBoard).focus_body()

    class Bare(App[None]):
        def compose(self) -> ComposeResult:
            import polars
            from textual_fastdatatable import DataTable
            from textual_fastdatatable.backend import PolarsBackend

            yield DataTable(backend=PolarsBackend.from_dataframe(polars.read_parquet(run / "tables" / "rows.parquet")))

        def on_mount(self) -> None:
            from textual_fastdatatable import DataTable

            self.query_one(DataTable).focus()

    (Ours if which == "ours" else Bare)().run()


def made_run(folder: Path, rows: int) -> Path:
    """A run with one table of that many rows, and a view of it."""
    import numpy
    import polars

    from modelscope_app.api import TableView
    from modelscope_app.runs.folder import RunFolder
    from modelscope_app.runs.job import Job
    from modelscope_app.runs.status import Status, write_status

    draw = numpy.random.default_rng(0)
    frame = polars.DataFrame(
        {
            "tensor": [f"model.layers.{at % 32}.mlp.up_proj.weight.part.{at}" for at in range(rows)],
            "layer": numpy.arange(rows) % 32,
            "norm": draw.normal(size=rows),
            "weight_bytes": draw.integers(0, 10**9, rows),
            "share": draw.random(rows),
            "dtype": [("BF16", "F32", "F16")[at % 3] for at in range(rows)],
        }
    )
    job = Job(
        id="bench-table",
        analysis="weights.stats",
        analysis_version=1,
        plugin={"distribution": "modelscope-app", "version": "0"},
        params={},
        checkpoints=(),
        inputs=(),
        device="cpu",
        dtype="auto",
        seed=0,
        created="2026-01-02T03:04:05+00:00",
        command="mscope run weights.stats",
        interpreter=sys.executable,
    )
    run = RunFolder.create(folder, job)
    run.write_table("rows", frame)
    run.write_view(TableView(name="rows", title="Rows", table="rows"))
    write_status(run.folder, Status(state="done", started=1.0, finished=2.0))
    return run.folder


def _print(**figures: Any) -> None:
    shown = {name: round(value, 4) if isinstance(value, float) else value for name, value in figures.items()}
    print(json.dumps({"bench": "table", **shown}), flush=True)


if __name__ == "__main__":
    main()
