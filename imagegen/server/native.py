"""The native API: POST /generate and /edit."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import AsyncGenerator
from typing import Any, get_args

from fastapi import APIRouter, Query, Request, Response

from imagegen.contract import requests
from imagegen.contract.fields import OutputFormat
from imagegen.contract.responses import EditResponse, GenerateResponse
from imagegen.contract.schemas import EditRequest, GenerateRequest
from imagegen.engine.event_queue import event_fields
from imagegen.errors import ImageGenError, InvalidInput
from imagegen.server import streams
from imagegen.server.bodies import read_job
from imagegen.server.http import ERRORS
from imagegen.server.stored import KEY

router = APIRouter(dependencies=KEY)

#: Previews of each picture in an event stream.
PREVIEWS_SENT = 8
_PREVIEWS = Query(False, description="In an event stream, send a preview of the image with each step.")


def body(schema: type[GenerateRequest] | type[EditRequest]) -> dict[str, Any]:
    """The request body for OpenAPI: the same fields as JSON and as a form with files."""
    fields = schema.model_json_schema()
    defined = fields.pop("$defs", {})  # references are to the whole document
    fields["properties"]["loras"]["items"] = defined["Lora"]
    if "Expand" in defined:
        fields["properties"]["expand"]["anyOf"][0] = defined["Expand"]
    form = json.loads(json.dumps(fields))
    form["properties"]["loras"] = {"type": "string", "description": "The list's JSON."}
    form["additionalProperties"] = True  # `image` and `image[]` are names for `images`
    if schema is EditRequest:
        image = {"type": "string", "format": "image", "minLength": 1}
        fields["properties"]["images"]["items"] = image
        fields["properties"]["mask"]["anyOf"][0] = image
        file = {"type": "string", "format": "binary"}
        form["properties"]["mask"] = file
        del form["examples"]  # a file is no text
        form["properties"]["images"] |= {"items": file}
    content = {"application/json": {"schema": fields}, "multipart/form-data": {"schema": form}}
    return {"requestBody": {"required": True, "content": content}}


PICTURES: dict[str, Any] = {
    f"image/{name}": {"schema": {"type": "string", "format": "binary"}} for name in get_args(OutputFormat)
}


@router.post(
    "/generate",
    response_model=GenerateResponse,
    responses={**ERRORS, 200: {"content": {**PICTURES, **streams.EVENTS}}},
    openapi_extra=body(GenerateRequest),
)
async def generate(request: Request, previews: bool = _PREVIEWS) -> Response:
    """Text to image. `Accept: image/png` answers with the image itself, `text/event-stream` with progress."""
    return await _answer(request, await read_job(request, GenerateRequest), previews)


@router.post(
    "/edit",
    response_model=EditResponse,
    responses={**ERRORS, 200: {"content": {**PICTURES, **streams.EVENTS}}},
    openapi_extra=body(EditRequest),
)
async def edit(request: Request, previews: bool = _PREVIEWS) -> Response:
    """An image from a prompt and one to four reference images, as JSON or as a form with files."""
    return await _answer(request, await read_job(request, EditRequest), previews)


async def _answer(request: Request, job: requests.Request, previews: bool) -> Response:
    """Runs a job and answers in the form that the client accepts."""
    accept = _accepted(request.headers.get("accept", ""))
    if accept == "events":
        return await _stream(request, job, PREVIEWS_SENT * previews)
    if accept != "json":
        job = _as_picture(job, accept)
    task = streams.start(request, job)
    answer = await streams.result_or_disconnect(request, task)
    if accept != "json":
        warnings = "; ".join(answer.warnings).encode("ascii", "replace").decode()
        headers = {"X-Seed": str(answer.seeds[0]), "X-Model": answer.model, "X-Warnings": warnings[:1000]}
        return Response(base64.b64decode(answer.images[0]), media_type=f"image/{answer.output_format}", headers=headers)
    return Response(answer.model_dump_json(), media_type="application/json")


def _accepted(accept: str) -> str:
    """The most wanted of the accepted types that can be made: "json", "events", a format of images, or "*" for any.

    Raises:
        InvalidInput: images alone are accepted, and none of a format that is made here.
    """
    kinds = _by_weight(accept)
    for kind in kinds:
        name = kind.removeprefix("image/")
        if kind in ("", "*/*", "application/*", "application/json"):
            return "json"
        if kind == "text/event-stream":
            return "events"
        if name != kind and name in (*get_args(OutputFormat), "*"):
            return name
    if kinds[0].startswith("image/"):
        formats = ", ".join(get_args(OutputFormat))
        raise InvalidInput(f"Accept: {kinds[0][:40]} is not made here; allowed are {formats}", "Accept")
    return "json"


def _by_weight(accept: str) -> list[str]:
    """The types of an Accept header, the most wanted first (RFC 9110, 12.5.1); those with q=0 are not wanted."""
    weights = []
    for entry in accept.split(","):
        kind, *parameters = (part.strip().lower() for part in entry.split(";"))
        weight = next((part.removeprefix("q=") for part in parameters if part.startswith("q=")), "1")
        weights.append((float(weight) if re.fullmatch(r"[01](\.[0-9]{0,3})?", weight) else 1.0, kind))
    weights.sort(key=lambda one: -one[0])  # in their order where they are wanted alike
    return [kind for weight, kind in weights if weight > 0] or [""]


def _as_picture(job: requests.Request, wanted: str) -> requests.Request:
    """The job with the format that the client accepts."""
    if job.num_images != 1:
        raise InvalidInput(f"num_images: {job.num_images} pictures do not go into one image; accept JSON", "num_images")
    if job.delivery == "url":
        raise InvalidInput("delivery: 'url' has no picture to answer with; accept JSON", "delivery")
    return job if wanted == "*" else job.model_copy(update={"output_format": wanted})


async def _stream(request: Request, job: requests.Request, previews: int) -> Response:
    """The job's events: queued, references, step, and at the end done or error."""
    task, events = await streams.follow(request, job, previews)

    async def content() -> AsyncGenerator[str, None]:
        async for event in events:
            name, fields = await event_fields(event, request.state.request_id)
            yield streams.server_sent(name, json.dumps(fields))
        answer = await streams.result_or_error(task)
        if isinstance(answer, ImageGenError):
            yield streams.server_sent("error", json.dumps(answer.body()))
        else:
            yield streams.server_sent("done", answer.model_dump_json())

    return streams.EventStream(content(), task)
