"""Executing a run: from a queued (or lost, cancelled, failed) run folder to a final state.

When things fail, the state says so and the sentence is kept: asked to stop -> `cancelled`; an error for the user, out of memory,
a full disk, or anything the analysis raises -> `failed` (the traceback goes to log.txt alone). Killed without a word, the lock
is free and the state unfinished, which readers see as `lost`. `cancelled`, `failed` and `lost` runs can be resumed.

While the analysis runs, file descriptors 1 and 2 are the log: nothing it or its libraries print gets into the results or between
the lines of progress. A listener that writes to the terminal holds a descriptor of its own.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelscope_app.api import BadInput, ExitCode, JobCancelled, JobFailed, MscopeError
from modelscope_app.jobs.interruption import Interruption
from modelscope_app.jobs.listener import Listener
from modelscope_app.jobs.memory import mark_peak, peak_bytes, resident_bytes
from modelscope_app.jobs.models import FreshModels, ModelSource
from modelscope_app.jobs.out_of_memory import is_device_lost, is_out_of_memory
from modelscope_app.jobs.peaks import record_peak
from modelscope_app.jobs.submission import Opened
from modelscope_app.runs.events import EventLog
from modelscope_app.runs.folder import RunFolder
from modelscope_app.runs.status import FINAL_STATES, RunLock, Status, write_status

if TYPE_CHECKING:
    from modelscope_app.plugin_host import BoundAnalysis, PluginHost

_PROGRESS_EVENT_SECONDS = 0.25
_PROGRESS_STATUS_SECONDS = 1.0
_RESERVE_BYTES = 64 * 1024
"""Room kept in the run folder so that a full disk can still be recorded."""
_QUIET_LIBRARIES = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
}


def execute(
    run: RunFolder,
    analysis: BoundAnalysis,
    opened: Opened,
    host: PluginHost,
    listener: Listener,
    interruption: Interruption,
    save_interval_seconds: float,
    device: str = "auto",
    models: ModelSource | None = None,
) -> Status:
    """Run the analysis to its end and return the final status.

    `device` is where a run goes that has not begun yet; one that is resumed goes where it began. Without `models`, those the
    analysis asks for are built for it alone. Nothing an analysis does raises here. Raises BadInput for a run that somebody else
    executes or has finished, or whose folder cannot be written.
    """
    lock = RunLock(run.folder)
    try:
        if run.status == "done":  # looked at under the lock: another process may just have finished it
            raise BadInput(f"run {run.id} is done; there is nothing to execute")
        with _writing_to(run), closing(EventLog(run.folder)) as events:
            progress = _Progress(run, events, listener)
            interruption.on_timeout = lambda stopped: progress.end(stopped.ends_as, stopped.sentence, stopped.exit_code)
            interruption.on_asked = progress.asked
            if interruption.is_requested:  # before it began
                progress.end(interruption.ends_as, interruption.sentence, interruption.exit_code)
                return progress.status
            progress.begin()
            listener.started(run.id, str(run.folder))
            try:
                call = partial(
                    _call,
                    run,
                    analysis,
                    opened,
                    host,
                    interruption,
                    progress,
                    events,
                    save_interval_seconds,
                    device,
                    models or FreshModels(),
                )
                with _output_into(run.folder / "log.txt"):
                    _record_how_it_ends(call, progress, interruption)
            finally:
                listener.ended()
            record_peak(run, progress.status)
            return progress.status
    finally:
        lock.release()


@contextmanager
def _writing_to(run: RunFolder) -> Iterator[None]:
    """Errors of the host's own files as a sentence."""
    try:
        yield
    except OSError as error:
        raise BadInput(f"{run.folder}: the run folder cannot be written ({error.strerror or error})") from error


