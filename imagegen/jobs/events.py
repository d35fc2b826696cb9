"""What happened to a job: while it runs, in memory, for any number of followers; once it has ended, as JSON."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from contextlib import suppress
from typing import Any

from imagegen.contract.events import Event, Generated, Queued, References, Step

#: Events have numbers that rise from start to start of a job, so that a follower knows where it was: the first of a
#: start has the number of starts times this, the answer has one less than the next start's first. A job has at most
#: fifty steps of eight images.
EVENTS_OF_A_START = 1000
#: Previews that are kept of a job, in memory, the newest.
_PREVIEWS = 8

_KINDS: dict[str, type[Any]] = {"queued": Queued, "references": References, "step": Step, "generated": Generated}


class Signal:
    """Wakes all who wait. For the event loop's thread alone."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def fire(self) -> None:
        """Wakes those who wait now."""
        self._event.set()
        self._event = asyncio.Event()

    async def wait(self, timeout: float) -> None:  # noqa: ASYNC109 - it is how long to wait, and no error
        """Waits for the next `fire`, for at most `timeout` seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._event.wait()


class Log:
    """The events of one start of a job."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.moved = Signal()

    def listen(self, event: Event) -> None:
        """For Service.run."""
        self.events.append(event)
        shown = [(i, one) for i, one in enumerate(self.events) if isinstance(one, Step) and one.preview is not None]
        for i, one in shown[:-_PREVIEWS]:
            self.events[i] = dataclasses.replace(one, preview=None)
        self.moved.fire()

    @property
    def step(self) -> Step | None:
        """The newest step."""
        return next((event for event in reversed(self.events) if isinstance(event, Step)), None)

    def to_json(self) -> str:
        """The events without their previews."""
        return json.dumps([[_name(event), _fields(event)] for event in self.events])


def from_json(text: str | None) -> list[Event]:
    """What `to_json` made."""
    return [_KINDS[name](**fields) for name, fields in json.loads(text or "[]")]


def _name(event: Event) -> str:
    return next(name for name, kind in _KINDS.items() if isinstance(event, kind))


def _fields(event: Event) -> dict[str, Any]:
    return {field.name: getattr(event, field.name) for field in dataclasses.fields(event) if field.name != "preview"}
