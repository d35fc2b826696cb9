"""OpenAI's images API in terms of this project's jobs, whichever transport it comes by: fields, answers and errors.

Fields as https://platform.openai.com/docs/api-reference/images has them; `imagegen.contract.aliases` says which of them
have another name here, and which change nothing.
"""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any

from pydantic import Field, ValidationError

from imagegen.contract import requests
from imagegen.contract.faults import Request, invalid_input
from imagegen.contract.given import is_given
from imagegen.contract.reading import Fields
from imagegen.contract.responses import GenerateResponse
from imagegen.contract.schemas import EditRequest, GenerateRequest
from imagegen.contract.showing import kind_of, show
from imagegen.engine.service import Service
from imagegen.errors import ImageGenError, InvalidInput, NotFound, NotReady, Unauthorized
from imagegen.models import ModelSpec
from imagegen.settings import Settings

MAX_PARTIAL_IMAGES = 3


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


def model_names(spec: ModelSpec, settings: Settings) -> list[str]:
    """The served model's name, and those of IMAGEGEN_MODEL_ALIASES that stand for it."""
    return [spec.name, *(alias for alias in settings.aliases if alias not in ("*", spec.name))]


def describe_model(name: str, spec: ModelSpec, settings: Settings) -> dict[str, Any]:
    """One model, by any name that `check_model` takes.

    Raises:
        ModelNotFound: it is not served here.
    """
    check_model(name, spec, settings)
    return {"id": name, "object": "model", "created": 0, "owned_by": "image-gen"}


def model_list(spec: ModelSpec, settings: Settings) -> dict[str, Any]:
    """The one model that is served, under each of its names."""
    entries = [describe_model(name, spec, settings) for name in model_names(spec, settings)]
    return {"object": "list", "data": entries}


def check_model(name: Any, spec: ModelSpec, settings: Settings) -> None:
    """Checks the model that a request names: the served one's name or repository, or an alias, in any case; or none.

    Raises:
        ModelNotFound: it names another.
    """
    if not is_given(name) or "*" in settings.aliases:
        return
    known = {one.lower() for one in (*model_names(spec, settings), spec.repository or spec.name)}
    if not isinstance(name, str) or name.lower() not in known:
        raise ModelNotFound(f"model: {show(name)} is not served here; {spec.name} is", "model")


