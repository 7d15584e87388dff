"""`mscope analyses [ID]`: what can be run, and the options of one analysis.

The listing imports every plugin and says on stderr which are broken; with an ID only that plugin is imported.
"""

from __future__ import annotations

import json
import sys
from itertools import groupby
from typing import TYPE_CHECKING, Any

import click

from modelscope_app.api import neutralised

if TYPE_CHECKING:
    from modelscope_app.plugin_host import BoundAnalysis


def _ids(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    from modelscope_app.plugin_host import PluginHost

    return [bound.id for bound in PluginHost().analyses() if bound.id.startswith(incomplete)]


@click.command(context_settings={"help_option_names": ["-h", "--help"]}, short_help="What can be run, and its options.")
@click.argument("id", required=False, shell_complete=_ids)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object; with ID, the JSON Schema of its options too.")
def command(id: str | None, as_json: bool) -> None:
    """List the analyses, or show the options of the analysis ID."""
    from modelscope_app.plugin_host import PluginHost

    host = PluginHost()
    if id is not None:
        bound = host.analysis(id)
        if as_json:
            print(json.dumps(_described(bound), allow_nan=False))
        else:
            _print_analysis(bound)
        return
    found = host.analyses()
    broken = {plugin.candidate.name: host.problems(plugin.candidate.name) for plugin in host.load_all()}
    broken = {name: problems for name, problems in broken.items() if problems}
    if as_json:
        print(json.dumps({"analyses": [_summary(bound) for bound in found], "problems": broken}))
    else:
        _print_listing(found)
    for name, problems in broken.items():
        print(f"mscope: plugin {name}: {neutralised(problems[0])} (mscope plugins doctor)", file=sys.stderr)


def _summary(bound: BoundAnalysis) -> dict[str, Any]:
    takes = bound.analysis.checkpoints
    return {
        "id": bound.id,
        "title": bound.analysis.title,
        "summary": bound.analysis.summary,
        "plugin": bound.plugin,
        "distribution": bound.distribution,
        "version": bound.version,
        "analysis_version": bound.analysis.version,
        "checkpoints": {"minimum": takes.minimum, "maximum": takes.maximum, "kind": takes.kind},
    }


def _described(bound: BoundAnalysis) -> dict[str, Any]:
    from modelscope_app.plugin_host import param_fields, params_schema

    fields = param_fields(bound.analysis.params)
    return {
        **_summary(bound),
        "options": [field.to_json() for field in fields],
        "schema": params_schema(bound.analysis.params),
    }


def _print_listing(found: tuple[BoundAnalysis, ...]) -> None:
    from rich.table import Table
    from rich.text import Text

    from modelscope_app.cli.console import ResultsConsole
    from modelscope_app.rendering.unpadded import Unpadded

    console = ResultsConsole()
    width = max((len(bound.id) for bound in found), default=0)
    for plugin, group in groupby(found, key=lambda bound: bound.plugin):
        analyses = list(group)
        origin = f"{plugin} ({analyses[0].distribution} {analyses[0].version})"
        console.print(Text(neutralised(origin), style="bold"))
        table = Table.grid(padding=(0, 2))
        table.add_column(width=2 + min(width, 36), overflow="fold")
        table.add_column(overflow="fold")
        for bound in analyses:
            summary = f"{bound.analysis.title}: {bound.analysis.summary} Takes {bound.analysis.checkpoints}."
            table.add_row(Text(f"  {bound.id}"), Text(neutralised(summary)))
        console.print(Unpadded(table))
        console.print()
    console.print("mscope analyses ID shows the options of one.")


def _print_analysis(bound: BoundAnalysis) -> None:
    from rich.table import Table
    from rich.text import Text

    from modelscope_app.cli.console import ResultsConsole
    from modelscope_app.plugin_host import param_fields
    from modelscope_app.rendering.unpadded import Unpadded

    analysis = bound.analysis
    console = ResultsConsole()
    console.print(Text(f"{bound.id}: {neutralised(analysis.title)}", style="bold"))
    console.print(neutralised(analysis.summary))
    console.print(f"Takes {analysis.checkpoints}. Version {analysis.version}, from {neutralised(bound.distribution)} {bound.version}.")
    console.print()
    fields = param_fields(analysis.params)
    table = Table.grid(padding=(0, 2))
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    for field in fields:
        option = f"{field.option} / --no-{field.option[2:]}" if field.is_flag else field.option
        words = f"{field.help}\n" if field.help else ""
        note = "required" if field.required else f"default: {field.default_text}"
        table.add_row(Text(f"  {option}"), Text(neutralised(words.strip()) + "\n" * bool(words) + neutralised(f"{field.takes}; {note}")))
    console.print(Unpadded(table) if fields else "It has no options.")
    if analysis.checkpoints.maximum == 0:
        places = ""
    else:
        places = " CHECKPOINT" * max(analysis.checkpoints.minimum, 1)
    console.print(f"\nmscope run {bound.id}{places} [--OPTION VALUE ...]")
