"""Panel `influence.ranked`: which training rows taught the model what its queries did, which worked against it, and where in the model.

A run that has not ended is looked at once a second until it has its ranking. Where a run was not asked for modules and tokens, a key starts
a job that looks into the rows of the highest and lowest scores; it goes on when the panel is left.
"""

from __future__ import annotations

import asyncio
import shlex
from functools import partial
from typing import ClassVar, cast

from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType

from modelscope_app.api import FinishedRun, MscopeError, PanelApp, neutralised
from modelscope_influence.panels.insides import has_inside
from modelscope_influence.panels.pane import ABOUT, InfluencePane
from modelscope_influence.panels.ranked_list import RankedList
from modelscope_influence.panels.scores_jobs import LOOKED_INTO, Standing, command_line, inside_params, read_standing
from modelscope_influence.panels.with_job import PanelWithJob

LOOK_SECONDS = 1.0
OFFER = (
    f"The run has no scores by module and by token. d looks inside: a job that computes them for the {LOOKED_INTO} highest and lowest "
    "scores, with the curvature from the cache."
)
NOT_KEPT = f"This row is not among those that were looked into: the {LOOKED_INTO} highest and lowest scores."


class RankedPanel(PanelWithJob):
    """The ranked rows of a run of `influence.scores`."""

    DEFAULT_CSS = "RankedPanel { height: 1fr; }"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("d", "look_inside", "Look inside"),
        Binding("x", "stop", "Stop looking"),
        Binding("o", "open", "Open its run"),
    ]

    def __init__(self, run: FinishedRun) -> None:
        super().__init__(run)
        self._has_inside: bool | None = None
        """Whether the run itself has modules and tokens; None until its ranking is there."""
        self._is_looking = False

    def compose(self) -> ComposeResult:
        """The pane alone."""
        yield InfluencePane(id="pane")

    def on_mount(self) -> None:
        """Look now, and again while the run goes on."""
        self._look()
        self.set_interval(LOOK_SECONDS, self._look)

    def _look(self) -> None:
        if self._has_inside is None and not self._is_looking:
            self._is_looking = True
            self._look_at_run()

    @work(group="look")
    async def _look_at_run(self) -> None:
        """Show the ranking if it is there, else say why it is not."""
        pane = self.query_one(InfluencePane)
        try:
            standing, tables = await asyncio.to_thread(lambda: (read_standing(self.run), self.run.tables))
        except (MscopeError, OSError) as error:
            pane.say(f"The run cannot be read: {neutralised(str(error), 1000)}")
            return
        finally:
            self._is_looking = False
        if "pairwise" in tables and standing.is_final:
            self._has_inside = await asyncio.to_thread(has_inside, self.run)
            pane.explain(NOT_KEPT if self._has_inside else OFFER)
            pane.show(self.run, "" if standing.state == "done" else f"; the run is {standing}")
        elif standing.is_final:
            self._has_inside = False
            pane.say(f"There is no ranking: the run is {standing}")
        else:
            pane.say(f"The run is {standing} The ranking is there when it is done.")

    def action_look_inside(self) -> None:
        """Start the job."""
        self._look_inside()

    @work(group="inside")
    async def _look_inside(self) -> None:
        inside = await self.job.follow(cast("PanelApp", self.app), self.run.analysis, partial(inside_params, self.run))
        if inside is not None and self.is_attached:
            pane = self.query_one(InfluencePane)
            pane.explain(NOT_KEPT)
            pane.look_into(inside)

    def _told(self) -> None:
        if self.is_attached and self.job.standing is not None:
            self.query_one(InfluencePane).explain(_looking(self.job.standing))
            self.refresh_bindings()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Only what there is something for."""
        if action == "look_inside":
            if self._has_inside is not False:
                return False
            pane = self.query_one(InfluencePane)
            return pane.ranking is not None and pane.inside_run is None and not self.job.is_under_way
        return super().check_action(action, parameters)

    def explanation(self) -> str:
        """For `?`: the row under the cursor, then the panel."""
        said = self.query_one(RankedList).readout()
        return f"{said}\n\n{ABOUT}" if said else ABOUT

    def headless_command(self) -> str:
        """For `c`: shows the run; once something was looked into, computes that."""
        if self.query_one(InfluencePane).inside_run is None:
            return f"mscope runs show {shlex.quote(str(self.run.folder))}"
        return command_line(self.run.analysis, *inside_params(self.run))


def _looking(standing: Standing) -> str:
    return f"Looking inside: {standing}"
