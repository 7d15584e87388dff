"""`mscope plugins`: which plugins there are, what is wrong with them, and the start of a new one.

`list` imports no plugin and always exits 0. `doctor` imports all of them, looks at everything they contribute, and exits 3 if
anything is broken; warnings (a slow import, a disabled name that is not installed) leave it at 0.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from modelscope_app.api import ExitCode, neutralised

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

    from modelscope_app.plugin_host import HostReport, PluginReport


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, short_help="List, check and create plugins.")
def command() -> None:
    """Plugins bring analyses, model families, data formats and panels; each is an installed Python package."""


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def list_plugins(as_json: bool) -> None:
    """Show the installed plugins, without importing any."""
    from modelscope_app.plugin_host import PluginHost

    host = PluginHost()
    candidates = host.candidates()
    names = [candidate.name for candidate in candidates]

    def state(name: str) -> str:
        return "disabled" if host.is_disabled(name) else "refused: two plugins have this name" if names.count(name) > 1 else "enabled"

    if as_json:
        plugins = [
            {
                "name": candidate.name,
                "distribution": candidate.distribution,
                "version": candidate.version,
                "module": candidate.module,
                "state": state(candidate.name).partition(":")[0],
            }
            for candidate in candidates
        ]
        print(json.dumps({"plugins": plugins, "problems": list(host.unreadable)}))
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("plugin", "distribution", "version", "state"):
        table.add_column(heading, overflow="fold")
    for candidate in candidates:
        table.add_row(*map(_text, (candidate.name, candidate.distribution, candidate.version, state(candidate.name))))
    _print(table)
    for problem in host.unreadable:
        print(f"mscope: {neutralised(problem)}", file=sys.stderr)


@command.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor(as_json: bool) -> int:
    """Import every plugin and say what is wrong with it. Exits 3 if anything is broken, 0 with warnings only.

    The milliseconds are those of the plugin's import, without what was imported before it.
    """
    from modelscope_app.plugin_host import PluginHost

    report = PluginHost().report()
    if as_json:
        print(json.dumps(report.to_json()))
    else:
        _print_report(report)
    return ExitCode.DONE if report.is_healthy else ExitCode.BAD_INPUT


@command.command("new")
@click.argument("name")
@click.option("--folder", type=click.Path(path_type=Path), help="Folder to create. Default: ./modelscope-NAME.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def new(name: str, folder: Path | None, as_json: bool) -> None:
    """Write a small plugin that works, to start from.

    NAME begins the ids of its analyses (NAME.largest): lower-case words joined by dashes.
    """
    from modelscope_app.plugin_host import PluginHost
    from modelscope_app.plugin_host.scaffold import new_plugin

    created = new_plugin(name, folder, {candidate.name: candidate.distribution for candidate in PluginHost().candidates()})
    if as_json:
        print(json.dumps({"name": name, "folder": str(created.folder), "files": [str(path) for path in created.files]}))
        return
    for path in created.files:
        print(neutralised(str(path)))
    print(f"\nNext: pip install -e {neutralised(str(created.folder))} && mscope run {name}.largest CHECKPOINT", file=sys.stderr)


def _print_report(report: HostReport) -> None:
    for plugin in report.plugins:
        _print(*_plugin_lines(plugin), "")
    for problem in report.problems:
        _print(_line("problem", problem))
    for warning in report.warnings:
        _print(_line("warning", warning))
    broken = sum(1 for plugin in report.plugins if plugin.problems) + len(report.problems)
    warned = sum(1 for plugin in report.plugins if plugin.warnings) + len(report.warnings)
    total = len(report.plugins)
    _print(f"{total} plugin{'' if total == 1 else 's'}, {broken} with problems, {warned} with warnings")


def _plugin_lines(plugin: PluginReport) -> list[RenderableType]:
    """What the doctor says about one plugin, a line a thing."""
    heading = f"{plugin.name}: {plugin.state}"
    lines: list[RenderableType] = [_text(heading, style="bold"), _line("from", f"{plugin.distribution} {plugin.version}, {plugin.module}")]
    if plugin.import_ms is not None:
        lines.append(_line("import", f"{plugin.import_ms:.1f} ms"))
    if plugin.api is not None:
        lines.append(_line("API", f"{plugin.api[0]} to {plugin.api[1]}"))
    for label, values in (
        ("hooks", plugin.hooks),
        ("analyses", plugin.analyses),
        ("models", plugin.architectures),
        ("readers", plugin.readers),
        ("panels", plugin.panels),
    ):
        if values:
            lines.append(_line(label, ", ".join(values)))
    lines += [_line("problem", problem) for problem in plugin.problems]
    lines += [_line("warning", warning) for warning in plugin.warnings]
    return lines


def _line(label: str, words: str) -> Table:
    """A labelled line whose continuation lines are indented under its words."""
    from rich.table import Table

    grid = Table.grid(padding=(0, 1))
    grid.add_column(width=10)
    grid.add_column(overflow="fold")
    grid.add_row(f"  {label}", _text(words))
    return grid


def _text(words: str, style: str = "") -> Text:
    """Plain text: neutralised, and never read as markup."""
    from rich.text import Text

    return Text(neutralised(words), style=style)


def _print(*lines: RenderableType) -> None:
    from modelscope_app.cli.console import ResultsConsole

    console = ResultsConsole()
    for line in lines:
        console.print(line)
