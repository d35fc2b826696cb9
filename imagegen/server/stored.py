"""Jobs of a request that go into the store of jobs: where an Idempotency-Key asks for it, at any route."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import cast

from fastapi import Depends, Header, Request

from imagegen.contract.events import Event
from imagegen.contract.requests import Request as Job
from imagegen.contract.responses import GenerateResponse
from imagegen.engine.job import let_go_of_references
from imagegen.jobs.jobs import Jobs
from imagegen.jobs.rows import Row

_HEADER = Header(None, description="1 to 255 printable ASCII characters. The same one gives the same job, for a day.")


async def documented_key(idempotency_key: str | None = _HEADER) -> None:
    """For OpenAPI: a route that takes an Idempotency-Key. Not sync: FastAPI would ask a thread for it."""


#: The dependencies of such a route.
KEY = [Depends(documented_key)]


def idempotency_key(request: Request) -> str | None:
    """The request's Idempotency-Key: its job is in the store then, and the same request gives the same job."""
    return request.headers.get("idempotency-key")


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
    return await jobs_of(request).result(row.id, row.owner)


async def follow(
    request: Request, job: Job, previews: int
) -> tuple[asyncio.Task[GenerateResponse], AsyncIterator[Event]]:
    """Stores a job; gives its task and its events.

    Raises:
        ImageGenError: as Jobs.add.
    """
    row = await add(request, job, previews)
    jobs = jobs_of(request)

    async def events() -> AsyncIterator[Event]:
        async for item in jobs.watch(row.id, row.owner):
            if item is not None:
                yield item[1]

    return asyncio.create_task(jobs.result(row.id, row.owner)), events()
