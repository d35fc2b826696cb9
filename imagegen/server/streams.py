"""Jobs that a client watches: by waiting for the answer, or by following a stream of events. Its end is theirs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, TypeVar, cast

from fastapi import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from imagegen.contract.events import Event
from imagegen.contract.requests import Request as Job
from imagegen.contract.responses import GenerateResponse
from imagegen.engine.event_queue import EventQueue
from imagegen.engine.service import Service
from imagegen.errors import Cancelled, ImageGenError
from imagegen.server import stored

T = TypeVar("T")


async def result_or_disconnect(request: Request, task: asyncio.Task[T]) -> T:
    """The task's result; a client that goes away, or a cancelled task, ends it.

    Raises:
        Cancelled: the client is gone, or someone cancelled the task.
    """
    gone = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            await _end(task)
        if task.cancelled():
            raise Cancelled("the job was cancelled")
        return task.result()
    finally:
        gone.cancel()
        task.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


#: For OpenAPI, in which `schema` describes one event (3.1, as its tools read it).
EVENTS: dict[str, Any] = {
    "text/event-stream": {
        "schema": {
            "type": "object",
            "description": "One event; comments come between them.",
            "required": ["event", "data"],
            "properties": {
                "event": {"type": "string"},
                "data": {"type": "string", "contentMediaType": "application/json"},
                "id": {"type": "string"},
            },
        }
    }
}
#: Seconds without an event after which a comment is sent. Proxies close a connection that is silent for 60 s (nginx,
#: AWS) or 100 s (Cloudflare); https://html.spec.whatwg.org/multipage/server-sent-events.html advises about 15 s.
COMMENT_SECONDS = 10.0


class EventStream(StreamingResponse):
    """A text/event-stream. A comment is sent where there is no event for 10 s, so that no proxy takes the connection
    for dead, and nginx is told not to hold events back.

    Nothing of it goes on once it has ended, however that comes. What it took for its answer is given back once the
    answer is the connection's, which counts what is not read yet: the rest may take hours.

    Args:
        task: of its job, where that ends with it.
    """

    def __init__(self, body: AsyncGenerator[str, None], task: asyncio.Task[Any] | None = None) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(self._events(), media_type="text/event-stream", headers=headers)
        self._body, self._task = body, task
        self._next: asyncio.Task[str | None] | None = None
        self._state: dict[str, Any] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the stream."""
        self._state = scope.get("state", {})
        try:
            await super().__call__(scope, receive, send)
        finally:
            # Here, and not in the generators: those are closed at some later time where their client has gone away.
            for task in (self._task, self._next):
                if task is not None:
                    await _end(task)
            await self._body.aclose()

    async def _events(self) -> AsyncIterator[str]:
        """The body's events, with a comment wherever nothing has happened for COMMENT_SECONDS."""

        async def next_event() -> str | None:
            return await anext(self._body, None)

        while True:
            self._next = asyncio.create_task(next_event())
            while not (await asyncio.wait({self._next}, timeout=COMMENT_SECONDS))[0]:
                yield ": the job waits or runs\n\n"
            if (event := self._next.result()) is None:
                self._state.get("answer_sent", lambda: None)()  # of stored.answer
                return
            yield event


async def _end(task: asyncio.Task[Any]) -> None:
    """Cancels a task, and waits until it has ended."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def start(request: Request, job: Job, **options: Any) -> asyncio.Task[GenerateResponse]:
    """Starts a job of this request, under the request's id, by which it can be cancelled for as long as it runs.

    Args:
        options: of Service.run.
    """
    state, service = request.app.state, cast(Service, request.app.state.service)
    if stored.idempotency_key(request) is not None:
        return asyncio.create_task(stored.result(request, job))
    work = service.run(
        job,
        caller=request.state.caller,
        job_id=request.state.request_id,
        upload=request.state.upload,
        wait_for_model=not service.settings.preload_models,
        **options,
    )
    task = asyncio.create_task(stored.jobs_of(request).limits.counted(request.state.caller, job, work))
    state.running[request.state.request_id] = (request.state.caller, task)
    task.add_done_callback(lambda _: state.running.pop(request.state.request_id, None))
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
    if stored.idempotency_key(request) is not None:
        return await stored.follow(request, job, previews)
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


async def result_or_error(task: asyncio.Task[T]) -> T | ImageGenError:
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
