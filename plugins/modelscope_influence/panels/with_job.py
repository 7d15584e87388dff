"""What both panels are: ranked rows, and one job that can be stopped and opened."""

from __future__ import annotations

from typing import cast

from textual import on
from textual.containers import Vertical

from modelscope_app.api import FinishedRun, PanelApp
from modelscope_influence.panels.pane import InfluencePane
from modelscope_influence.panels.scores_jobs import OneJob


class PanelWithJob(Vertical):
    """A pane of ranked rows, and a job beside it."""

    def __init__(self, run: FinishedRun) -> None:
        super().__init__()
        self.run = run
        self.job = OneJob(self._told)

    def _told(self) -> None:
        """The job stands otherwise than before."""
        raise NotImplementedError

    def action_stop(self) -> None:
        """Cancel the job."""
        self.job.stop()

    def action_open(self) -> None:
        """The job's run, on a screen of its own."""
        if self.job.run is not None:
            cast("PanelApp", self.app).open_run(self.job.run.folder)

    @on(InfluencePane.Changed)
    def _changed(self, event: InfluencePane.Changed) -> None:
        event.stop()
        self.refresh_bindings()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Only what is there is opened or stopped."""
        if action == "stop":
            return self.job.is_under_way
        if action == "open":
            return self.job.run is not None
        return True

    def copied(self) -> str | None:
        """For `y`."""
        return self.query_one(InfluencePane).copied()

    def selection(self) -> tuple[str, str] | None:
        """For `u`."""
        return self.query_one(InfluencePane).selection()
