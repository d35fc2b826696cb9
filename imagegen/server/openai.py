"""OpenAI's images API over HTTP: /v1/images/generations, /v1/images/edits, /v1/models."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from imagegen.contract.events import Step
from imagegen.engine import openai
from imagegen.engine.event_queue import to_base64
from imagegen.engine.openai import MAX_PARTIAL_IMAGES, USAGE, about, error_body
from imagegen.engine.service import Service
from imagegen.errors import ImageGenError, InvalidInput
from imagegen.server import streams
from imagegen.server.bodies import read_fields

router = APIRouter(prefix="/v1", tags=["OpenAI"])


class ErrorObject(BaseModel):
    """What went wrong, as OpenAI says it."""

    message: str
    type: str
    param: str | None
    code: str


class Error(BaseModel):
    """An error of this API."""

    error: ErrorObject


class Image(BaseModel):
    """One image: itself, or its URL."""

    b64_json: str | None = None
    url: str | None = None


class Images(BaseModel):
    """The images; `seeds` and `warnings` are not OpenAI's."""

    created: int
    data: list[Image]
    size: str
    quality: str
    background: str
    output_format: str
    usage: dict[str, Any]
    seeds: list[int]
    warnings: list[str]


@router.get("/models", summary="The model that is served", responses={401: {"model": Error}, 503: {"model": Error}})
async def models(request: Request) -> dict[str, Any]:
    """One entry: the served model."""
    return openai.model_list(openai.served(request.app.state.service))


def _openapi(edit: bool) -> dict[str, Any]:
    """The request body for OpenAPI."""
    number = {"type": "integer"}
    properties: dict[str, Any] = {
        "prompt": {"type": "string", "examples": ["a red circle on a blue background"]},
        "model": {"type": "string", "description": "The served model's name, or nothing."},
        "n": {**number, "minimum": 1, "maximum": 8, "default": 1},
        "size": {
            "type": "string",
            "description": "WIDTHxHEIGHT, or auto.",
            "examples": ["1024x1024"],
            "default": "auto",
        },
        "response_format": {"type": "string", "enum": ["b64_json", "url"]},
        "output_format": {"type": "string", "enum": ["png", "jpeg", "webp"], "default": "png"},
        "output_compression": {**number, "minimum": 0, "maximum": 100, "description": "Quality of jpeg and webp."},
        "quality": {"type": "string", "description": "Has no effect; a warning says so."},
        "background": {"type": "string", "enum": ["auto", "opaque"]},
        "user": {"type": "string"},
        "stream": {"type": "boolean", "default": False},
        "partial_images": {**number, "minimum": 0, "maximum": MAX_PARTIAL_IMAGES, "default": 0},
        "seed": {**number, "minimum": 0, "description": "Not OpenAI's: the same seed gives the same image."},
    }
    if edit:
        properties["image"] = {"type": "array", "items": {"type": "string", "format": "binary"}, "maxItems": 4}
        properties["mask"] = {
            "type": "string",
            "format": "binary",
            "description": "Of the first image's size: what is transparent is edited, and all else kept. Without "
            "transparency what is white is edited.",
        }
        text = "Not OpenAI's: how much of the first image may change."
        properties["strength"] = {"type": "number", "minimum": 0, "maximum": 1, "default": 1, "description": text}
    schema = {"type": "object", "required": ["prompt"], "properties": properties}
    form = {"multipart/form-data": {"schema": schema}} if edit else {}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}, **form}}}


_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "model": Error}
    for status, text in {
        400: "A bad parameter; `param` names it.",
        401: "No API key, or a wrong one.",
        403: "The Host header or the page's origin is not allowed.",
        404: "The model is not served here.",
        413: "The body, a reference or the answer is too large.",
        429: "The queue is full.",
        499: "The job was cancelled.",
        500: "A bug.",
        503: "The model is loading, or failed.",
        504: "The job's timeout ran out.",
        507: "The image does not fit into the GPU's memory.",
    }.items()
}
_RESPONSES[200] = {"content": {"text/event-stream": {"schema": {"type": "string"}}}}


@router.post("/images/generations", response_model=Images, responses=_RESPONSES, openapi_extra=_openapi(edit=False))
async def generations(request: Request) -> Response:
    """Text to image, as OpenAI's clients ask for it."""
    return await _images(request, edit=False)


@router.post("/images/edits", response_model=Images, responses=_RESPONSES, openapi_extra=_openapi(edit=True))
async def edits(request: Request) -> Response:
    """One to four reference images and a prompt, as OpenAI's clients ask for it."""
    return await _images(request, edit=True)


async def _images(request: Request, edit: bool) -> Response:
    service: Service = request.app.state.service
    fields, form = await read_fields(request)
    if form:
        fields = {name: _from_form(name, value) for name, value in fields.items()}
    job, warnings = openai.translate(fields, edit, openai.served(service), service.settings)
    stream, partial = openai.streaming(fields)
    del fields  # its references are the job's alone to keep
    if partial and not stream:
        warnings.append("partial_images: changes nothing without stream")
    if not stream:
        try:
            answer = await streams.result_or_disconnect(request, streams.start(request, job))
        except InvalidInput as error:
            raise openai.to_openai_field(error) from None
        return JSONResponse(openai.answer(answer, warnings))

    if job.delivery == "url":
        raise InvalidInput("response_format: a stream sends its image itself; b64_json is allowed", "response_format")
    if job.num_images != 1:
        raise InvalidInput(f"n: a stream has one image, and {job.num_images} were asked for", "n")
    task, events = await streams.follow(request, job, partial)
    name = "image_edit" if edit else "image_generation"

    async def body() -> AsyncIterator[str]:
        sent = 0
        async for event in events:
            if isinstance(event, Step) and event.preview is not None:
                image = await to_base64(event.preview, None, job.output_format)
                kind = f"{name}.partial_image"
                part = {"type": kind, "partial_image_index": sent, "b64_json": image, **about(job)}
                yield streams.server_sent(kind, json.dumps(part))
                sent += 1
        answer = await streams.result_or_error(task)
        if isinstance(answer, ImageGenError):
            yield streams.server_sent("error", json.dumps({"type": "error", "error": error_body(answer)}))
        else:
            kind = f"{name}.completed"
            done = {"type": kind, "b64_json": answer.images[0], "usage": USAGE}
            extra = {"seed": answer.seeds[0], "warnings": [*warnings, *answer.warnings]}
            size = f"{answer.width}x{answer.height}"
            yield streams.server_sent(kind, json.dumps({**done, **about(job), **extra, "size": size}))

    return streams.EventStream(body(), task)


def _from_form(name: str, value: Any) -> Any:
    """A form's string as the type of its field; what is none stays a string, and is named by the check of its field."""
    if not isinstance(value, str):
        return value
    if name in ("n", "output_compression", "partial_images", "seed") and re.fullmatch(r"-?[0-9]{1,20}", value):
        return int(value)
    if name == "strength" and re.fullmatch(r"[0-9]{0,20}[.]?[0-9]{1,20}", value):
        return float(value)
    if name == "stream":
        return {"true": True, "false": False}.get(value.lower(), value)
    return value