async def answer_job(service: Service, job_input: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """A job of RunPod's queue that holds a request of this API, as worker-vllm takes them.

    Args:
        job_input: `openai_route`, such as "/v1/images/generations", and `openai_input`, the request's JSON.
        options: of Service.run.

    Raises:
        ImageGenError: the request, or what came of it.
    """
    if unknown := job_input.keys() - {"openai_route", "openai_input"}:
        name = min(map(str, unknown))[:60]
        raise InvalidInput(f"{name}: is not a field of a job with openai_route; its fields go into openai_input", name)
    route, fields = job_input["openai_route"], job_input.get("openai_input") or {}
    await asyncio.to_thread(service.choose)
    if route == "/v1/models":
        return model_list(served(service), service.settings)
    if route not in ("/v1/images/generations", "/v1/images/edits"):
        allowed = "/v1/images/generations, /v1/images/edits and /v1/models"
        raise InvalidInput(f"openai_route: {show(route)} is not known; allowed are {allowed}", "openai_route")
    if not isinstance(fields, dict):
        raise InvalidInput(f"openai_input: must be an object, and not {kind_of(fields)}", "openai_input")
    job, warnings = translate(fields, route.endswith("edits"), served(service), service.settings)
    if any(streaming(fields)):
        warnings.append("stream: changes nothing in a job; the answer comes whole")
    return answer(await service.run(job, **options), warnings, wants_urls(fields))


class _Streaming(Fields):
    stream: bool = False
    partial_images: Annotated[int, Field(ge=0, le=MAX_PARTIAL_IMAGES)] = 0


def streaming(fields: dict[str, Any], strict: bool = True) -> tuple[bool, int]:
    """Whether a stream was asked for, and with how many partial images.

    Raises:
        InvalidInput: one of the two is of the wrong type, or out of its bounds.
    """
    chosen = {name: value for name, value in fields.items() if name in _Streaming.model_fields}
    try:
        wanted = _Streaming.model_validate(chosen, strict=strict)
    except ValidationError as error:
        raise invalid_input(error.errors(include_url=False)[0], _Streaming, {}) from None
    return wanted.stream, wanted.partial_images


def translate(
    fields: dict[str, Any], edit: bool, spec: ModelSpec, settings: Settings, strict: bool = True
) -> tuple[Request, list[str]]:
    """OpenAI's fields -> a request of this project, and what the caller should know. What is not OpenAI's is taken as
    at the other endpoints.

    Args:
        strict: False: the strings of a form are read as the types that they stand for.

    Raises:
        ModelNotFound: another model is named.
        InvalidInput: a field that cannot be honoured, or is not known.
    """
    check_model(fields.get("model"), spec, settings)
    others = ("model", *_Streaming.model_fields)
    fields = {name: value for name, value in fields.items() if name not in others and is_given(value)}
    warnings = []
    if "output_compression" in fields and fields.get("output_format", "png") == "png":
        warnings.append("output_compression: changes nothing for png")
    # An alpha channel of a mask that is opaque everywhere selects nothing in OpenAI's terms; here it is read by its
    # colours, as masks of other tools are.
    most = requests.limits(spec, settings)
    job: Request
    if edit and "mask" in fields and (size := fields.pop("size", "auto")) != "auto":
        job = requests.parse(GenerateRequest, {"prompt": "-", "size": size}, strict, most)  # for its mistakes
        _check(job, spec, settings)
        warnings.append("size: changes nothing with a mask; the answer has the image's own size")
    if edit:
        job = requests.parse(EditRequest, fields, strict, most, others)
    else:
        job = requests.parse(GenerateRequest, fields, strict, most, others)
    _check(job, spec, settings)
    return job, warnings


def _check(job: Request, spec: ModelSpec, settings: Settings) -> None:
    try:
        requests.check(job, spec, settings)
    except InvalidInput as error:
        raise requests.renamed(error, job.spoken) from None


def wants_urls(fields: dict[str, Any]) -> bool:
    """Whether images are to be URLs though nothing says so: DALL-E answers with URLs, and its clients read nothing
    else."""
    model = fields.get("model")
    return isinstance(model, str) and model.lower().startswith("dall-e") and not is_given(fields.get("response_format"))


def served(service: Service) -> ModelSpec:
    """The model that is served.

    Raises:
        NotReady: it is not chosen yet.
    """
    if service.spec is None:
        raise NotReady("the model is not chosen yet", retry_after=2)
    return service.spec


#: Tokens are not counted here; OpenAI's clients want the field.
USAGE = {
    "input_tokens": 0,
    "output_tokens": 0,
    "total_tokens": 0,
    "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
}


def about(job: Request) -> dict[str, Any]:
    """What each event of a stream says of its image."""
    size = f"{job.width}x{job.height}" if job.width else "auto"
    common = {"created_at": int(time.time()), "size": size, "quality": "auto", "background": "opaque"}
    return {**common, "output_format": job.output_format}


def answer(answer: GenerateResponse, warnings: list[str], by_url: bool = False) -> dict[str, Any]:
    """The response object; `warnings` are of the translation. `by_url`: images that are no objects in a store are data:
    URIs."""
    start = f"data:image/{answer.output_format};base64,"
    images = [{"url": start + image} if by_url else {"b64_json": image} for image in answer.images]
    return {
        "created": int(time.time()),
        "data": [{"url": url} for url in answer.urls] or images,
        "size": f"{answer.width}x{answer.height}",
        "quality": "auto",
        "background": "opaque",
        "output_format": answer.output_format,
        "usage": USAGE,
        "seeds": answer.seeds,
        "loras": [lora.model_dump() for lora in answer.loras],
        "warnings": [*warnings, *answer.warnings],
    }
