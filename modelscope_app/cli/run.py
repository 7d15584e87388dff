"""`mscope run ANALYSIS [CHECKPOINT ...]`: execute an analysis in this process, or give it to the service.

Each analysis is a subcommand made from its params when it is called; only its own plugin is imported.
"""

from __future__ import annotations

import json
import os
import sys
import tomllib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from modelscope_app.api import AssertionFailed, ExitCode, UsageError, neutralised
from modelscope_app.cli.assertions import Assertion

if TYPE_CHECKING:
    from modelscope_app.jobs.interruption import Interruption
    from modelscope_app.jobs.submission import Opened
    from modelscope_app.plugin_host import BoundAnalysis, ParamField, PluginHost
    from modelscope_app.runs.folder import RunFolder
    from modelscope_app.runs.status import Status


_MEANING_WORDS = {"checkpoint": "CHECKPOINT", "run": "RUN", "data-file": "FILE", "file": "FILE", "site": "SITE"}


class Analyses(click.Group):
    """The analyses of all plugins, as subcommands."""

    @cached_property
    def host(self) -> PluginHost:
        """Finds and loads plugins."""
        from modelscope_app.plugin_host import PluginHost

        return PluginHost()

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [bound.id for bound in self.host.analyses()]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Analyses"):
            formatter.write_dl([(bound.id, neutralised(bound.analysis.summary)) for bound in self.host.analyses()])

    def get_command(self, ctx: click.Context, name: str) -> click.Command:
        return analysis_command(self.host.analysis(name), self.host)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0].startswith("-"):
            raise UsageError(f"{args[0]}: options come after the analysis: mscope run ANALYSIS [CHECKPOINT ...] [--OPTION VALUE ...]")
        return args[0], self.get_command(ctx, args[0]), args[1:]


@click.command(
    cls=Analyses,
    subcommand_metavar="ANALYSIS [CHECKPOINT ...] [--OPTION VALUE ...]",
    short_help="Run an analysis.",
    context_settings={"help_option_names": ["-h", "--help"], "ignore_unknown_options": True},
)
def command() -> None:
    """Run an analysis on a checkpoint: in this process, or with --detach in the background.

    `mscope run ANALYSIS --help` shows its options.
    """


def analysis_command(bound: BoundAnalysis, host: PluginHost) -> click.Command:
    """The click command of one analysis: its params as options, then the host's own."""
    from modelscope_app.plugin_host import param_fields

    fields = param_fields(bound.analysis.params)
    names = {field.name for field in fields}

    def callback(checkpoints: tuple[str, ...], **values: Any) -> int:
        typed = {name: value for name, value in values.items() if name in names and value is not None}
        asked = {name.removeprefix("host_"): value for name, value in values.items() if name not in names}
        return run_analysis(bound, host, checkpoints, typed, **asked)

    takes = bound.analysis.checkpoints
    parameters: list[click.Parameter] = []
    if takes.maximum != 0:
        parameters.append(
            click.Argument(["checkpoints"], nargs=-1, type=click.Path(), metavar="CHECKPOINT" + ("" if takes.maximum == 1 else " ..."))
        )
    else:
        parameters.append(click.Argument(["checkpoints"], nargs=-1, type=click.Path(), metavar=""))
    parameters += [_option(field) for field in fields]
    parameters += _host_options()
    return click.Command(
        bound.id,
        params=parameters,
        callback=callback,
        help=f"{neutralised(bound.analysis.title)}: {neutralised(bound.analysis.summary)}\n\nTakes {takes}.",
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )


def run_analysis(
    bound: BoundAnalysis,
    host: PluginHost,
    checkpoints: tuple[str, ...],
    typed: Mapping[str, Any],
    *,
    params: str | None,
    device: str,
    dtype: str,
    seed: int,
    out: str | None,
    as_json: bool,
    quiet: bool,
    assertions: tuple[str, ...],
    detach: bool,
    foreground: bool,
) -> int:
    """Submit and execute one run, print its results, and return the exit code; with `detach`, the service executes it."""
    from modelscope_app.cli import detached
    from modelscope_app.jobs.interruption import Interruption
    from modelscope_app.jobs.submission import HostOptions, new_run, open_checkpoints
    from modelscope_app.plugin_host import parse_params

    if detach:
        detached.check_detachable(foreground, assertions)
    conditions = [Assertion.parse(text) for text in assertions]
    values = parse_params(bound.analysis.params, {**(_params_file(Path(params)) if params else {}), **typed})
    options = HostOptions(device, dtype, seed, Path(out) if out is not None else None)
    if detach:
        return detached.submit(bound, checkpoints, values, options, as_json=as_json, quiet=quiet)
    with Interruption() as interruption:
        interruption.last_words = stopped_before_it_began
        opened = open_checkpoints(bound, checkpoints)
        check_device_is_there(device)
        run = new_run(bound, opened, values, options, warn=lambda sentence: print(f"mscope: warning: {sentence}", file=sys.stderr))
        status = execute_here(run, bound, opened, host, interruption, quiet=quiet, as_json=as_json)
    return report(run, status, as_json=as_json, quiet=quiet, conditions=conditions)


def check_device_is_there(device: str) -> None:
    """Raise UsageError where this process cannot use the device. Imports torch only to look for a GPU."""
    from modelscope_app.models.names import check_device

    if check_device(device).startswith("cuda"):
        from modelscope_app.models import resolve_device

        resolve_device(device)


def stopped_before_it_began(stopped: Interruption) -> None:
    """What is said when checkpoints were still being opened: there is no run yet."""
    print(f"mscope: {stopped.sentence}", file=sys.stderr, flush=True)


