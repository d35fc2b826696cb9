"""OpenAI's images API on the same road: /v1/images/generations, /v1/images/edits, /v1/models.

Fields as https://platform.openai.com/docs/api-reference/images has them. What this model cannot honour is refused by
name where the picture would be another than the caller means, and warned of in `warnings` where it would not.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from imagegen import jobs
from imagegen.errors import ImageGenError, InvalidInput, NotFound, NotReady, Unauthorized
from imagegen.events import Step
from imagegen.models import ModelSpec
from imagegen.server import http, streams
from imagegen.server.schemas import EditRequest, GenerateRequest, GenerateResponse
from imagegen.service import Service

router = APIRouter(prefix="/v1", tags=["OpenAI"])

#: Fields whose only honest answer is no, with the values that ask for nothing.
_REFUSED: dict[str, tuple[Any, ...]] = {
    "mask": (None,),
    "background": (None, "auto", "opaque"),
    "style": (None,),
    "input_fidelity": (None,),
}
#: Fields that change nothing here; the caller is told.
_IGNORED: dict[str, tuple[Any, ...]] = {"quality": (None, "auto"), "moderation": (None, "auto")}
_KNOWN = {
    "model", "prompt", "n", "size", "response_format", "output_format", "output_compression", "user", "stream",
    "partial_images", "seed", "image", "images", *_REFUSED, *_IGNORED,
}  # fmt: skip
MAX_PARTIAL_IMAGES = 3
_SIZE = re.compile(r"([0-9]{1,5})x([0-9]{1,5})")


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
    """One picture."""

    b64_json: str


class Images(BaseModel):
    """The pictures; `seeds` and `warnings` are not OpenAI's."""

    created: int
    data: list[Image]
    size: str
    quality: str
    background: str
    output_format: str
    usage: dict[str, Any]
    seeds: list[int]
    warnings: list[str]


class ModelNotFound(NotFound):
    """The request names a model that is not served here."""

    code = "model_not_found"


def status_of(error: ImageGenError) -> int:
    """The status that OpenAI's clients expect: 400 for any bad parameter; else the contract's."""
    return 400 if error.status in (415, 422) else error.status


def error_body(error: ImageGenError) -> dict[str, Any]:
    """An error in OpenAI's shape."""
    kind = "invalid_request_error" if error.status < 500 and error.status != 429 else "server_error"
    if isinstance(error, Unauthorized):
        kind = "authentication_error"
    return {"message": error.message, "type": kind, "param": error.field, "code": error.code}


@router.get("/models", summary="The model that is served", responses={401: {"model": Error}, 503: {"model": Error}})
async def models(request: Request) -> dict[str, Any]:
    """One entry: what this server draws with."""
    spec = _spec(request.app.state.service)
    return {"object": "list", "data": [{"id": spec.name, "object": "model", "created": 0, "owned_by": "image-gen"}]}


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
        "response_format": {"type": "string", "enum": ["b64_json"]},
        "output_format": {"type": "string", "enum": ["png", "jpeg", "webp"], "default": "png"},
        "output_compression": {**number, "minimum": 0, "maximum": 100, "description": "Quality of jpeg and webp."},
        "quality": {"type": "string", "description": "Changes nothing; anything but auto is warned of."},
        "background": {"type": "string", "enum": ["auto", "opaque"]},
        "user": {"type": "string"},
        "stream": {"type": "boolean", "default": False},
        "partial_images": {**number, "minimum": 0, "maximum": MAX_PARTIAL_IMAGES, "default": 0},
        "seed": {**number, "minimum": 0, "description": "Not OpenAI's: the same seed draws the same picture."},
    }
    if edit:
        properties["image"] = {"type": "array", "items": {"type": "string", "format": "binary"}, "maxItems": 4}
    schema = {"type": "object", "required": ["prompt"], "properties": properties}
    form = {"multipart/form-data": {"schema": schema}} if edit else {}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}, **form}}}


