"""OpenAI's images API in terms of this project's jobs, whichever transport it comes by: fields, answers and errors.

Fields as https://platform.openai.com/docs/api-reference/images has them. What this model cannot honour is refused by
name where the image would be another than the caller means, and warned of in `warnings` where it would not.
"""

from __future__ import annotations

import asyncio
import re
import time
from typing import Any

from imagegen.contract import requests
from imagegen.contract.responses import GenerateResponse
from imagegen.contract.schemas import EditRequest, GenerateRequest
from imagegen.engine.service import Service
from imagegen.errors import ImageGenError, InvalidInput, NotFound, NotReady, Unauthorized
from imagegen.models import ModelSpec
from imagegen.settings import Settings

#: Fields whose only honest answer is no, with the values that ask for nothing.
_REFUSED: dict[str, tuple[Any, ...]] = {
    "background": (None, "auto", "opaque"),
    "style": (None,),
    "input_fidelity": (None,),
}
#: Fields that change nothing here; a warning says so.
_IGNORED: dict[str, tuple[Any, ...]] = {"quality": (None, "auto"), "moderation": (None, "auto")}
_KNOWN = {
    "model", "prompt", "n", "size", "response_format", "output_format", "output_compression", "user", "stream",
    "partial_images", "seed", "image", "images", "mask", "strength", *_REFUSED, *_IGNORED,
}  # fmt: skip
MAX_PARTIAL_IMAGES = 3
_SIZE = re.compile(r"([0-9]{1,5})x([0-9]{1,5})")


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


def model_list(spec: ModelSpec) -> dict[str, Any]:
    """The one model that is served."""
    return {"object": "list", "data": [{"id": spec.name, "object": "model", "created": 0, "owned_by": "image-gen"}]}


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
        return model_list(served(service))
    if route not in ("/v1/images/generations", "/v1/images/edits"):
        allowed = "/v1/images/generations, /v1/images/edits and /v1/models"
        raise InvalidInput(f"openai_route: {requests.show(route)} is not known; allowed are {allowed}", "openai_route")
    if not isinstance(fields, dict):
        raise InvalidInput(f"openai_input: must be an object, and not {requests.kind_of(fields)}", "openai_input")
    job, warnings = translate(fields, route.endswith("edits"), served(service), service.settings)
    if any(streaming(fields)):
        warnings.append("stream: changes nothing in a job; the answer comes whole")
    try:
        return answer(await service.run(job, **options), warnings)
    except InvalidInput as error:
        raise to_openai_field(error) from None


def streaming(fields: dict[str, Any]) -> tuple[bool, int]:
    """Whether a stream was asked for, and with how many partial images."""
    stream, partial = fields.get("stream"), fields.get("partial_images")
    stream, partial = False if stream is None else stream, 0 if partial is None else partial
    if stream is not True and stream is not False:
        raise InvalidInput("stream: must be true or false", "stream")
    if not isinstance(partial, int) or isinstance(partial, bool) or not 0 <= partial <= MAX_PARTIAL_IMAGES:
        raise InvalidInput(f"partial_images: 0 to {MAX_PARTIAL_IMAGES} are allowed", "partial_images")
    return stream, partial


def to_openai_field(error: InvalidInput) -> InvalidInput:
    """The error of a field in the names of the API that the caller speaks."""
    theirs = {
        "num_images": "n", "width": "size", "height": "size", "output_quality": "output_compression",
        "delivery": "response_format",
    }  # fmt: skip
    name = theirs.get(error.field or "")
    return error if name is None else InvalidInput(f"{name}: {error.message}", name)


def translate(  # noqa: C901 - field by field, as the API's reference has them
    fields: dict[str, Any], edit: bool, spec: ModelSpec, settings: Settings
) -> tuple[GenerateRequest | EditRequest, list[str]]:
    """OpenAI's fields -> a request of this project, and what the caller should know.

    Raises:
        ModelNotFound: another model is named.
        InvalidInput: a field that cannot be honoured, or is not known.
    """
    model = fields.get("model")
    if model not in (None, spec.name, spec.repository):
        raise ModelNotFound(f"model: {requests.show(model)} is not served here; {spec.name} is", "model")
    for name in fields:
        if name not in _KNOWN or (not edit and name in ("image", "images", "mask", "strength")):
            shown = requests.show(name)[1:-1]
            raise InvalidInput(f"{shown}: is not a parameter of this route", shown)
    for name, harmless in _REFUSED.items():
        if fields.get(name) not in harmless:
            came = requests.show(fields[name])
            raise InvalidInput(f"{name}: {came} cannot be honoured by {spec.name}", name)
    warnings = [
        f"{name}: {requests.show(fields[name])} changes nothing with {spec.name}"
        for name, harmless in _IGNORED.items()
        if fields.get(name) not in harmless
    ]
    if fields.get("response_format") not in (None, "b64_json", "url"):
        came = requests.show(fields["response_format"])
        raise InvalidInput(f"response_format: {came} is not known; allowed are b64_json and url", "response_format")
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
    if fields.get("response_format") == "url":
        native["delivery"] = "url"
    native |= _size(fields.get("size"))
    if edit:
        images = fields.get("images", fields.get("image"))
        if images is not None:
            images = images if isinstance(images, list) else [images]
            native["images"] = [_reference(image) for image in images]
        if fields.get("strength") is not None:
            native["strength"] = fields["strength"]
        if fields.get("mask") is not None:
            # An alpha channel that is opaque everywhere selects nothing in OpenAI's terms; here it is read by its
            # colours, as masks of other tools are.
            native["mask"] = _reference(fields["mask"])
            if native.pop("height", None) is not None:
                del native["width"]
                warnings.append("size: changes nothing with a mask; the answer has the image's own size")
    try:
        job = requests.parse(EditRequest, native) if edit else requests.parse(GenerateRequest, native)
        requests.check(job, spec, settings)
    except InvalidInput as error:
        raise to_openai_field(error) from None
    return job, warnings


def _reference(image: Any) -> Any:
    """A reference as the JSON form of edits has it, {"image_url": ...}, or as it is."""
    return image["image_url"] if isinstance(image, dict) and image.keys() == {"image_url"} else image


def _size(size: Any) -> dict[str, int]:
    if size in (None, "auto"):
        return {}
    match = _SIZE.fullmatch(size) if isinstance(size, str) else None
    if match is None:
        raise InvalidInput(f"size: {requests.show(size)} is not WIDTHxHEIGHT, such as 1024x1024, or auto", "size")
    return {"width": int(match[1]), "height": int(match[2])}


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


def about(job: GenerateRequest | EditRequest) -> dict[str, Any]:
    """What each event of a stream says of its image."""
    size = f"{job.width}x{job.height}" if job.width else "auto"
    common = {"created_at": int(time.time()), "size": size, "quality": "auto", "background": "opaque"}
    return {**common, "output_format": job.output_format}


def answer(answer: GenerateResponse, warnings: list[str]) -> dict[str, Any]:
    """The response object; `warnings` are of the translation."""
    return {
        "created": int(time.time()),
        "data": [{"url": url} for url in answer.urls] or [{"b64_json": image} for image in answer.images],
        "size": f"{answer.width}x{answer.height}",
        "quality": "auto",
        "background": "opaque",
        "output_format": answer.output_format,
        "usage": USAGE,
        "seeds": answer.seeds,
        "warnings": [*warnings, *answer.warnings],
    }
