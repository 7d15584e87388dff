"""Opening the terminal app on the terminal there is. No click here: `cli.start` comes this way when a checkpoint is all that was named.

While the app runs, file descriptors 1 and 2 are a log file, and it draws on descriptors of its own: whatever a library or a plugin
prints cannot disturb the screen.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NoReturn

from modelscope_app.api.errors import BadInput, ExitCode, UsageError

if TYPE_CHECKING:
    from modelscope_app.tui.app import AppSettings, MscopeApp


def open_app(checkpoint: str | None) -> NoReturn:
    """Run the app to its end, and end the process. Raises UsageError without a terminal, BadInput for wrong settings."""
    if checkpoint is not None and not checkpoint.startswith("hf:") and _is_missing(os.path.expanduser(checkpoint)):  # noqa: PTH111
        from modelscope_app.api.text import neutralised

        raise BadInput(f"{neutralised(checkpoint)} does not exist; name a folder or file of safetensors, a run folder, or hf:org/name")
    check_terminal()
    from modelscope_app.tui.checkpoint.early import early_reading

    early = early_reading(checkpoint)
    gc.disable()  # nothing made on the way to the first paint is garbage; the app turns it on again
    from modelscope_app.tui.app import MscopeApp

    settings = app_settings()
    app = MscopeApp(checkpoint, settings, early)
    with own_terminal():
        app.log_descriptor = 2
        app.run(mouse=settings.mouse)
    for line in last_words(app):
        print(f"mscope: {line}", file=sys.stderr)
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(app.return_code or ExitCode.DONE)  # threads of a plugin that never ends are nobody's any more


def _is_missing(path: str) -> bool:
    """Whether there is nothing; a place one may not look at is said by whoever opens it."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        pass
    return False


def app_settings() -> AppSettings:
    """`[tui]` in config.toml. pydantic, which checks it, takes 90 ms to import, so it is left alone where there is no such file."""
    from modelscope_app.locations import config_dir
    from modelscope_app.tui.app import AppSettings

    if not (config_dir() / "config.toml").exists():
        return AppSettings()
    from modelscope_app.settings import read_settings

    return AppSettings(**read_settings().tui.model_dump())


def check_terminal() -> None:
    """Raise UsageError where there is no terminal the app could be shown on, with what to do instead."""
    instead = "`mscope inspect CHECKPOINT` and `mscope runs list` print the same without one"
    if sys.stdin is None or sys.stdout is None or not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError(f"the app needs a terminal, and this is none; {instead}")
    if os.environ.get("TERM", "") in ("", "dumb"):
        raise UsageError(f"the app cannot be shown on a terminal of type {os.environ.get('TERM') or 'unknown'!r}; set TERM, or: {instead}")
    encoding = (sys.stdout.encoding or "").lower().replace("-", "").replace("_", "")
    if encoding != "utf8":
        raise UsageError(f"the app needs UTF-8, and this terminal's locale says {sys.stdout.encoding}; set LANG=C.UTF-8, or: {instead}")


@contextmanager
def own_terminal() -> Iterator[None]:
    """Keep the terminal for the app alone: what others write to descriptors 1 and 2 goes to tui.log in the state folder."""
    from modelscope_app.locations import state_dir

    path = state_dir() / "tui.log"
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise BadInput(f"{path}: cannot be written ({error.strerror}); MSCOPE_STATE_DIR moves it") from None
    kept = [os.dup(1), os.dup(2)]
    names = ("stdout", "stderr", "__stdout__", "__stderr__")
    streams = {name: getattr(sys, name) for name in names}
    screen = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="backslashreplace")
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    for name in ("__stdout__", "__stderr__"):  # where textual draws and asks for the size
        setattr(sys, name, screen)
    try:
        yield
    finally:
        with suppress(OSError):
            screen.flush()
        for name, stream in streams.items():
            setattr(sys, name, stream)
        for descriptor, original in enumerate(kept, start=1):
            os.dup2(original, descriptor)
            os.close(original)


def last_words(app: MscopeApp) -> list[str]:
    """What is worth knowing after the app is gone: an error that ended it, and jobs that go on."""
    from modelscope_app.locations import state_dir

    active = app.snapshot.active
    said = [f"the app ended with an error, which is its own fault; {state_dir() / 'tui.log'} says which"] if app.return_code == 1 else []
    if not active:
        return said
    first = active[0].run
    more = f" and {len(active) - 1} more" if len(active) > 1 else ""
    return [*said, f"jobs go on: {first}{more}; to follow it: mscope runs watch {first}"]
