"""`mscope inspect`: what a checkpoint or a series is, from its headers alone.

JSON is one object on stdout. For people it is a short page; rich is imported for that page only. Names come from files that
anybody may have made, so the page shows them neutralised and without markup; JSON escapes what a terminal would obey.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from modelscope_app.api.text import neutralised

if TYPE_CHECKING:
    from rich.console import Console

    from modelscope_app.checkpoints import OpenCheckpoint, OpenSeries
    from modelscope_app.checkpoints.overview import Overview

_MOST_LINES = 40
"""Lines of the module table; the rest is counted in a last line."""


@click.command(name="inspect", short_help="Show what a checkpoint holds, without loading it.")
@click.argument("checkpoint", type=click.Path())
@click.option("--tensors", is_flag=True, help="List every tensor.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--fingerprint", is_flag=True, help="Also compute the content fingerprint, which reads the values.")
def command(checkpoint: str, tensors: bool, as_json: bool, fingerprint: bool) -> None:
    """Show what CHECKPOINT holds, from its headers alone: a folder or file of safetensors, a series, or hf:org/name."""
    from modelscope_app.checkpoints import is_series_only

    if is_series_only(checkpoint):
        _inspect_series(checkpoint, tensors, as_json, fingerprint)
        return
    from modelscope_app.checkpoints import open_checkpoint
    from modelscope_app.checkpoints.overview import overview

    opened = open_checkpoint(checkpoint)
    facts = overview(opened)
    value = opened.fingerprint if fingerprint else None
    if as_json:
        result = {**facts.to_json(), "fingerprint": value}
        if tensors:
            result["tensor_headers"] = _tensor_headers(opened)
        _print_json(result)
        return
    _print_overview(facts, value)
    if tensors:
        _print_tensors(opened)


def _inspect_series(path: str, tensors: bool, as_json: bool, fingerprint: bool) -> None:
    from modelscope_app.checkpoints import open_series

    series = open_series(path)
    rows: list[dict[str, Any]] = []
    for member, opened in zip(series.members, series.checkpoints, strict=True):
        row: dict[str, Any] = {
            "step": member.step,
            "name": opened.name,
            "path": str(opened.path),
            "tensors": len(opened.tensors),
            "parameters": opened.parameters,
            "bytes": opened.bytes,
            "fingerprint": opened.fingerprint if fingerprint else None,
        }
        if tensors and as_json:
            row["tensor_headers"] = _tensor_headers(opened)
        rows.append(row)
    differences = series.shape_differences()
    if as_json:
        result = {"path": str(series.path), "name": series.name, "kind": "series", "steps": list(series.steps)}
        _print_json({**result, "checkpoints": rows, "shape_differences": differences})
        return
    _print_series(series, rows, differences)
    if tensors:
        _print_tensors(series.checkpoints[0])


def _tensor_headers(checkpoint: OpenCheckpoint) -> list[dict[str, Any]]:
    return [
        {
            "name": header.name,
            "dtype": header.dtype,
            "shape": list(header.shape),
            "parameters": header.parameters,
            "bytes": header.bytes,
            "shard": header.shard,
        }
        for header in checkpoint.tensors.values()
    ]


def _print_json(value: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(value, allow_nan=False) + "\n")


def _print_overview(facts: Overview, fingerprint: str | None) -> None:
    from rich.table import Table
    from rich.text import Text

    from modelscope_app.checkpoints.in_words import facts_of
    from modelscope_app.rendering.unpadded import Unpadded

    console = _console()
    console.print(Text(neutralised(facts.name), style="bold"), Text(f"  {neutralised(facts.path)}", style="dim"), sep="", soft_wrap=True)
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for label, value in facts_of(facts, fingerprint):
        table.add_row(label, Text(neutralised(value)))
    console.print(Unpadded(table))
    console.print()
    _print_modules(console, facts)


def _print_modules(console: Console, facts: Overview) -> None:
    from rich.table import Table
    from rich.text import Text

    from modelscope_app.checkpoints.in_words import module_lines, short
    from modelscope_app.rendering.unpadded import Unpadded

    lines = list(module_lines(facts.by_module))
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("module", overflow="fold")
    for heading in ("tensors", "parameters", "share"):
        table.add_column(heading, justify="right", no_wrap=True)
    for label, module in lines[:_MOST_LINES]:
        share = f"{100 * module.parameters / facts.parameters:.1f}%" if facts.parameters else ""
        table.add_row(Text(short(label)), f"{module.tensors:,}", f"{module.parameters:,}", share)
    console.print(Unpadded(table))
    if len(lines) > _MOST_LINES:
        console.print(Text(f"... {len(lines) - _MOST_LINES:,} more lines; --json has them all", style="dim"))


def _print_tensors(checkpoint: OpenCheckpoint) -> None:
    """One line a tensor, the name last: a table of 18,000 rows would take seconds to lay out."""
    rows = [(header.dtype, str(list(header.shape)), header.name) for header in checkpoint.tensors.values()]
    dtype_width = max((len(neutralised(dtype)) for dtype, _, _ in rows), default=0)
    shape_width = min(24, max((len(shape) for _, shape, _ in rows), default=0))
    lines = [f"{neutralised(dtype):<{dtype_width}}  {shape:<{shape_width}}  {neutralised(name)}" for dtype, shape, name in rows]
    click.echo("\n" + "\n".join(lines))


def _print_series(series: OpenSeries, rows: Sequence[dict[str, Any]], differences: Sequence[str]) -> None:
    from rich.table import Table
    from rich.text import Text

    from modelscope_app.checkpoints.in_words import short, size_text
    from modelscope_app.rendering.unpadded import Unpadded

    console = _console()
    console.print(
        Text(neutralised(series.name), style="bold"), Text(f"  {neutralised(str(series.path))}", style="dim"), sep="", soft_wrap=True
    )
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("step", justify="right", no_wrap=True)
    table.add_column("checkpoint", overflow="fold")
    for heading in ("tensors", "parameters", "size"):
        table.add_column(heading, justify="right", no_wrap=True)
    with_fingerprint = any(row["fingerprint"] for row in rows)
    if with_fingerprint:
        table.add_column("fingerprint", overflow="fold")
    for row in rows:
        cells = [
            f"{row['tensors']:,}",
            f"{row['parameters']:,}",
            size_text(row["bytes"]),
            *([row["fingerprint"]] if with_fingerprint else []),
        ]
        table.add_row(str(row["step"]), Text(short(row["name"])), *cells)
    console.print(Unpadded(table))
    if not differences:
        console.print(Text("All members have the same tensors and shapes.", style="dim"))
    for difference in differences[:8]:
        console.print(Text(neutralised(difference)))
    if len(differences) > 8:
        console.print(Text(f"... and {len(differences) - 8:,} more differences; --json has them all", style="dim"))


def _console() -> Console:
    from modelscope_app.cli.console import ResultsConsole

    return ResultsConsole()
