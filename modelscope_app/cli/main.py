"""The `mscope` command: which subcommands there are, and how errors leave.

Subcommands are imported when they are called, so `mscope --help` imports neither torch nor polars nor textual, and no plugin.
stdout carries results; everything else goes to stderr.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import click

from modelscope_app import __version__
from modelscope_app.api.errors import ExitCode, MscopeError
from modelscope_app.cli.subcommands import SUBCOMMANDS, is_to_open

BROKEN_PIPE = 141
"""128 + SIGPIPE: whoever read stdout went away."""


class ReaderGone(Exception):
    """Whoever read stdout went away. No OSError, because click would make exit code 1 of that."""


class Subcommands(click.Group):
    """A group that imports a subcommand when it is called, not when it is listed."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise ReaderGone from None

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(SUBCOMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in SUBCOMMANDS:
            return None
        command: click.Command = importlib.import_module(SUBCOMMANDS[name][0]).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in SUBCOMMANDS.items()])

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if is_to_open(name):
            return "open", self.get_command(ctx, "open"), args
        return super().resolve_command(ctx, args)


@click.group(cls=Subcommands, context_settings={"help_option_names": ["-h", "--help"]}, invoke_without_command=True)
@click.version_option(__version__, prog_name="mscope")
@click.pass_context
def mscope(ctx: click.Context) -> None:
    """Open a safetensors checkpoint and run analyses on it.

    \b
    mscope                               the terminal app
    mscope CHECKPOINT                    the terminal app, on a checkpoint
    mscope inspect CHECKPOINT            what is in it
    mscope analyses                      what can be run
    mscope run weights.stats CHECKPOINT  run one
    mscope runs list                     what was run
    mscope runs watch RUN                follow one that was given to the service with --detach
    """
    if ctx.invoked_subcommand is None:
        if not (sys.stdin and sys.stdin.isatty() and sys.stdout.isatty()):
            raise click.exceptions.NoArgsIsHelpError(ctx)
        ctx.invoke(ctx.command.get_command(ctx, "open"))  # type: ignore[attr-defined]


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run `mscope` and exit with its code. Errors for people are one sentence on stderr, never a traceback."""
    if sys.stdout is None:  # closed by whoever started us
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - open as long as the process
    code = exit_code_of(arguments)
    if code in (ExitCode.HANGUP, ExitCode.CANCELLED, ExitCode.TERMINATED):
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()
        os._exit(code)  # taking torch down would make whoever pressed ctrl+c wait; what is to be kept is on disk
    sys.exit(code)


def exit_code_of(arguments: Sequence[str] | None = None) -> int:
    """Run `mscope` with `arguments` (those of the process by default); its exit code."""
    try:
        code = mscope.main(args=None if arguments is None else list(arguments), prog_name="mscope", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else ExitCode.DONE
    except MscopeError as error:
        say(str(error))
        return error.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return ExitCode.USAGE
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "mscope"
        say(f"{MscopeError(error.format_message())} (see {command} --help)")
        return ExitCode.USAGE
    except click.ClickException as error:
        say(str(MscopeError(error.format_message())))
        return ExitCode.USAGE
    except (click.Abort, KeyboardInterrupt):
        return ExitCode.CANCELLED
    except (ReaderGone, BrokenPipeError):
        _forget_stdout()
        return BROKEN_PIPE
    except OSError as error:
        _forget_stdout()
        place = f"{error.filename}: " if error.filename else ""
        say(str(MscopeError(f"{place}{error.strerror or error}")))
        return ExitCode.BAD_INPUT
    except Exception as error:
        say(str(MscopeError(f"internal error ({type(error).__name__}: {error}); {_kept_traceback()}")))
        return ExitCode.JOB_FAILED


def _forget_stdout() -> None:
    """What is left in its buffer cannot be written, and the interpreter would say so once more at exit."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _kept_traceback() -> str:
    """Write the traceback of an error nobody foresaw to a file; a sentence on where it is."""
    import traceback

    from modelscope_app.locations import state_dir

    path = state_dir() / "internal-error.txt"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(traceback.format_exc(), encoding="utf-8", errors="backslashreplace")
    except OSError:
        return "please report it"
    return f"please report it with {path}"


def say(message: str) -> None:
    """One line on stderr, from the program."""
    print(f"mscope: {message}", file=sys.stderr)


if __name__ == "__main__":
    main()