_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "model": Error}
    for status, text in {
        400: "A bad parameter; `param` names it.",
        401: "No API key, or a wrong one.",
        404: "The model is not served here.",
        413: "The body, a reference or the answer is too large.",
        429: "The queue is full.",
        499: "The job was cancelled.",
        500: "A bug.",
        503: "The model is loading, or failed.",
        504: "The job's timeout ran out.",
        507: "The picture does not fit the card.",
    }.items()
}
_RESPONSES[200] = {"content": {"text/event-stream": {"schema": {"type": "string"}}}}


@router.post("/images/generations", response_model=Images, responses=_RESPONSES, openapi_extra=_openapi(edit=False))
async def generations(request: Request) -> Response:
    """Text to image, as OpenAI's clients ask for it."""
    return await _images(request, edit=False)


@router.post("/images/edits", response_model=Images, responses=_RESPONSES, openapi_extra=_openapi(edit=True))
async def edits(request: Request) -> Response:
    """One to four pictures and what to make of them, as OpenAI's clients ask for it."""
    return await _images(request, edit=True)


async def _images(request: Request, edit: bool) -> Response:
    service: Service = request.app.state.service
    fields, form = await http.read_fields(request)
    if form:
        fields = {name: _from_form(name, value) for name, value in fields.items()}
    job, warnings = translate(fields, edit, _spec(service))
    stream, partial = fields.get("stream"), fields.get("partial_images")
    stream, partial = False if stream is None else stream, 0 if partial is None else partial
    if stream is not True and stream is not False:
        raise InvalidInput("stream: must be true or false", "stream")
    if not isinstance(partial, int) or isinstance(partial, bool) or not 0 <= partial <= MAX_PARTIAL_IMAGES:
        raise InvalidInput(f"partial_images: 0 to {MAX_PARTIAL_IMAGES} are allowed", "partial_images")
    if partial and not stream:
        warnings.append("partial_images: changes nothing without stream")
    if not stream:
        return JSONResponse(_answer(await streams.until_gone(request, streams.start(request, job)), warnings))

    if job.num_images != 1:
        raise InvalidInput(f"n: a stream has one picture, and {job.num_images} were asked for", "n")
    task, events = await streams.follow(request, job, partial)
    name = "image_edit" if edit else "image_generation"

    async def body() -> AsyncIterator[str]:
        sent = 0
        async for event in events:
            if isinstance(event, Step) and event.preview is not None:
                picture = await streams.to_base64(event.preview, None, job.output_format)
                kind = f"{name}.partial_image"
                part = {"type": kind, "partial_image_index": sent, "b64_json": picture, **_about(job)}
                yield streams.server_sent(kind, json.dumps(part))
                sent += 1
        answer = await streams.ended(task)
        if isinstance(answer, ImageGenError):
            yield streams.server_sent("error", json.dumps({"type": "error", "error": error_body(answer)}))
        else:
            kind = f"{name}.completed"
            done = {"type": kind, "b64_json": answer.images[0], "usage": _USAGE}
            extra = {"seed": answer.seeds[0], "warnings": [*warnings, *answer.warnings]}
            size = f"{answer.width}x{answer.height}"
            yield streams.server_sent(kind, json.dumps({**done, **_about(job), **extra, "size": size}))

    return streams.EventStream(body(), task)


