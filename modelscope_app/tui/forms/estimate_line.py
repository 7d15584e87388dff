"""The line that says whether a job would fit, asked of the service while the form is filled in."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from textual.content import Content
from textual.widgets import Static

from modelscope_app.api import MscopeError
from modelscope_app.tui.forms.checking import Checked
from modelscope_app.tui.plain import plain

if TYPE_CHECKING:
    from modelscope_app.jobs.answers import Fit
    from modelscope_app.jobs.client import AsyncClient

Estimator = Callable[[str, Checked], Awaitable["Fit"]]
"""What a job would come to, of an analysis and a form that is right. Raises MscopeError."""

_LONGEST_SENTENCE = 400
_STYLES = {"fits": "$success", "will wait": "$warning", "does not fit": "$error", "unknown": "dim"}


class ServiceEstimator:
    """Asks the service, which is started where none runs, over one connection."""

    def __init__(self) -> None:
        self._client: AsyncClient | None = None

    async def __call__(self, analysis: str, asked: Checked) -> Fit:
        """What the service says. Raises MscopeError."""
        if self._client is None:
            self._client = await asyncio.to_thread(_made_client)
        return await self._client.estimate(analysis, asked.checkpoints, asked.params, device=asked.device, dtype=asked.dtype)

    async def close(self) -> None:
        """Close the connection."""
        if self._client is not None:
            await self._client.close()
            self._client = None


class EstimateLine(Static):
    """`fits`, `will wait`, `does not fit` or `unknown`, and why."""

    DEFAULT_CSS = "EstimateLine { height: auto; max-height: 2; }"

    def say_asking(self) -> None:
        """The service was asked and has not answered yet."""
        self.update(plain("asking what it would need ...", style="dim"))

    def say_wrong(self, count: int) -> None:
        """There is nothing to ask yet."""
        what = "one field is" if count == 1 else f"{count} fields are"
        self.update(plain(f"{what} not right yet (marked with !)", style="dim"))

    def say(self, fit: Fit) -> None:
        """What the service has answered. Its sentence begins with the verdict."""
        style = f"bold {_STYLES.get(fit.verdict, '')}".strip()
        rest = fit.sentence.removeprefix(fit.verdict)
        self.update(Content.assemble(plain(fit.verdict, style=style), plain(rest, _LONGEST_SENTENCE)))

    def say_failed(self, error: MscopeError | OSError) -> None:
        """The service cannot be asked, or refuses what it was asked."""
        self.update(Content.assemble(plain("no estimate: ", style="bold $warning"), plain(str(error), _LONGEST_SENTENCE)))


def _made_client() -> AsyncClient:
    from modelscope_app.jobs.client import AsyncClient  # 200 ms, of httpx2 for the most part

    return AsyncClient()
