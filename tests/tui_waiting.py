"""Waiting in tests of the terminal app, without sleeping."""

from __future__ import annotations

from typing import Any

from textual.pilot import Pilot


async def all_settled(pilot: Pilot[Any]) -> None:
    """Wait until everything that reads has read and what it read is on the screen. Following the service goes on for ever."""
    for _ in range(4):
        await pilot.pause()
        reading = [worker for worker in pilot.app.workers if worker.group != "follow" and not worker.is_finished]
        if reading:
            await pilot.app.workers.wait_for_complete(reading)
    await pilot.pause()
