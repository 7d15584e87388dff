"""`mscope demo`: the main job on the sample checkpoints, start to end, with a report to look at."""

from __future__ import annotations

from pathlib import Path

import click

from modelscope_app.api import BadInput, ExitCode
from modelscope_app.checkpoints.samples import FIRST, samples_folder


@click.command(short_help="Run the weight analyses on a sample checkpoint and write a report.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the runs. Default: the data folder.")
def command(out: Path | None) -> int:
    """Look into a small trained classifier: its tensors, how a second one differs, how it changed while it learned."""
    from modelscope_app.cli.main import exit_code_of

    samples = samples_folder()
    if samples is None:
        raise BadInput("the sample checkpoints are not installed; clone the repository and run `make demo` there")
    first, second = samples / FIRST, samples / f"{FIRST}-b"
    jobs = [
        ("stats", ["weights.stats", str(first)]),
        ("diff", ["weights.diff", str(first), str(second)]),
        ("series", ["weights.series", str(first / "series")]),
    ]
    if exit_code_of(["inspect", str(first)]):
        return ExitCode.BAD_INPUT
    reports = []
    for name, words in jobs:
        print(f"\n$ mscope run {' '.join(words)}", flush=True)
        folder = _new_folder(out, name) if out is not None else None
        code = exit_code_of(["run", *words, *(["--out", str(folder)] if folder is not None else [])])
        if code:
            return code
        reports.append(_report(folder))
    print("\nReports (open in a browser):")
    for report in reports:
        print(f"  {report}")
    return ExitCode.DONE


def _new_folder(out: Path, name: str) -> Path:
    """`out/name`, or the first `out/name-2`, `-3` ... that is not taken, so that a demo never overwrites."""
    number, folder = 1, out / name
    while folder.exists():
        number += 1
        folder = out / f"{name}-{number}"
    return folder


def _report(folder: Path | None) -> Path:
    from modelscope_app.rendering.export import export_run
    from modelscope_app.runs.index import find_run

    return export_run(find_run(str(folder) if folder is not None else "latest"), "html", None)[0]