def _record_how_it_ends(call: Callable[[], None], progress: _Progress, interruption: Interruption) -> None:
    try:
        call()
    except JobCancelled as error:
        progress.end(interruption.ends_as, str(error), interruption.exit_code)
    except MscopeError as error:
        progress.end("failed", str(error), error.exit_code)
    except BaseException as error:  # sys.exit and the panics of Rust libraries are no Exceptions
        with suppress(OSError):
            traceback.print_exc(file=sys.stdout)
        if is_device_lost(error):
            progress.end("lost", _device_lost_sentence(error), ExitCode.JOB_FAILED)
        else:
            progress.end("failed", _sentence(error), ExitCode.JOB_FAILED)
    else:
        progress.end("done", None, ExitCode.DONE)


def _call(
    run: RunFolder,
    analysis: BoundAnalysis,
    opened: Opened,
    host: PluginHost,
    interruption: Interruption,
    progress: _Progress,
    events: EventLog,
    save_interval_seconds: float,
    device: str,
    models: ModelSource,
) -> None:
    for name, value in _QUIET_LIBRARIES.items():
        os.environ.setdefault(name, value)
    import torch

    from modelscope_app.jobs.context import RunningContext
    from modelscope_app.jobs.device_memory import DeviceMeter
    from modelscope_app.jobs.stages import Stages
    from modelscope_app.models import resolve_device
    from modelscope_app.plugin_host import load_function, parse_params

    device = progress.status.device or str(resolve_device(device))
    torch.set_num_threads(progress.status.threads or torch.get_num_threads())
    progress.placed(device, torch.get_num_threads())
    if device != "cpu":
        torch.cuda.set_device(device)  # for kernels and plugins that take the current one
    interruption.check()
    function = load_function(analysis.analysis.run)
    params = parse_params(analysis.analysis.params, run.job.params)
    stages = Stages(
        run.folder / "stages",
        run.job.seed,
        save_interval_seconds,
        interruption.check,
        progress.stage,
        progress.step,
        progress.warning,
    )
    context = RunningContext(
        run,
        opened.checkpoints,
        opened.series,
        stages,
        events,
        host,
        models,
        device,
        interruption.check,
        progress.step,
        progress.warning,
    )
    progress.measure_from_here()
    meter = DeviceMeter(device)
    try:
        function(context, params)
    finally:
        progress.device_peak_bytes = meter.peak_bytes(models.newly_built_bytes)
    context.check_inputs()
    interruption.check()


class _Progress:
    """Writes status and events, and tells the listener; the first final state wins."""

    def __init__(self, run: RunFolder, events: EventLog, listener: Listener) -> None:
        self._run = run
        self._events = events
        self._listener = listener
        self._reserve = run.folder / ".reserve"
        self._guard = threading.Lock()
        self._last_event = 0.0
        self._last_status = 0.0
        self.device_peak_bytes: int | None = None
        before = run.read_status()
        self.status = Status(state="queued", attempts=before.attempts, device=before.device, threads=before.threads)

    def begin(self) -> None:
        """The run is running."""
        self._reserve.write_bytes(bytes(_RESERVE_BYTES))
        self._write(
            state="running",
            started=time.time(),
            pid=os.getpid(),
            host=socket.gethostname(),
            attempts=self.status.attempts + 1,
        )
        self._events.add("state", state="running")

    def placed(self, device: str, threads: int) -> None:
        """Where it runs, and with how many threads; so it will be when it is resumed."""
        self._write(device=device, threads=threads)

    def asked(self, interruption: Interruption) -> None:
        """Somebody asked for its end; a run that will be taken up again goes on looking as it did."""
        with suppress(OSError, BadInput), self._guard:
            if interruption.ends_as == "cancelled" and self.status.state == "running":
                self.status = replace(self.status, state="cancelling")
                write_status(self._run.folder, self.status)
                self._events.add("state", state="cancelling")

    def measure_from_here(self) -> None:
        """Torch is imported and the checkpoint open: what memory is taken from here on is the analysis'."""
        mark_peak()
        with self._guard:  # on disk with the next change: each write waits for the disk, and the first step waits for them all
            self.status = replace(self.status, memory_before_bytes=resident_bytes())

    def stage(self, name: str, resumed: bool) -> None:
        """A stage begins, or its stored result is used."""
        self._events.add("stage", name=name, resumed=resumed)
        self._write(stage=name, done=None, total=None, unit=None)
        self._listener.stage(name, resumed)

    def step(self, stage: str, done: float, total: float | None, unit: str) -> None:
        """The stage has come so far."""
        self._listener.progress(stage, done, total, unit)
        with self._guard:
            self.status = replace(self.status, stage=stage, done=done, total=total, unit=unit)
        now = time.monotonic()
        if now - self._last_event >= _PROGRESS_EVENT_SECONDS:
            self._last_event = now
            self._events.add("progress", stage=stage, done=done, total=total, unit=unit)
        if now - self._last_status >= _PROGRESS_STATUS_SECONDS:
            self._last_status = now
            self._write()

    def warning(self, message: str) -> None:
        """A sentence the user should see."""
        sentence = str(MscopeError(message))
        print(f"warning: {sentence}", flush=True)
        self._events.add("warning", message=sentence)
        self._listener.warning(sentence)

    def end(self, state: Any, error: str | None, exit_code: int) -> None:
        """Write the final state, unless there is one. On a full disk the room kept for it is used."""
        self._reserve.unlink(missing_ok=True)
        with suppress(OSError, BadInput):
            self._write(
                state=state,
                error=error,
                exit_code=int(exit_code),
                finished=time.time(),
                peak_memory_bytes=peak_bytes(),
                device_peak_bytes=self.device_peak_bytes,
            )
            self._events.add("state", state=self.status.state, error=self.status.error)

    def _write(self, **changes: Any) -> None:
        """Change the status and write it; after a final state nothing is changed any more."""
        with self._guard:
            if self.status.state not in FINAL_STATES:
                self.status = replace(self.status, **changes)
                write_status(self._run.folder, self.status)


