"""Jobs that a client watches: by waiting for the answer, or by following a stream of events. Its end is theirs."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import io
from collections import deque
from collections.abc import AsyncIterator
from typing import Any, TypeVar, cast

from fastapi import Request
from PIL import Image
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from imagegen.errors import Cancelled, ImageGenError
from imagegen.events import Drawn, Event, Queued, References, Step
from imagegen.jobs import Request as Job
from imagegen.server.schemas import GenerateResponse
from imagegen.service import Service

T = TypeVar("T")

#: The longer side of a preview, in pixels, and its JPEG quality: small enough to send at every step.
_PREVIEW_SIDE, _PREVIEW_QUALITY = 512, 80
#: Previews that may wait for a slow client.
_PENDING_PREVIEWS = 8


async def until_gone(request: Request, task: asyncio.Task[T]) -> T:
    """The task's result; a client that goes away, or a cancelled task, ends it.

    Raises:
        Cancelled: the client is gone, or someone cancelled the task.
    """
    gone = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
        if task.cancelled():
            raise Cancelled("the job was cancelled")
        return task.result()
    finally:
        gone.cancel()
        task.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class EventQueue:
    """A running job's events, for a stream: `async for` gives them until its task is done."""

    def __init__(self) -> None:
        self._events: deque[Event | None] = deque()
        self._more = asyncio.Event()

    def listen(self, event: Event | None) -> None:
        """For Service.run; None ends the stream."""
        self._events.append(event)
        # A client that does not read must not keep pictures by the hundred: the oldest previews go.
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


class EventStream(StreamingResponse):
    """A text/event-stream whose end, however it comes, is the end of its job."""

    def __init__(self, body: AsyncIterator[str], task: asyncio.Task[Any]) -> None:
        super().__init__(body, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        self._task = task

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the stream."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            # Not left to the generators below: nobody closes those in time when their client goes away.
            self._task.cancel()


def start(request: Request, job: Job, **options: Any) -> asyncio.Task[GenerateResponse]:
    """Starts a job of this request, under the request's id, by which it can be cancelled for as long as it runs.

    Args:
        options: of Service.run.
    """
    state, service = request.app.state, cast(Service, request.app.state.service)
    work = service.run(
        job, job_id=request.state.request_id, wait_for_model=not service.settings.preload_models, **options
    )
    task = asyncio.create_task(work)
    state.jobs[request.state.request_id] = task
    task.add_done_callback(lambda _: state.jobs.pop(request.state.request_id, None))
    return task


async def follow(
    request: Request, job: Job, previews: int
) -> tuple[asyncio.Task[GenerateResponse], AsyncIterator[Event]]:
    """Starts a job; gives its task and its events, once the first of them has come.

    So a job that is not even admitted is an error of its request, with a status of its own, and not an event of a
    stream that has already begun with 200.

    Raises:
        ImageGenError: the job was refused.
    """
    queue = EventQueue()
    task = start(request, job, listener=queue.listen, previews=previews)
    events = queue.follow(task)
    first = await anext(events, None)
    if first is None:
        task.result()

    async def all_events() -> AsyncIterator[Event]:
        if first is not None:
            yield first
        async for event in events:
            yield event

    return task, all_events()


async def ended(task: asyncio.Task[T]) -> T | ImageGenError:
    """A done task's result, or the contract's error."""
    try:
        return await task
    except ImageGenError as error:
        return error
    except asyncio.CancelledError:
        return Cancelled("the job was cancelled")


def server_sent(name: str, data: str) -> str:
    """One event of a text/event-stream; `data` is JSON without line breaks."""
    return f"event: {name}\ndata: {data}\n\n"


async def event_fields(event: Event, job_id: str) -> tuple[str, dict[str, Any]]:
    """An event's name and fields for the native stream."""
    if isinstance(event, Queued):
        return "queued", {"id": job_id, "place": event.place}
    if isinstance(event, References):
        return "references", {}
    if isinstance(event, Drawn):
        return "drawn", {}
    fields: dict[str, Any] = {"step": event.step, "total": event.total, "seconds_left": event.seconds_left}
    if event.preview is not None:
        picture = event.preview
        fields["preview"] = await to_base64(picture, _PREVIEW_SIDE, "JPEG")
    return "step", fields


async def to_base64(preview: Image.Image, side: int | None, file_format: str) -> str:
    """A preview as base64, made smaller where its longer side is over `side`."""

    def encode() -> str:
        picture = preview.copy()
        if side is not None:
            picture.thumbnail((side, side))
        file = io.BytesIO()
        picture.save(file, file_format, quality=_PREVIEW_QUALITY)
        return base64.b64encode(file.getvalue()).decode("ascii")

    return await asyncio.to_thread(encode)
