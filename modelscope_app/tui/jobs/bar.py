"""The line at the bottom: the job that runs, how far it is, what waits behind it, and what the devices hold."""

from __future__ import annotations

from textual.app import RenderResult
from textual.content import Content
from textual.reactive import reactive
from textual.widget import Widget

from modelscope_app.api import neutralised
from modelscope_app.rendering.wording import count_text
from modelscope_app.tui.jobs.snapshot import JobsSnapshot
from modelscope_app.tui.jobs.words import bar_of, device_text, progress_of, share_of, state_text


class JobsBar(Widget):
    """One line; the app sets `snapshot`."""

    DEFAULT_CSS = """
    JobsBar { height: 1; background: $panel; color: $foreground; padding: 0 1; }
    """

    snapshot: reactive[JobsSnapshot] = reactive(JobsSnapshot)

    def render(self) -> RenderResult:
        return Content(jobs_line(self.snapshot, max(20, self.size.width)))

    async def on_click(self) -> None:
        """Opens the jobs screen."""
        await self.run_action("app.jobs")


def jobs_line(snapshot: JobsSnapshot, width: int) -> str:
    """The line, as much of it as fits; what matters most comes first."""
    if snapshot.problem:
        return _cut(f"jobs: {neutralised(snapshot.problem)}", width)
    active = snapshot.active
    if not active:
        ended = next((job for job in snapshot.jobs if job.is_final), None)
        last = f"  last: {state_text(ended.state)} {neutralised(ended.analysis)}" if ended else ""
        return _cut(("no jobs" if snapshot.is_running else "no jobs; the service is not running") + last + _devices(snapshot), width)
    first = next((job for job in active if job.state in ("running", "cancelling")), active[0])
    share = share_of(first)
    parts = [state_text(first.state), neutralised(first.analysis, 40)]
    if share is not None and first.state == "running":
        parts.append(bar_of(share, 12 if width >= 100 else 6))
    parts.append(progress_of(first, snapshot.rate(first.run)))
    more = f"  +{count_text(len(active) - 1, 'job')}" if len(active) > 1 else ""
    line = "  ".join(part for part in parts if part) + more
    devices = _devices(snapshot)
    return _cut(line + devices if len(line) + len(devices) <= width else line, width)


def _devices(snapshot: JobsSnapshot) -> str:
    return "".join(f"   {device_text(device, snapshot)}" for device in snapshot.devices if device.workers or device.resident_bytes)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
