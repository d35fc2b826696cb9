"""Jobs that outlive their connection: POST /jobs, and what a caller may ask of a job."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Query, Request, Response
from fastapi.responses import RedirectResponse, StreamingResponse

from imagegen.contract import requests
from imagegen.contract.responses import ErrorResponse
from imagegen.contract.schemas import EditRequest
from imagegen.engine.event_queue import event_fields
from imagegen.errors import Expired, ImageGenError, InvalidInput
from imagegen.jobs.rows import Row
from imagegen.jobs.state import JobPage, JobState
from imagegen.server import native, stored
from imagegen.server.bodies import read_fields
from imagegen.server.http import ERRORS
from imagegen.server.stored import KEY, FileAnswer, add, jobs_of
from imagegen.server.streams import EVENTS, EventStream, server_sent

router = APIRouter(tags=["Jobs"])


_Id = Annotated[str, Path(description="The job's id.", examples=["0b7e6a2f9c5d4e3f8a1b2c3d4e5f6071"])]
_Responses = dict[int | str, dict[str, Any]]
_NOT_FOUND: _Responses = {401: ERRORS[401], 404: {"model": ErrorResponse, "description": "The caller has no such job."}}
_EXPIRED: _Responses = {410: {"model": ErrorResponse, "description": "The job was kept for as long as was promised."}}
_CONFLICT: _Responses = {409: {"model": ErrorResponse, "description": "The job is in no state for this."}}
_HOOKS = {
    "webhook_url": {"type": "string", "format": "web-url", "description": "Where the end of the job is told, by POST."},
    "webhook_secret": {"type": "string", "description": "Signs the webhook: whsec_ and 24 to 64 bytes in base64."},
}


def _body() -> dict[str, Any]:
    """The request body for OpenAPI: an edit's fields, the references optional, and those of jobs alone."""
    body = native.body(EditRequest)
    for content in body["requestBody"]["content"].values():
        schema = content["schema"]
        schema["required"], schema["title"] = ["prompt"], "JobRequest"
        mode = {"type": "string", "enum": ["generate", "edit"], "description": "Default: edit with references."}
        schema["properties"] = {"mode": mode, **schema["properties"], **_HOOKS}
    return body


@router.post(
    "/jobs",
    dependencies=KEY,
    status_code=202,
    response_model=JobState,
    responses={**{status: answer for status, answer in ERRORS.items() if status not in (499, 502, 504)}, **_EXPIRED},
    openapi_extra=_body(),
)
async def post(
    request: Request,
    previews: bool = Query(False, description="Keep previews for the job's events."),
) -> Response:
    """Accepts a job, and answers at once. It is done whether or not anybody waits for it."""
    fields, form = await read_fields(request, stored=True)
    url, secret = (fields.pop(name, None) for name in ("webhook_url", "webhook_secret"))
    hook = jobs_of(request).hook(url, secret)
    service = request.app.state.service
    job = requests.parse_job(fields, not form, requests.limits(service.spec, service.settings), _HOOKS)
    row = await add(request, job, native.PREVIEWS_SENT * previews, hook)
    return await _state(request, row, 202)


@router.get("/jobs", response_model=JobPage, responses={**_NOT_FOUND, 422: ERRORS[422]})
async def page(
    request: Request,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    before: Annotated[str | None, Query(description="A job's id: only jobs that are older.")] = None,
) -> Response:
    """This caller's jobs, the newest first."""
    jobs = jobs_of(request)
    rows = await jobs.page(request.state.caller, limit, before)
    following = f"/jobs?limit={limit}&before={rows[-1].id}" if len(rows) == limit else None
    states = [await jobs.state(row) for row in rows]
    return _json(JobPage(jobs=states, next=following), 200)


