"""What was asked of a run and how it stands, as lines of text; and its log."""

from __future__ import annotations

import time
from pathlib import Path

from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.content import Content
from textual.widgets import Static

from modelscope_app.api import MscopeError, neutralised
from modelscope_app.rendering.wording import age_text, bytes_text, duration_text, value_text
from modelscope_app.runs.folder import RunFolder
from modelscope_app.tui.jobs.words import state_text
from modelscope_app.tui.on_screen import Explanation


class AboutRun(VerticalScroll):
    """Everything about a run but its results."""

    DEFAULT_CSS = """
    AboutRun { padding: 0 1; }
    AboutRun Static { height: auto; }
    """

    def __init__(self, run: RunFolder, id: str | None = None) -> None:
        super().__init__(id=id, can_focus=True)
        self._run = run

    def compose(self) -> ComposeResult:
        yield Static()

    def on_mount(self) -> None:
        """Read it."""
        self.read_again()

    def read_again(self) -> None:
        """The run has gone on."""
        try:
            pairs = about(self._run)
        except MscopeError as error:
            self.query_one(Static).update(Content(str(error)))
            return
        width = max(len(name) for name, _ in pairs) + 2
        lines = [Content.assemble((name.ljust(width), "bold"), value) for name, value in pairs]
        self.query_one(Static).update(Content("\n").join(lines))

    def explanation(self) -> Explanation:
        """For `?`."""
        return Explanation(
            "About this run",
            "What was asked, on which content (fingerprints), with which versions, and what it took. The command does the same again "
            "without the app.",
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
    pairs += [("table", f"{name}  {neutralised(str(path), 400)}") for name, path in run.tables.items()]
    pairs += [("artifact", f"{name}  {neutralised(str(path), 400)}") for name, path in run.artifacts.items()]
    pairs.append(("folder", neutralised(str(run.folder), 400)))
    return pairs


def log_text(folder: Path, most_bytes: int = 200_000) -> str:
    """The end of what was printed during a run, harmless to print."""
    try:
        with (folder / "log.txt").open("rb") as stream:
            size = stream.seek(0, 2)
            stream.seek(max(0, size - most_bytes))
            lines = stream.read().decode("utf-8", "replace").splitlines()
    except OSError:
        lines = []
    return "\n".join(neutralised(line, 1000) for line in lines) or "Nothing was printed."