def _device_lost_sentence(error: BaseException) -> str:
    first_line = next(iter(str(error).splitlines()), type(error).__name__)
    return str(
        JobFailed(f"the device gave up ({first_line}); nothing more can be computed in that process, and the traceback is in log.txt")
    )


def _sentence(error: BaseException) -> str:
    try:
        said = str(error)
    except Exception:
        said = ""
    if is_out_of_memory(error):
        first_line = next(iter(said.splitlines()), type(error).__name__)
        return str(JobFailed(f"out of memory ({first_line}); use smaller batches, a smaller dtype or another --device"))
    if is_disk_full(error):
        return str(JobFailed("the disk is full; make room and resume the run"))
    return str(JobFailed(f"the analysis raised {type(error).__name__}: {said}; the traceback is in log.txt"))


def is_disk_full(error: BaseException) -> bool:
    """Whether there was no room to write, as the system says it, or safetensors and polars, which wrap it into errors of their own."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return full or os.strerror(errno.ENOSPC) in str(error)


@contextmanager
def _output_into(log: Path) -> Iterator[None]:
    """Point file descriptors 1 and 2, Python warnings and logging at `log` for the block."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    kept = {number: _duplicate(number) for number in (1, 2)}
    handler = logging.FileHandler(log, encoding="utf-8", errors="backslashreplace")
    logging.getLogger().addHandler(handler)
    # What stands in for sys.stdout may not be descriptor 1 (a test's capture, say), so print goes to the log by name.
    stream = os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace", buffering=1)
    printed, said = sys.stdout, sys.stderr
    sys.stdout = sys.stderr = stream
    for number in kept:
        os.dup2(descriptor, number)
    try:
        with warnings.catch_warnings():
            logging.captureWarnings(True)
            yield
    finally:
        logging.captureWarnings(False)
        logging.getLogger().removeHandler(handler)
        handler.close()
        sys.stdout, sys.stderr = printed, said
        for number, copy in kept.items():
            if copy is None:
                os.close(number)
            else:
                os.dup2(copy, number)
                os.close(copy)
        with suppress(OSError):  # a full disk loses the end of the log, not the results
            stream.close()


def _duplicate(number: int) -> int | None:
    """A copy of a descriptor; None where it was closed before we began."""
    try:
        return os.dup(number)
    except OSError:
        return None
