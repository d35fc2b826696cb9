"""From what a caller sent to what will run: parsing, the model's own bounds and defaults, and errors in plain words."""

from __future__ import annotations

import math
import reprlib
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from imagegen.contract.editing import MAX_REFERENCES, Expand
from imagegen.contract.fields import MAX_SEED
from imagegen.contract.prompts import MAX_PROMPT
from imagegen.contract.schemas import EditRequest, GenerateRequest
from imagegen.errors import InvalidInput, PayloadTooLarge
from imagegen.models import MULTIPLE, ModelSpec, clamp, fit
from imagegen.settings import Settings

Request = GenerateRequest | EditRequest
R = TypeVar("R", GenerateRequest, EditRequest)
MODES = ("generate", "edit")


@dataclass(frozen=True)
class ResolvedRequest:
    """What will run: every default resolved. Sizes in pixels, one seed an image."""

    prompt: str
    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float
    seeds: tuple[int, ...]
    #: Below 1 an edit begins at its first reference; 0: it is that reference.
    strength: float = 1.0
    warnings: tuple[str, ...] = ()


def parse_job(job_input: Any, strict: bool = True) -> Request:
    """Validates a job's `input`: `mode` chooses the request, "edit" where images are given and it is left out.

    Args:
        strict: as for `parse`.

    Raises:
        InvalidInput: naming the field, what came and what is allowed.
    """
    if not isinstance(job_input, dict):
        raise InvalidInput(f"input: must be an object with a prompt, and not {kind_of(job_input)}", "input")
    fields = dict(job_input)
    mode = fields.pop("mode", "edit" if "images" in fields or "image" in fields else "generate")
    if mode not in MODES:
        raise InvalidInput(f"mode: {show(mode)} is not known; allowed are {' and '.join(MODES)}", "mode")
    return parse(EditRequest, fields, strict) if mode == "edit" else parse(GenerateRequest, fields, strict)


def check_bytes(job_input: Any, most: int) -> None:
    """Checks the size of a job that did not come as a body of bytes: strings and names, and one for the rest.

    Raises:
        PayloadTooLarge: it is over `most`.
    """
    left, values = most, [job_input]
    while values:
        value = values.pop()
        if isinstance(value, dict):
            values += (*value.keys(), *value.values())
        elif isinstance(value, list):
            values += value
        left -= len(value) if isinstance(value, str) else 1
        if left < 0:
            raise PayloadTooLarge(f"input: is over {most / 1e6:g} MB; send fewer or smaller images", "input")


def parse(schema: type[R], fields: dict[str, Any], strict: bool = True) -> R:
    """Validates the fields of a request; not `strict`, the strings of a form are read as the types that they stand for.

    Raises:
        InvalidInput: for the first field at fault.
    """
    try:
        return schema.model_validate(fields, strict=strict)
    except ValidationError as error:
        raise invalid_input(error.errors(include_url=False)[0], schema) from None


def plan(
    request: Request, spec: ModelSpec, first_reference: tuple[int, int] | None, default_seed: int
) -> ResolvedRequest:
    """Resolves a request against the model that will run it.

    Args:
        first_reference: width and height of the first reference, already at most 1 megapixel; None without one.
        default_seed: for a request that names no seed.

    Raises:
        InvalidInput: a size is not the model's.
    """
    width, height = _size(request, spec, first_reference)
    seed = default_seed if request.seed is None else request.seed
    guidance = spec.guidance_scale if request.guidance_scale is None else request.guidance_scale
    warnings = []
    if spec.distilled and request.guidance_scale not in (None, spec.guidance_scale):
        warnings.append(f"guidance_scale: {spec.name} is distilled and does not use it")
    return ResolvedRequest(
        prompt=request.prompt,
        width=width,
        height=height,
        num_inference_steps=request.num_inference_steps or spec.num_inference_steps,
        guidance_scale=spec.guidance_scale if spec.distilled else guidance,
        strength=request.strength if isinstance(request, EditRequest) else 1.0,
        seeds=tuple((seed + i) % (MAX_SEED + 1) for i in range(request.num_images)),
        warnings=tuple(warnings),
    )


def check(request: Request, spec: ModelSpec, settings: Settings) -> None:
    """Checks what is the model's or the operator's to say, before any work is done for the job.

    Raises:
        InvalidInput: naming the field at fault.
    """
    references = len(request.images) if isinstance(request, EditRequest) else 0
    steps = request.num_inference_steps or spec.num_inference_steps
    for field, came, most, what in (
        ("num_inference_steps", steps, settings.max_steps, "steps"),
        ("timeout", request.timeout or 1, settings.timeout, "seconds"),
        ("prompt", len(request.prompt), settings.max_prompt, "characters"),
        ("images", references, min(spec.max_references, settings.max_references), "references"),
        ("num_images", request.num_images, settings.max_images, "images"),
    ):
        if came > most:
            raise InvalidInput(f"{field}: {came:g} {what} are too many here; 1 to {most:g} are allowed", field)
    for field, side in (("width", request.width), ("height", request.height)):
        if side is None:
            continue
        allowed = f"{spec.min_size} to {spec.max_size}"
        if not spec.min_size <= side <= spec.max_size:
            raise InvalidInput(f"{field}: {show(side)} is out of bounds ({allowed}, multiples of {MULTIPLE})", field)
        if side % MULTIPLE:
            raise InvalidInput(f"{field}: {show(side)} is not a multiple of {MULTIPLE} ({allowed})", field)


