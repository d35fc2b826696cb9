"""OpenAI's images API over HTTP: /v1/images/generations, /v1/images/edits, /v1/models."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from imagegen.contract.events import Step
from imagegen.contract.loras import MAX_LORAS, Lora, UsedLora
from imagegen.engine import openai
from imagegen.engine.event_queue import to_base64
from imagegen.engine.openai import MAX_PARTIAL_IMAGES, USAGE, about, error_body
from imagegen.engine.service import Service
from imagegen.errors import ImageGenError, InvalidInput
from imagegen.server import streams
from imagegen.server.bodies import read_fields
from imagegen.server.stored import KEY

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
    """The images; `seeds`, `loras` and `warnings` are not OpenAI's."""

    created: int
    data: list[Image]
    size: str
    quality: str
    background: str
    output_format: str
    usage: dict[str, Any]
    seeds: list[int]
    loras: list[UsedLora]
    warnings: list[str]


@router.get("/models", summary="The model that is served", responses={401: {"model": Error}, 503: {"model": Error}})
async def models(request: Request) -> dict[str, Any]:
    """One entry: the served model."""
    service: Service = request.app.state.service
    return openai.model_list(openai.served(service), service.settings)


@router.get("/models/{name:path}", summary="A model", responses={s: {"model": Error} for s in (401, 404, 503)})
async def model(request: Request, name: str) -> dict[str, Any]:
    """The served model, by its name or an alias."""
    service: Service = request.app.state.service
    return openai.describe_model(name, openai.served(service), service.settings)


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
        "quality": {"description": "Has no effect; a warning says so."},
        "background": {"type": "string", "enum": ["auto", "opaque"]},
        "user": {"description": "Has no effect; a warning says so."},
        "stream": {"type": "boolean", "default": False},
        "partial_images": {**number, "minimum": 0, "maximum": MAX_PARTIAL_IMAGES, "default": 0},
        "seed": {**number, "minimum": 0, "description": "Not OpenAI's: the same seed gives the same image."},
        "loras": {
            "type": "array",
            "items": Lora.model_json_schema(),
            "maxItems": MAX_LORAS,
            "description": "Not OpenAI's: LoRA adapters; in a form the list's JSON.",
        },
    }
    if edit:
        properties["image"] = {
            "type": "array",
            "items": {"type": "string", "format": "binary"},
            "minItems": 1,
            "maxItems": 4,
        }
        text = "Not OpenAI's: how much of the first image may change."
        properties["strength"] = {"type": "number", "minimum": 0, "maximum": 1, "default": 1, "description": text}
        properties["mask"] = {
            "type": "string",
            "format": "binary",
            "description": "Of the first image's size: what is transparent is edited, and all else kept. Without "
            "transparency what is white is edited.",
        }
    schema = {"type": "object", "required": ["prompt"], "properties": properties}
    if not edit:
        return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
    form = {**schema, "required": ["prompt", "image"]}
    image = {"type": "string", "format": "image", "minLength": 1, "description": "Base64, a data: URI or a URL."}
    wrapped = {"type": "object", "required": ["image_url"], "properties": {"image_url": image}}
    images = {"type": "array", "items": {"anyOf": [image, wrapped]}, "minItems": 1, "maxItems": 4}
    others = {name: value for name, value in properties.items() if name != "image"} | {"mask": image}
    fields = {**schema, "required": ["prompt", "images"], "properties": {**others, "images": images}}
    content = {"application/json": {"schema": fields}, "multipart/form-data": {"schema": form}}
    return {"requestBody": {"required": True, "content": content}}


_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "model": Error}
    for status, text in {
        400: "A bad parameter; `param` names it.",
        401: "No API key, or a wrong one.",
        403: "The Host header or the page's origin is not allowed.",
        404: "The model is not served here.",
        410: "The job of this Idempotency-Key has expired.",
        413: "The body, a reference or the answer is too large.",
        429: "The queue is full.",
        499: "The job was cancelled.",
        500: "A bug.",
        503: "The model is loading, or failed.",
        504: "The job's timeout ran out.",
        507: "The image does not fit into the GPU's memory.",
    }.items()
}
_RESPONSES[200] = {"content": streams.EVENTS}


@router.post(
    "/images/generations",
    dependencies=KEY,
    response_model=Images,
    responses=_RESPONSES,
    openapi_extra=_openapi(edit=False),
)
async def generations(request: Request) -> Response:
    """Text to image, as OpenAI's clients ask for it."""
    return await _images(request, edit=False)


@router.post(
    "/images/edits",
    dependencies=KEY,
    response_model=Images,
    responses=_RESPONSES,
    openapi_extra=_openapi(edit=True),
)
async def edits(request: Request) -> Response:
    """One to four reference images and a prompt, as OpenAI's clients ask for it."""
    return await _images(request, edit=True)


async def _images(request: Request, edit: bool) -> Response:
    service: Service = request.app.state.service
    fields, form = await read_fields(request)
    job, warnings = openai.translate(fields, edit, openai.served(service), service.settings, strict=not form)
    stream, partial = openai.streaming(fields, strict=not form)
    by_url = openai.wants_urls(fields)
    del fields  # its references are the job's alone to keep
    if partial and not stream:
        warnings.append("partial_images: changes nothing without stream")
    if not stream:
        answer = await streams.result_or_disconnect(request, streams.start(request, job))
        return JSONResponse(openai.answer(answer, warnings, by_url))

    if job.delivery == "url":
        name = job.spoken.name("delivery")
        raise InvalidInput(f"{name}: a stream sends its images themselves; leave it out", name)
    task, events = await streams.follow(request, job, partial)
    name = "image_edit" if edit else "image_generation"

    async def body() -> AsyncGenerator[str, None]:
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
            kind, size, last = f"{name}.completed", f"{answer.width}x{answer.height}", ""
            for image, seed in zip(answer.images, answer.seeds, strict=True):
                done = {"type": kind, "b64_json": image, "usage": USAGE, **about(job), "size": size}
                loras = [lora.model_dump() for lora in answer.loras]
                extra = {"seed": seed, "loras": loras, "warnings": [*warnings, *answer.warnings]}
                last += streams.server_sent(kind, json.dumps({**done, **extra}))
            yield last  # all at once: else those that a slow client has not read yet would be counted nowhere

    return streams.EventStream(body(), task)
