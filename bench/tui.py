"""The terminal app in a real pseudo-terminal: how soon a checkpoint is on the screen, and what memory that takes.

    python bench/tui.py [--rounds 15]

| figure      | what is measured                                                                                                    |
|-------------|---------------------------------------------------------------------------------------------------------------------|
| first paint | from starting the process to the overview of a checkpoint of 18,000 tensors in 200 shards; for `empty`, to the first   |
|             | words of a textual app that shows one line. The two take turns; the ratio is the median of the ratios within turns      |
| memory      | resident memory of the app with that overview on the screen                                                          |
| busy table  | key to paint in a table of 1,000,000 rows while a job of the service sends 1,000 events a second, against the same      |
|             | table before the job began                                                                                            |

Both apps have their bytecode, as pip leaves it; PYTHONDONTWRITEBYTECODE would have an editable install compile itself at every start.

`bench/table.py` compares the table with the bare widget. Each line of output is one JSON object.
"""

from __future__ import annotations

import argparse
import compileall
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from inspect_comparison import checkpoint
from jobs import own_folders
from pseudo_terminal import PseudoTerminal
from table import DOWN, made_run

import modelscope_app

MOST_TIMES_EMPTY = 2.0
MOST_TIMES_QUIET = 2.0
MOST_MEGABYTES = 200.0
_OVERVIEW = b"18,000 tensors"
_EMPTY = """
from textual.app import App
from textual.widgets import Static
class Empty(App):
    def compose(self):
        yield Static("this is empty")
Empty().run()
"""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    compileall.compile_dir(Path(modelscope_app.__file__).parent, quiet=1)
    cache = Path(tempfile.gettempdir()) / f"mscope-bench-{os.getuid()}"
    folder = checkpoint(cache / "inspect-18000-200-v1")
    with tempfile.TemporaryDirectory(prefix="mscope-bench-") as own:
        own_folders(Path(own))
        first_paint(folder, rounds)
        busy_table(Path(own), rounds)


def app(*words: object) -> list[str]:
    """`mscope` of this interpreter."""
    return [sys.executable, "-m", "modelscope_app.cli.start", *map(str, words)]


def first_paint(folder: Path, rounds: int) -> None:
    """Of the overview, and of an empty app."""
    ours, empty, memory = [], [], []
    for turn in range(rounds + 1):
        with PseudoTerminal([sys.executable, "-c", _EMPTY]) as terminal:
            seconds_empty = terminal.until(b"this is empty")
        with PseudoTerminal(app(folder)) as terminal:
            seconds_ours = terminal.until(_OVERVIEW)
            terminal.drain(1.0)
            memory.append(terminal.resident_mb())
        if turn:  # the first one fills caches
            ours.append(seconds_ours)
            empty.append(seconds_empty)
    _print(figure="first paint", who="empty", seconds=statistics.median(empty), least=min(empty), rounds=rounds)
    _print(figure="first paint", who="mscope", seconds=statistics.median(ours), least=min(ours), rounds=rounds)
    ratio = statistics.median(one / other for one, other in zip(ours, empty, strict=True))
    _print(figure="first paint, mscope over empty", ratio=ratio, at_most=MOST_TIMES_EMPTY, holds=ratio <= MOST_TIMES_EMPTY)
    _print(figure="memory", mb=statistics.median(memory), at_most=MOST_MEGABYTES, holds=max(memory) <= MOST_MEGABYTES)


def busy_table(own: Path, rounds: int) -> None:
    """Keys in a large table, first while nothing runs, then beside a job that talks all the time."""
    run = made_run(own / "run", 1_000_000)
    with PseudoTerminal(app(run)) as terminal:
        terminal.until(b"part.")
        terminal.drain(2.0)
        terminal.press(b"1")
        terminal.drain(1.0)
        quiet = [terminal.key_to_paint(DOWN)[0] for _ in range(rounds)]
        busy = _beside_a_talking_job(terminal, rounds)
    _print(figure="busy table", who="quiet", seconds=statistics.median(quiet), most=max(quiet), rounds=rounds)
    _print(figure="busy table", who="busy", seconds=statistics.median(busy), most=max(busy), rounds=len(busy))
    ratio = statistics.median(busy) / statistics.median(quiet)
    _print(figure="busy table, busy over quiet", ratio=ratio, at_most=MOST_TIMES_QUIET, holds=ratio <= MOST_TIMES_QUIET)


def _beside_a_talking_job(terminal: PseudoTerminal, rounds: int) -> list[float]:
    from modelscope_app.jobs import Client

    with Client() as client:
        job = client.submit("bench-jobs.talking", params={"count": 60_000})
        try:
            for event in client.events(job.run):
                if event["seq"] > 100:
                    break
            seconds = [terminal.key_to_paint(DOWN, quiet=0.03)[0] for _ in range(rounds)]
            state = client.job(job.run).state
            if state != "running":
                raise SystemExit(f"the job that sends events ended too soon: {state}")
            return seconds
        finally:
            client.shutdown(force=True)


def _print(**figures: Any) -> None:
    shown = {name: round(value, 4) if isinstance(value, float) else value for name, value in figures.items()}
    print(json.dumps({"bench": "tui", **shown}), flush=True)


if __name__ == "__main__":
    main()