def check_work(plan: ResolvedRequest, settings: Settings) -> None:
    """Checks the work of a request against the operator's limit.

    Raises:
        InvalidInput: it is too much.
    """
    work = plan.width * plan.height / 1e6 * plan.num_inference_steps * len(plan.seeds)
    most = settings.max_megapixel_steps
    if most is not None and work > most:
        raise InvalidInput(
            f"num_inference_steps: {len(plan.seeds)} x {plan.width}x{plan.height} in {plan.num_inference_steps} steps "
            f"are {work:.1f} megapixel-steps; {most:g} are allowed (fewer steps, or fewer or smaller images)",
            "num_inference_steps",
        )


def _size(request: Request, spec: ModelSpec, first_reference: tuple[int, int] | None) -> tuple[int, int]:
    if isinstance(request, EditRequest) and request.keeps_photo and first_reference is not None:
        return first_reference  # chosen for the edit
    if request.width is not None and request.height is not None:
        return request.width, request.height
    if request.aspect_ratio not in (None, "match_input"):
        across, down = (int(part) for part in str(request.aspect_ratio).split(":"))
        unit = math.sqrt(spec.size**2 / (across * down))
        width, height = (clamp(_round(part * unit), spec.min_size, spec.max_size) for part in (across, down))
        return width, height
    if first_reference is not None:
        return fit(*first_reference, spec.min_size, spec.max_size)
    return spec.size, spec.size


def _round(side: float) -> int:
    return max(MULTIPLE, round(side / MULTIPLE) * MULTIPLE)


def show(value: Any, limit: int = 60) -> str:
    """What came, short enough for a message."""
    if value is None:
        return "null"
    try:
        text = reprlib.repr(value)  # not repr: that descends into what may be a thousand levels deep
    except ValueError:  # an integer of more than 4,300 digits
        return f"a very long {type(value).__name__}"
    return text if len(text) <= limit else f"{text[:limit]}..."


#: What these hold is nobody's business, not even an error's: it may be kept where the job's input is not.
_PRIVATE = ("prompt", "images", "mask")
_KINDS: dict[type[Any], str] = {dict: "an object", list: "a list", str: "a string"}


def kind_of(value: Any) -> str:
    """What came, without the words or images that it may hold."""
    return _KINDS.get(type(value)) or show(value)


_TYPES = {"int": "an integer", "float": "a number", "string": "a string", "bool": "true or false", "list": "a list"}


def invalid_input(error: ErrorDetails, schema: type[GenerateRequest] | type[EditRequest]) -> InvalidInput:
    """One of pydantic's errors in the contract's words."""
    location = [part for part in error["loc"] if part != "body"]
    field = str(location[0])[:60] if location else "input"
    name = field + "".join(f"[{part}]" for part in location[1:] if isinstance(part, int))
    kind, context, came = error["type"], error.get("ctx", {}), error["input"]
    fields: type[BaseModel] = schema
    if field == "expand" and len(location) > 1:  # a field of that object
        fields, field = Expand, str(location[1])[:60]
        name = f"expand.{field}"
    if kind == "value_error":  # our own validators write "field: message"
        message = str(context["error"])
        return InvalidInput(message, message.split(":")[0])
    if kind == "missing":
        text = "is missing, and required"
    elif kind == "extra_forbidden":
        text = _unknown(field, fields, schema)
    elif field == "prompt" and kind == "string_too_long":
        text = f"{len(came)} characters are too many; 1 to {MAX_PROMPT} are allowed"
    elif field == "prompt" and kind == "string_too_short":
        text = f"is empty; 1 to {MAX_PROMPT} characters are allowed"
    elif field == "images" and kind in ("too_long", "too_short"):
        text = f"{len(came)} references came; 1 to {MAX_REFERENCES} are allowed"
    elif kind in ("greater_than_equal", "less_than_equal"):
        low, high = _bounds(fields, field)
        text = f"{show(came)} is out of bounds ({low} to {high})"
    elif kind == "literal_error":
        text = f"{show(came)} is not known; allowed are {context['expected']}"
    elif kind == "string_unicode":
        text = "holds half of a surrogate pair, which is not a character"
    elif kind.endswith(("_type", "_parsing")):
        shown = kind_of(came) if field in _PRIVATE else show(came)
        text = f"must be {_TYPES.get(kind.rpartition('_')[0], kind)}, and not {shown}"
    else:
        text = f"{show(came)}: {error['msg']}"
    return InvalidInput(f"{name}: {text}", name)


def _unknown(field: str, fields: type[BaseModel], schema: type[GenerateRequest] | type[EditRequest]) -> str:
    """What is wrong with a field that `fields`, the request or an object in it, does not have."""
    if schema is GenerateRequest and field in EditRequest.model_fields and field != "images":
        return "needs a reference image; it is a field of edits"
    known = ["mode", *fields.model_fields] if fields is schema else list(fields.model_fields)
    return f"is not a field of {schema.mode}; allowed are {', '.join(known)}"


def _bounds(schema: type[BaseModel], field: str) -> tuple[Any, Any]:
    """The least and the most that the schema allows for a number."""
    described = schema.model_json_schema()["properties"][field]
    options = described.get("anyOf", [described])
    bounded = next(option for option in options if "minimum" in option)
    return bounded["minimum"], bounded["maximum"]
