"""Jobs of `influence.scores` that panels start: what they are asked, and how one stands.

A panel has at most one job under way. One that is begun while another goes on cancels that one, also where the service has not accepted it
yet; a job outlives the panel. What goes wrong, a refusal included, is a sentence.
"""

from __future__ import annotations

import asyncio
import json
import shlex
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from modelscope_app.api import BadInput, FinishedRun, MscopeError, PanelApp, neutralised
from modelscope_influence.panels.rankings import ENDED

LOOK_SECONDS = 0.25
LOOKED_INTO = 20
"""Rows of the highest and of the lowest scores that a job looks into."""


class Standing(NamedTuple):
    """How a job stands."""

    state: str
    said: str = ""
    """How far it has come, or what went wrong; harmless to print."""

    @property
    def is_final(self) -> bool:
        """Whether nothing more will come."""
        return self.state in ENDED

    def __str__(self) -> str:
        if self.state == "done":
            return "done"
        if self.is_final:
            return f"{self.state}: {self.said or 'no reason was given'}"
        return f"{self.state} ..." + (f" {self.said}" if self.said else "")


def read_standing(run: FinishedRun) -> Standing:
    """How a run stands now. Raises MscopeError or OSError."""
    state = run.status
    if state in ENDED:
        return Standing(state, neutralised(run.error, 1000) if run.error else "")
    try:
        status = json.loads((run.folder / "status.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        status = None
    return Standing(state, _progress(status) if isinstance(status, dict) else "")


def _progress(status: Mapping[str, Any]) -> str:
    stage, done, total, unit = (status.get(name) for name in ("stage", "done", "total", "unit"))
    if status.get("state") == "waiting":
        return neutralised(str(status.get("waiting_for") or ""), 200)
    if not stage:
        return ""
    if not isinstance(done, int | float):
        return neutralised(str(stage), 60)
    of = f" of {total:,.0f}" if isinstance(total, int | float) else ""
    return neutralised(f"{stage}: {done:,.0f}{of} {unit or ''}".rstrip(), 100)


def inside_params(run: FinishedRun) -> tuple[str, Mapping[str, Any]]:
    """The checkpoint and params of a job that looks into the same scores, its curvature from the cache. Raises BadInput."""
    return _checkpoint(run), {**_given(run), "per_module": True, "per_token": True, "top_k": LOOKED_INTO}


def asked_params(run: FinishedRun, prompt: str, completion: str) -> tuple[str, Mapping[str, Any]]:
    """The checkpoint and params of a job that explains what was typed as the run explained its queries. Raises BadInput."""
    params = {name: value for name, value in _given(run).items() if name != "queries"}
    return _checkpoint(run), {
        **params,
        "prompt": prompt,
        "completion": completion,
        "per_module": True,
        "per_token": True,
        "top_k": LOOKED_INTO,
    }


def _checkpoint(run: FinishedRun) -> str:
    if len(run.checkpoints) != 1:
        raise BadInput("this run was given no checkpoint to ask")
    return run.checkpoints[0]


def _given(run: FinishedRun) -> dict[str, Any]:
    """What the run was asked, without what stands at its default: a newer version may not know it."""
    from modelscope_influence.params import ScoresParams

    fields = ScoresParams.model_fields
    return {name: value for name, value in run.params.items() if name not in fields or value != fields[name].default}


def command_line(analysis: str, checkpoint: str, params: Mapping[str, Any]) -> str:
    """The same at a shell.

    >>> command_line("influence.scores", "a model", {"train": "t.jsonl", "per_token": True, "baselines": False, "completion": " 5"})
    "mscope run influence.scores 'a model' --train=t.jsonl --per-token --no-baselines '--completion= 5'"
    """
    words = ["mscope", "run", analysis, checkpoint]
    for name, value in params.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        elif value is not None:
            words.append(f"--{option}={value}")
    return shlex.join(words)


class OneJob:
    """The job a panel has under way, followed to its end."""

    def __init__(self, told: Callable[[], None]) -> None:
        """`told` is called on the event loop when `run` or `standing` have changed."""
        self._told = told
        self._turn = 0
        self.run: FinishedRun | None = None
        """None until the service has accepted it, and where it never did."""
        self.standing: Standing | None = None
        """None before the first."""

    @property
    def is_under_way(self) -> bool:
        """Whether one has been begun and not ended."""
        return self.standing is not None and not self.standing.is_final

    async def follow(self, app: PanelApp, analysis: str, asked: Callable[[], tuple[str, Mapping[str, Any]]]) -> FinishedRun | None:
        """Begin a job and look until it has ended; its run if it is done. `asked`, called in a thread, gives checkpoint and params."""
        self._turn += 1
        turn, self.run = self._turn, None
        try:
            self._tell(turn, Standing("submitting"))
            checkpoint, params = await asyncio.to_thread(asked)
            run = await app.submit_job(analysis, [checkpoint], params)
            if turn == self._turn:
                self.run = run
            while turn == self._turn:
                standing = await asyncio.to_thread(read_standing, run)
                self._tell(turn, standing)
                if standing.is_final:
                    return run if standing.state == "done" and turn == self._turn else None
                await asyncio.sleep(LOOK_SECONDS)
            await app.cancel_job(run)
        except (MscopeError, OSError) as error:
            self._tell(turn, Standing("failed", neutralised(str(error), 1000)))
        return None

    def stop(self) -> None:
        """Cancel what is under way."""
        if self.is_under_way:
            self._turn += 1
            self._tell(self._turn, Standing("cancelled", "it was stopped"))

    def _tell(self, turn: int, standing: Standing) -> None:
        if turn == self._turn and standing != self.standing:
            self.standing = standing
            self._told()