def execute_here(
    run: RunFolder, bound: BoundAnalysis, opened: Opened, host: PluginHost, interruption: Interruption, *, quiet: bool, as_json: bool
) -> Status:
    """Execute a run in this process with progress on stderr. One that a service had is its no longer once it has begun."""
    from modelscope_app.cli.detached import TakenBack
    from modelscope_app.cli.progress import listener_for, own_stderr, show_cursor
    from modelscope_app.jobs.execute import execute
    from modelscope_app.settings import read_settings

    stderr = own_stderr()
    results = os.dup(1) if as_json else None  # descriptor 1 is the log while the analysis runs

    def last_words(stopped: Interruption) -> None:
        show_cursor(stderr)
        if results is not None:
            os.write(results, (json.dumps(run.summary(), allow_nan=False) + "\n").encode())
        _say_how_it_ended(run, "cancelled", stopped.sentence, quiet, stderr)

    interruption.last_words = last_words
    save_interval = read_settings().runs.save_interval_seconds
    listener = TakenBack(listener_for(quiet, stderr))
    status = execute(run, bound, opened, host, listener, interruption, save_interval, run.job.device)
    if results is not None:
        os.close(results)
    return status


def report(run: RunFolder, status: Status, *, as_json: bool, quiet: bool, conditions: list[Assertion]) -> int:
    """Print what came of a run and return the exit code."""
    if as_json:
        print_json(run)
    elif status.state == "done":
        print_results(run)
    if status.state != "done":
        _say_how_it_ended(run, status.state, status.error, quiet, sys.stderr)
        return status.exit_code or ExitCode.JOB_FAILED
    facts = run.facts
    failing = [condition.explain(facts) for condition in conditions if not condition.holds(facts)]
    if failing:
        raise AssertionFailed("; ".join(failing))
    return ExitCode.DONE


def _say_how_it_ended(run: RunFolder, state: str, error: str | None, quiet: bool, stderr: TextIO) -> None:
    from modelscope_app.cli.progress import ending, say

    say(f"run {ending(run.id, state, error)}", stderr)
    if state == "cancelled" and not quiet:
        say(f"to go on from where it was: mscope runs resume {run.id}", stderr)


def print_json(run: RunFolder) -> None:
    """The run as one JSON object on stdout, with its warnings if there are any: `--quiet` says none of them on stderr."""
    warnings = run.warnings
    print(json.dumps({**run.summary(), **({"warnings": warnings} if warnings else {})}, allow_nan=False))


def print_results(run: RunFolder) -> None:
    """The run's views, as text, on stdout."""
    from modelscope_app.cli.console import ResultsConsole
    from modelscope_app.rendering.terminal import print_run

    print_run(run, ResultsConsole())


def _option(field: ParamField) -> click.Option:
    help_text = neutralised(field.help)
    if field.is_flag:
        return click.Option(
            [f"{field.option}/--no-{field.option.removeprefix('--')}", field.name], default=None, help=f"{help_text} [{field.default_text}]"
        )
    note = "required" if field.required else f"default: {field.default_text}"

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
        from click.shell_completion import CompletionItem

        if field.meaning is not None and field.meaning.kind not in ("site", "selection"):
            return [CompletionItem(incomplete, type="file")]
        return [CompletionItem(choice) for choice in field.choices or () if choice.startswith(incomplete)]

    return click.Option(
        [field.option, field.name],
        default=None,
        metavar=_metavar(field),
        help=f"{help_text} ({field.takes}; {note})",
        shell_complete=complete,
    )


def _metavar(field: ParamField) -> str:
    """The word that stands for a value in the usage line."""
    if field.meaning is not None:
        word = _MEANING_WORDS.get(field.meaning.kind, "TEXT")
    elif field.choices:
        word = "|".join(field.choices)
    else:
        word = "TEXT" if field.type.is_text else "NUMBER"
    return f"{word},..." if field.is_list else word


def _host_options() -> list[click.Parameter]:
    return [
        click.Option(["--params", "host_params"], metavar="FILE", help="Options from a .toml or .json file; those typed here win."),
        click.Option(["--device", "host_device"], default="auto", show_default=True, help="auto, cpu, cuda or cuda:i."),
        click.Option(
            ["--dtype", "host_dtype"], default="auto", show_default=True, help="auto (as stored), float32, bfloat16, float16 or float64."
        ),
        click.Option(
            ["--seed", "host_seed"], type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help="Seed of everything random."
        ),
        click.Option(["--out", "host_out"], metavar="DIR", help="The run folder: new or empty. Default: one in the data folder."),
        click.Option(["--detach", "host_detach"], is_flag=True, help="Give it to the service, print the run's id, and return at once."),
        click.Option(["--foreground", "host_foreground"], is_flag=True, help="Execute it in this process, as without --detach."),
        click.Option(["--json", "host_as_json"], is_flag=True, help="Print the result as one JSON object."),
        click.Option(["--quiet", "-q", "host_quiet"], is_flag=True, help="No progress and no messages; errors are still said."),
        click.Option(
            ["--assert", "host_assertions"], multiple=True, metavar="EXPR", help='Exit 5 unless it holds, as "nan == 0". Repeatable.'
        ),
    ]


def _params_file(path: Path) -> dict[str, Any]:
    if path.suffix not in (".toml", ".json"):
        raise UsageError(f"--params {path}: takes a .toml or .json file")
    try:
        content = path.read_text(encoding="utf-8")
        value = tomllib.loads(content) if path.suffix == ".toml" else json.loads(content)
    except OSError as error:
        raise UsageError(f"--params {path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--params {path}: cannot be read ({error})") from None
    if not isinstance(value, dict):
        raise UsageError(f"--params {path}: holds no table of options")
    return {name.replace("-", "_"): item for name, item in value.items()}
