"""Black Forest Labs' own API over HTTP: POST /v1/flux-2-klein-9b (and -4b), GET /v1/get_result."""

from __future__ import annotations

import hashlib
import hmac
import time
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import JSONResponse, RedirectResponse
from pydantic import BaseModel, Field

from imagegen.contract import requests
from imagegen.contract.loras import Lora
from imagegen.engine import openai
from imagegen.errors import NotFound
from imagegen.jobs import bfl
from imagegen.jobs.rows import Row
from imagegen.server import native
from imagegen.server.bodies import read_fields
from imagegen.server.stored import KEY, FileAnswer, add, jobs_of

router = APIRouter(prefix="/v1", tags=["Black Forest Labs"])

#: Seconds for which the URL of an image is good, as BFL's are. Who has it needs no key.
_SAMPLE_SECONDS = 600
_OTHER_WEBHOOK = "webhook_url: is told as the Standard Webhooks specification has it, and not in BFL's own form"


class Accepted(BaseModel):
    """A job that was accepted; `warnings` are not BFL's."""

    id: str
    polling_url: str
    warnings: list[str] = Field(default_factory=list)


class Result(BaseModel):
    """The state of a job, and its image."""

    id: str
    status: str = Field(description="Pending, Ready, Error or Task not found.")
    result: dict[str, Any] | None
    progress: float | None
    details: dict[str, Any] | None


class Detail(BaseModel):
    """An error of this API: for a field a list, else a text."""

    detail: str | list[dict[str, Any]]


_text = {"type": "string"}
_image = {**_text, "format": "image", "minLength": 1}
_PROPERTIES: dict[str, Any] = {
    "prompt": {**_text, "examples": ["a red circle on a blue background"]},
    "input_image": {**_image, "description": "A reference: base64, or a URL."},
    **{f"input_image_{i}": _image for i in (2, 3, 4)},
    "seed": {"type": "integer", "minimum": 0},
    "width": {"type": "integer"},
    "height": {"type": "integer"},
    "loras": {"type": "array", "items": Lora.model_json_schema(), "description": "Not BFL's: LoRA adapters."},
    "safety_tolerance": {"description": "Has no effect; a warning says so."},
    "transparent_bg": {"type": "boolean", "enum": [False], "description": "An image is never transparent."},
    "output_format": {**_text, "enum": ["jpeg", "png", "webp"], "default": "jpeg"},
    "webhook_url": {**_text, "format": "web-url"},
    "webhook_secret": {
        **_text,
        "minLength": 1,
        "maxLength": 256,
        "description": "Any text; its bytes are the key of the signature.",
    },
}
_SCHEMA = {"type": "object", "required": ["prompt"], "properties": _PROPERTIES}
_BODY = {"required": True, "content": {"application/json": {"schema": _SCHEMA}}}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": Detail, "description": text}
    for status, text in {
        401: "No API key, or a wrong one.",
        403: "The Host header or the page's origin is not allowed.",
        404: "Another model is served.",
        413: "The body or a reference is too large.",
        415: "The body is not JSON.",
        422: "A field is missing, unknown or out of its bounds.",
        429: "Too many jobs wait.",
        503: "The model is not chosen yet, or the server is ending.",
        507: "The store of jobs is full.",
    }.items()
}


@router.post(
    "/flux-2-klein-9b",
    dependencies=KEY,
    response_model=Accepted,
    responses=_RESPONSES,
    openapi_extra={"requestBody": _BODY},
)
@router.post(
    "/flux-2-klein-4b",
    dependencies=KEY,
    response_model=Accepted,
    responses=_RESPONSES,
    openapi_extra={"requestBody": _BODY},
)
async def post(request: Request) -> Response:
    """Accepts a job with BFL's fields."""
    service = request.app.state.service
    bfl.check_model(request.url.path.rpartition("/")[2], openai.served(service))
    fields, form = await read_fields(request, stored=True)
    url, secret = (fields.pop(name, None) for name in ("webhook_url", "webhook_secret"))
    hook = jobs_of(request).hook(url, bfl.secret_of(secret), True)
    job = bfl.translate(fields, not form, requests.limits(service.spec, service.settings))
    warnings = [*job.spoken.warnings, *([_OTHER_WEBHOOK] if hook else [])]
    row = await add(request, job, hook=hook)
    url = request.url_for("get_result").include_query_params(id=row.id)
    return JSONResponse({"id": row.id, "polling_url": str(url), "warnings": warnings})


@router.get(
    "/get_result",
    response_model=Result,
    responses={401: _RESPONSES[401], 404: {"model": Result, "description": "There is no such job."}},
)
async def get_result(request: Request, id: Annotated[str, Query()]) -> Response:
    """A job's state and, once it is Ready, the URL of its image."""
    jobs = jobs_of(request)
    try:
        row = await jobs.get(id, request.state.caller)
    except NotFound:
        return JSONResponse(bfl.not_found(id), 404)
    if row.state == "expired":
        return JSONResponse(bfl.not_found(id), 404)
    state = await jobs.state(row)
    step = (state.step, state.total) if state.step is not None and state.total else None
    sample = await _sample(request, row) if row.state == "succeeded" else None
    return JSONResponse(bfl.result_of(row, sample, step))


@router.get(
    "/samples/{job_id}",
    responses={
        200: {"content": native.PICTURES},
        302: {"description": "It is in the object store."},
        404: {"model": Detail, "description": "The URL is wrong, or older than ten minutes."},
        410: {"model": Detail, "description": "The job has expired."},
        409: {"model": Detail, "description": "The job has not ended yet."},
    },
    response_class=Response,
)
async def sample(
    request: Request,
    job_id: Annotated[str, Path()],
    expires: Annotated[str, Query()] = "",
    signature: Annotated[str, Query()] = "",
) -> Response:
    """The image of a job, for whoever has its URL."""
    jobs = jobs_of(request)
    expected = _signature(await jobs.secret(), job_id, expires)
    known = hmac.compare_digest(expected.encode(), signature.encode(errors="replace"))
    if not known or not expires.isdigit() or int(expires) < time.time():
        raise NotFound("the URL is wrong, or too old; ask /v1/get_result for another")
    found, kind = await jobs.image(await jobs.get(job_id), 0)
    return RedirectResponse(found, 302) if isinstance(found, str) else FileAnswer(found, kind)


async def _sample(request: Request, row: Row) -> str:
    expires = str(int(time.time()) + _SAMPLE_SECONDS)
    signature = _signature(await jobs_of(request).secret(), row.id, expires)
    url = request.url_for("sample", job_id=row.id)
    return str(url.include_query_params(expires=expires, signature=signature))


def _signature(secret: str, job_id: str, expires: str) -> str:
    return hmac.new(secret.encode(), f"{job_id}.{expires}".encode(), hashlib.sha256).hexdigest()
