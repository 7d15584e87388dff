"""What widgets ask of the app. They post these and do nothing else: the app owns screens, jobs and the selection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from textual.message import Message

from modelscope_app.tui.selections import Selection


class CheckpointOpened(Message):
    """Show this checkpoint in the workspace."""

    def __init__(self, path: str) -> None:
        """`path` as a user would type it: a folder, a file or `hf:org/name`."""
        self.path = path
        super().__init__()


class RunOpened(Message):
    """Show this run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        super().__init__()


class RunsCompared(Message):
    """Show two runs side by side."""

    def __init__(self, left: Path, right: Path) -> None:
        self.left = left
        self.right = right
        super().__init__()


class AnalysisChosen(Message):
    """Show the form of an analysis."""

    def __init__(
        self,
        analysis: str,
        checkpoints: Sequence[str] = (),
        params: Mapping[str, Any] | None = None,
        device: str | None = None,
        dtype: str | None = None,
        seed: int | None = None,
    ) -> None:
        """`params`, by name, and where it runs are values to begin with, on top of those last used."""
        self.analysis = analysis
        self.checkpoints = tuple(checkpoints)
        self.params = dict(params or {})
        self.device = device
        self.dtype = dtype
        self.seed = seed
        super().__init__()


class JobAsked(Message):
    """Give a job to the service."""

    def __init__(self, analysis: str, checkpoints: Sequence[str], params: Mapping[str, Any], device: str, dtype: str, seed: int) -> None:
        self.analysis = analysis
        self.checkpoints = tuple(checkpoints)
        self.params = dict(params)
        self.device = device
        self.dtype = dtype
        self.seed = seed
        super().__init__()


class Selected(Message):
    """The user is on this now; None where there is nothing to hand over."""

    def __init__(self, selection: Selection | None) -> None:
        self.selection = selection
        super().__init__()


class JobCancelled(Message):
    """Ask the service to stop a job; the app asks the user first."""

    def __init__(self, run: str, what: str) -> None:
        self.run = run
        self.what = what
        super().__init__()


class RunResumed(Message):
    """Give a run back to the service that was cancelled, failed or lost: it goes on where it was."""

    def __init__(self, folder: Path, what: str) -> None:
        self.folder = folder
        self.what = what
        super().__init__()


class ModelsUnloaded(Message):
    """Ask the service to take resident models from their devices."""