def translate(fields: dict[str, Any], edit: bool, spec: ModelSpec) -> tuple[GenerateRequest | EditRequest, list[str]]:
    """OpenAI's fields -> a request of this project, and what the caller should know.

    Raises:
        ModelNotFound: another model is named.
        InvalidInput: a field that cannot be honoured, or is not known.
    """
    model = fields.get("model")
    if model not in (None, spec.name, spec.repository):
        raise ModelNotFound(f"model: {jobs.show(model)} is not served here; {spec.name} is", "model")
    for name in fields:
        if name not in _KNOWN or (not edit and name in ("image", "images", "mask")):
            shown = jobs.show(name)[1:-1]
            raise InvalidInput(f"{shown}: is not a parameter of this route", shown)
    for name, harmless in _REFUSED.items():
        if fields.get(name) not in harmless:
            raise InvalidInput(f"{name}: {jobs.show(fields[name])} cannot be honoured by {spec.name}", name)
    warnings = [
        f"{name}: {jobs.show(fields[name])} changes nothing with {spec.name}"
        for name, harmless in _IGNORED.items()
        if fields.get(name) not in harmless
    ]
    if fields.get("response_format") not in (None, "b64_json"):
        came = jobs.show(fields["response_format"])
        raise InvalidInput(f"response_format: {came} needs an object store; b64_json is allowed", "response_format")
    native: dict[str, Any] = {
        theirs[1]: fields[theirs[0]]
        for theirs in (("prompt", "prompt"), ("n", "num_images"), ("output_format", "output_format"), ("seed", "seed"))
        if fields.get(theirs[0]) is not None
    }
    if (compression := fields.get("output_compression")) is not None:
        if not isinstance(compression, int) or isinstance(compression, bool) or not 0 <= compression <= 100:
            raise InvalidInput("output_compression: 0 to 100 are allowed", "output_compression")
        native["output_quality"] = max(1, compression)
        if fields.get("output_format") in (None, "png"):
            warnings.append("output_compression: changes nothing for png")
    native |= _size(fields.get("size"))
    if edit:
        images = fields.get("images", fields.get("image"))
        if images is not None:
            native["images"] = [images] if isinstance(images, str) else images
    try:
        job = jobs.parse(EditRequest, native) if edit else jobs.parse(GenerateRequest, native)
        jobs.check(job, spec)
    except InvalidInput as error:
        # In the names of the API that the caller speaks.
        theirs = {"num_images": "n", "width": "size", "height": "size", "output_quality": "output_compression"}
        if error.field not in theirs:
            raise
        name = theirs[error.field]
        raise InvalidInput(f"{name}: {error.message}", name) from None
    return job, warnings


def _size(size: Any) -> dict[str, int]:
    if size in (None, "auto"):
        return {}
    match = _SIZE.fullmatch(size) if isinstance(size, str) else None
    if match is None:
        raise InvalidInput(f"size: {jobs.show(size)} is not WIDTHxHEIGHT, such as 1024x1024, or auto", "size")
    return {"width": int(match[1]), "height": int(match[2])}


def _spec(service: Service) -> ModelSpec:
    if service.spec is None:
        raise NotReady("the model is not chosen yet", retry_after=2)
    return service.spec


def _from_form(name: str, value: Any) -> Any:
    """A form's string as the type of its field; what is none stays a string, and is named by the check of its field."""
    if not isinstance(value, str):
        return value
    if name in ("n", "output_compression", "partial_images", "seed") and re.fullmatch(r"-?[0-9]{1,20}", value):
        return int(value)
    if name == "stream":
        return {"true": True, "false": False}.get(value.lower(), value)
    return value


#: Tokens are not counted here; OpenAI's clients want the field.
_USAGE = {
    "input_tokens": 0,
    "output_tokens": 0,
    "total_tokens": 0,
    "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
}


def _about(job: GenerateRequest | EditRequest) -> dict[str, Any]:
    size = f"{job.width}x{job.height}" if job.width else "auto"
    common = {"created_at": int(time.time()), "size": size, "quality": "auto", "background": "opaque"}
    return {**common, "output_format": job.output_format}


def _answer(answer: GenerateResponse, warnings: list[str]) -> dict[str, Any]:
    return {
        "created": int(time.time()),
        "data": [{"b64_json": image} for image in answer.images],
        "size": f"{answer.width}x{answer.height}",
        "quality": "auto",
        "background": "opaque",
        "output_format": answer.output_format,
        "usage": _USAGE,
        "seeds": answer.seeds,
        "warnings": [*warnings, *answer.warnings],
    }
