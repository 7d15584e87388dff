"""What was asked of a run and how it stands, as lines of text; and its log."""

from __future__ import annotations

import time
from pathlib import Path

from textual import on, work
from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.content import Content
from textual.message import Message
from textual.widgets import Static

from modelscope_app.api import neutralised
from modelscope_app.rendering.wording import age_text, bytes_text, duration_text, value_text
from modelscope_app.runs.folder import RunFolder
from modelscope_app.tui.jobs.words import state_text
from modelscope_app.tui.on_screen import Explanation
from modelscope_app.tui.thread_work import failure_told


class ReadPage(VerticalScroll):
    """A text made from a run's folder in a thread, and made again while the run goes on.

    What is on the screen stays, scrolled to where it was, until another text was read. What cannot be read is a sentence.
    """

    DEFAULT_CSS = """
    ReadPage { padding: 0 1; }
    ReadPage Static { height: auto; }
    """

    class _TextRead(Message):
        """The text, or the sentence in its place."""

        def __init__(self, text: Content) -> None:
            self.text = text
            super().__init__()

    def __init__(self, id: str | None = None) -> None:
        super().__init__(id=id, can_focus=True)
        self._is_reading = False
        self._is_asked_again = False
        """While it is being read."""

    def compose(self) -> ComposeResult:
        yield Static("Reading ...", markup=False)

    def on_mount(self) -> None:
        """Read it."""
        self.read_again()

    def text(self) -> Content:
        """Reads the folder and nothing of the widget. Called in a thread. Raises MscopeError, OSError."""
        raise NotImplementedError

    def read_again(self) -> None:
        """The run has gone on. Where it is still being read it is read once more after that, so that a slow disk shows something."""
        if self._is_reading:
            self._is_asked_again = True
        else:
            self._is_reading, self._is_asked_again = True, False
            self._read()

    @work(thread=True, exclusive=True, exit_on_error=False, group="text")
    def _read(self) -> None:
        with failure_told(lambda sentence: self.post_message(self._TextRead(Content(sentence))), "This cannot be read"):
            self.post_message(self._TextRead(self.text()))

    @on(_TextRead)
    def _show(self, event: _TextRead) -> None:
        event.stop()
        self._is_reading = False
        shown = self.query_one(Static)
        if not (isinstance(shown.content, Content) and shown.content.is_same(event.text)):
            shown.update(event.text)
        if self._is_asked_again:
            self.read_again()


class AboutRun(ReadPage):
    """Everything about a run but its results."""

    def __init__(self, run: RunFolder, id: str | None = None) -> None:
        super().__init__(id)
        self._run = run

    def text(self) -> Content:
        """Names and values."""
        pairs = about(self._run)
        width = max(len(name) for name, _ in pairs) + 2
        return Content("\n").join(Content.assemble((name.ljust(width), "bold"), value) for name, value in pairs)

    def explanation(self) -> Explanation:
        """For `?`."""
        return Explanation(
            "About this run",
            "What was asked, on which content (fingerprints), with which versions, and what it took. The command does the same again "
            "without the app.",
        )


class LogPage(ReadPage):
    """What was printed during the run."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def text(self) -> Content:
        """Its end."""
        return Content(log_text(self._folder))

    def explanation(self) -> Explanation:
        """For `?`."""
        return Explanation(
            "Log", "What the analysis and its libraries printed, its end when it is long. The whole is log.txt in the run folder."
        )


def about(run: RunFolder) -> list[tuple[str, str]]:
    """Pairs of name and text, harmless to print. Raises BadInput where the run cannot be read."""
    job, status = run.job, run.read_status()
    pairs = [("state", state_text(status.state))]
    if status.error:
        pairs.append(("error", status.error))
    if status.waiting_for:
        pairs.append(("waits for", status.waiting_for))
    age = age_text(time.time() - job.created_at.timestamp())
    pairs += [("run", job.id), ("analysis", f"{neutralised(job.analysis)}, version {job.analysis_version}")]
    pairs.append(("asked", f"{neutralised(job.created)}, {age} ago"))
    pairs += [("command", neutralised(job.command, 2000))]
    for checkpoint in job.checkpoints:
        kind = "series" if checkpoint.series else "checkpoint"
        pairs.append((kind, f"{neutralised(checkpoint.path, 400)}  {neutralised(checkpoint.fingerprint, 80)}"))
    pairs += [("input", f"{neutralised(one.path, 400)}  {neutralised(one.fingerprint, 80)}") for one in job.inputs]
    pairs += [(f"param {neutralised(name, 40)}", value_text(value, longest=400)) for name, value in job.params.items()]
    pairs.append(("device", f"{neutralised(status.device or job.device)}, dtype {neutralised(job.dtype)}, seed {job.seed}"))
    if status.seconds is not None:
        pairs.append(("took", duration_text(status.seconds)))
    if status.peak_memory_bytes:
        pairs.append(("memory", f"{bytes_text(status.peak_memory_bytes)} at its peak, {bytes_text(status.memory_before_bytes)} before"))
    pairs += [("version", f"{neutralised(name, 60)} {neutralised(version, 60)}") for name, version in job.versions.items()]
    pairs.append(("folder", neutralised(str(run.folder), 400)))
    pairs += [("table", neutralised(str(path.relative_to(run.folder)), 400)) for path in run.tables.values()]
    pairs += [("artifact", neutralised(str(path.relative_to(run.folder)), 400)) for path in run.artifacts.values()]
    return pairs


def log_text(folder: Path, most_bytes: int = 200_000) -> str:
    """The end of what was printed during a run, harmless to print. Raises OSError where there is a log that cannot be read."""
    try:
        with (folder / "log.txt").open("rb") as stream:
            size = stream.seek(0, 2)
            stream.seek(max(0, size - most_bytes))
            lines = stream.read().decode("utf-8", "replace").splitlines()
    except FileNotFoundError:
        lines = []
    return "\n".join(neutralised(line, 1000) for line in lines) or "Nothing was printed."
