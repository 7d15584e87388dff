"""What plugins contribute beside analyses: models that can be built, data files that can be read, and panels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from modelscope_app.api.context import FinishedRun


@dataclass(frozen=True, slots=True)
class Architecture:
    """A model family the host cannot build by itself."""

    model_type: str
    """`model_type` in config.json."""
    build: str
    """`package.module:function`, called as `build(config: dict)`: returns a torch.nn.Module with empty weights whose
    state-dict names are the checkpoint's tensor names."""
    adapter: str | None = None
    """`package.module:function`, called as `adapter(module)`: returns an object with the attributes of
    `modelscope_app.api.FamilyAdapter`. Without it only the sites a layer list gives are offered."""


@dataclass(frozen=True, slots=True)
class Reader:
    """A data format the host cannot read by itself."""

    suffix: str
    """File name ending with its dot, as `.arrow`."""
    read: str
    """`package.module:function`, called as `read(path)`: returns a polars DataFrame of rows."""


@dataclass(frozen=True, slots=True)
class Panel:
    """A Textual widget for results that no view can show.

    The widget may have these methods, called for keys that work everywhere; what they give is shown as plain text:

    - `explanation() -> str`, for `?`: a few sentences on what it is, or on what its cursor is on;
    - `copied() -> str | None`, for `y`;
    - `headless_command() -> str | None`, for `c`: the shell command that shows or computes the same;
    - `selection() -> tuple[SelectionKind, str] | None`, for `u`: the thing its cursor is on, as a param of type `Selection[kind]` takes it.

    Its `self.app` is a `PanelApp`.
    """

    name: str
    title: str
    widget: str
    """`package.module:WidgetClass`, imported by the terminal app alone; called with a finished run."""
    analyses: tuple[str, ...] = ()
    """Analyses of this plugin whose runs it can show, by name or as `<plugin>.<name>`; empty means all."""


class PanelApp(Protocol):
    """What a panel may ask of the app that shows it, as `cast(PanelApp, self.app)`."""

    async def submit_job(self, analysis: str, checkpoints: Sequence[str], params: Mapping[str, Any]) -> FinishedRun:
        """Give a job to the service, which is started where it does not run; the run, as soon as it is accepted.

        Nothing has come of it then: read `status` again until it is `done`, `failed`, `cancelled` or `lost`, and facts and tables
        while they come; each access reads the folder anew. The job outlives the panel. The app does not announce its end, so the
        panel shows it. Raises MscopeError, with a sentence, where the job is refused or the service cannot be reached.
        """

    async def cancel_job(self, run: FinishedRun) -> None:
        """Ask the service to stop such a job, and do not wait for it; one that has ended stays as it is. Raises MscopeError."""

    def open_run(self, folder: Path) -> None:
        """Show a run on a screen of its own."""
