"""A running job's events, in order, for an event stream or RunPod's; and their fields."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import io
from collections import deque
from collections.abc import AsyncIterator
from typing import Any, TypeVar, cast

from PIL import Image

from imagegen.contract.events import Event, Generated, Queued, References, Step

T = TypeVar("T")

#: The longer side of a preview, in pixels, and its JPEG quality: small enough to send at every step.
_PREVIEW_SIDE, _PREVIEW_QUALITY = 512, 80
#: Previews that may wait for a slow client.
_PENDING_PREVIEWS = 8


class EventQueue:
    """A running job's events, for a stream: `async for` gives them until its task is done."""

    def __init__(self) -> None:
        self._events: deque[Event | None] = deque()
        self._more = asyncio.Event()

    def listen(self, event: Event | None) -> None:
        """For Service.run; None ends the stream."""
        self._events.append(event)
        # A client that does not read must not keep previews by the hundred: the oldest previews go.
        shown = [i for i, e in enumerate(self._events) if isinstance(e, Step) and e.preview is not None]
        for i in shown[:-_PENDING_PREVIEWS]:
            self._events[i] = dataclasses.replace(cast(Step, self._events[i]), preview=None)
        self._more.set()

    async def follow(self, task: asyncio.Task[T]) -> AsyncIterator[Event]:
        """The events until the task is done."""
        task.add_done_callback(lambda _: self.listen(None))
        while True:
            await self._more.wait()
            while self._events:
                event = self._events.popleft()
                if event is None:
                    return
                yield event
            self._more.clear()


async def event_fields(event: Event, job_id: str) -> tuple[str, dict[str, Any]]:
    """An event's name and fields for the native stream."""
    if isinstance(event, Queued):
        return "queued", {"id": job_id, "place": event.place}
    if isinstance(event, References):
        return "references", {}
    if isinstance(event, Generated):
        return "drawn", {}
    fields: dict[str, Any] = {"step": event.step, "total": event.total, "seconds_left": event.seconds_left}
    if event.preview is not None:
        fields["preview"] = await to_base64(event.preview, _PREVIEW_SIDE, "JPEG")
    return "step", fields


async def to_base64(preview: Image.Image, side: int | None, file_format: str) -> str:
    """A preview as base64, made smaller where its longer side is over `side`."""

    def encode() -> str:
        image = preview.copy()
        if side is not None:
            image.thumbnail((side, side))
        file = io.BytesIO()
        image.save(file, file_format, quality=_PREVIEW_QUALITY)
        return base64.b64encode(file.getvalue()).decode("ascii")

    return await asyncio.to_thread(encode)