@router.get("/jobs/{job_id}", response_model=JobState, responses={**_NOT_FOUND, **_EXPIRED})
async def get(request: Request, job_id: _Id) -> Response:
    """A job's state: its place while it waits, its step while it runs, its result or error once it has ended."""
    return await _state(request, await jobs_of(request).get(job_id, request.state.caller), 200)


@router.get(
    "/jobs/{job_id}/events",
    responses={
        200: {"content": EVENTS},
        204: {"description": "The last event was the job's last."},
        **_NOT_FOUND,
        **_EXPIRED,
        422: ERRORS[422],
    },
    response_class=StreamingResponse,
)
async def events(
    request: Request,
    job_id: _Id,
    last: Annotated[str | None, Header(alias="Last-Event-ID", description="Only later events are sent.")] = None,
) -> Response:
    """A job's events from its beginning, as /generate streams them. The job does not end with the stream."""
    if last and not (last.isascii() and last.isdigit() and len(last) < 16):
        raise InvalidInput("Last-Event-ID: is not the id of an event", "Last-Event-ID")
    jobs, after = jobs_of(request), int(last) if last else -1
    row = await jobs.get(job_id, request.state.caller)
    if row.state == "expired":
        raise Expired("the job has expired")
    if row.finished is not None and after >= jobs.last_event(row):
        return Response(status_code=204)
    return EventStream(_stream(request, job_id, after))


async def _stream(request: Request, job_id: str, after: int) -> AsyncGenerator[str, None]:
    jobs, owner = jobs_of(request), request.state.caller
    last = ""
    try:
        async for number, event in jobs.watch(job_id, owner, after):
            name, fields = await event_fields(event, job_id)
            yield f"id: {number}\n" + server_sent(name, json.dumps(fields))
        row = await jobs.get(job_id, owner)
        if row.finished is None:
            return  # the server ends; the client asks again
        if row.state != "succeeded":  # else an error is not the job's, and its client may ask again
            last = f"id: {jobs.last_event(row)}\n"
        answer = await stored.answer(request, row)
        last = f"id: {jobs.last_event(row)}\n"
    except ImageGenError as error:
        yield last + server_sent("error", json.dumps(error.body()))
    else:
        yield last + server_sent("done", answer.model_dump_json())


@router.get(
    "/jobs/{job_id}/images/{number}",
    responses={
        200: {"content": native.PICTURES},
        302: {"description": "It is in the object store."},
        **_NOT_FOUND,
        **_CONFLICT,
        **_EXPIRED,
        422: ERRORS[422],
    },
    response_class=Response,
)
async def image(request: Request, job_id: _Id, number: Annotated[int, Path(ge=0, le=7)]) -> Response:
    """One image of a job, counted from 0, as a file."""
    jobs = jobs_of(request)
    found, kind = await jobs.image(await jobs.get(job_id, request.state.caller), number)
    if isinstance(found, str):
        return RedirectResponse(found, 302)
    return FileAnswer(found, kind, {"Cache-Control": "private, max-age=31536000, immutable"})


@router.delete("/jobs/{job_id}", responses={**_NOT_FOUND, **_CONFLICT, **_EXPIRED})
async def cancel(request: Request, job_id: _Id) -> dict[str, str]:
    """Cancels a job that waits or runs, and deletes one that has ended, with its images. It cancels a request of
    /generate or /edit too, by its X-Request-ID. The GPU is free after the current step."""
    caller, task = request.app.state.running.get(job_id, ("", None))
    if task is not None and caller == request.state.caller:
        task.cancel()
        return {"id": job_id, "status": "cancelled"}
    row = await jobs_of(request).cancel(job_id, request.state.caller)
    return {"id": job_id, "status": "deleted" if row.finished else "cancelled"}


async def _state(request: Request, row: Row, status: int) -> Response:
    if row.state == "expired":
        raise Expired("the job has expired")
    return _json(await jobs_of(request).state(row), status)


def _json(content: JobState | JobPage, status: int) -> Response:
    return Response(content.model_dump_json(), status, media_type="application/json")
