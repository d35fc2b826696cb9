"""Jobs of a request that go into the store of jobs: where an Idempotency-Key asks for it, at any route."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import BinaryIO, cast

from fastapi import Depends, Header, Request, Response
from starlette.types import Receive, Scope, Send

from imagegen.contract.events import Event
from imagegen.contract.requests import Request as Job
from imagegen.contract.responses import GenerateResponse
from imagegen.engine.admission import UNREAD_BYTES
from imagegen.engine.job import let_go_of_references
from imagegen.jobs.jobs import Jobs
from imagegen.jobs.rows import Row

#: Seconds between two looks whether a client has read its answers; bytes of a file that are read at one time.
_LOOK, _PART = 0.2, 262_144
_HEADER = Header(None, description="1 to 255 printable ASCII characters. The same one gives the same job, for a day.")


async def documented_key(idempotency_key: str | None = _HEADER) -> None:
    """For OpenAPI: a route that takes an Idempotency-Key. Not sync: FastAPI would ask a thread for it."""


#: The dependencies of such a route.
KEY = [Depends(documented_key)]


def idempotency_key(request: Request) -> str | None:
    """The request's Idempotency-Key: its job is in the store then, and the same request gives the same job. Two are one
    with a comma between them, as HTTP has it."""
    return ", ".join(request.headers.getlist("idempotency-key")) if "idempotency-key" in request.headers else None


def jobs_of(request: Request) -> Jobs:
    """The jobs of the server."""
    return cast(Jobs, request.app.state.jobs)


async def add(request: Request, job: Job, previews: int = 0, hook: tuple[str, str] | None = None) -> Row:
    """Stores a job of this request, under the request's id; the answer's X-Request-ID is the job's id.

    Args:
        hook: as for Jobs.add.

    Raises:
        ImageGenError: as Jobs.add.
    """
    state = request.state
    row = await jobs_of(request).add(
        job, state.request_id, state.caller, previews=previews, hook=hook, key=idempotency_key(request)
    )
    state.request_id = row.id
    let_go_of_references(job)
    state.upload.release()
    return row


async def result(request: Request, job: Job) -> GenerateResponse:
    """Stores a job and waits for its answer. Whoever stops waiting does not stop the job.

    Raises:
        ImageGenError: as Jobs.add and Jobs.result.
    """
    row = await add(request, job)
    return await answer(request, await jobs_of(request).ended(row.id, row.owner))


async def answer(request: Request, row: Row) -> GenerateResponse:
    """The answer of a stored job that has ended, once there is room for it in memory. It counts until it is the
    connection's: anybody may ask for it on as many connections as there are. A client that has not read what was sent
    to it before waits without holding anything.

    Raises:
        ImageGenError: as Jobs.answer.
    """
    state, admission = request.state, request.app.state.service.admission

    def reads() -> bool:
        paused = getattr(state, "is_paused", lambda: False)()  # of the protocol, as is the other
        return not paused and getattr(state, "unread_bytes", lambda _: 0)(state.caller) <= UNREAD_BYTES // 2

    while True:
        while not reads():  # noqa: ASYNC110 - a client reads when it likes
            await asyncio.sleep(_LOOK)
        state.answer_sent = await admission.answer(state.caller)  # Guard calls it, and EventStream
        if reads():
            return await jobs_of(request).answer(row)
        state.answer_sent()


class FileAnswer(Response):
    """A file as an answer, of which a part is in memory.

    The last part says that it is the last. Starlette's StreamingResponse says so afterwards: a client that has as many
    bytes as it was told of may have sent its next request by then, and the protocol takes none before.
    """

    def __init__(self, file: BinaryIO, kind: str, headers: dict[str, str] | None = None) -> None:
        self._file, self._size = file, file.seek(0, os.SEEK_END)
        file.seek(0)
        super().__init__(media_type=kind, headers={**(headers or {}), "Content-Length": str(self._size)})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the file, and closes it."""
        with self._file as file:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            left = self._size
            while True:
                part = await asyncio.to_thread(file.read, min(left, _PART))
                left -= len(part)
                more = bool(left and part)
                await send({"type": "http.response.body", "body": part, "more_body": more})
                if not more:
                    return


async def follow(
    request: Request, job: Job, previews: int
) -> tuple[asyncio.Task[GenerateResponse], AsyncIterator[Event]]:
    """Stores a job; gives its task and its events.

    Raises:
        ImageGenError: as Jobs.add.
    """
    row = await add(request, job, previews)
    jobs, told = jobs_of(request), asyncio.Event()

    async def events() -> AsyncIterator[Event]:
        async for _, event in jobs.watch(row.id, row.owner):
            yield event
        told.set()

    async def result() -> GenerateResponse:
        ended = await jobs.ended(row.id, row.owner)
        await told.wait()
        return await answer(request, ended)

    return asyncio.create_task(result()), events()
