"""From what a caller sent to what will run: parsing, the model's own bounds and defaults, and errors in plain words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import ValidationError

from imagegen.contract import aliases
from imagegen.contract.faults import Request, invalid_input
from imagegen.contract.fields import MAX_SEED
from imagegen.contract.given import is_given
from imagegen.contract.schemas import EditRequest, GenerateRequest
from imagegen.contract.showing import kind_of, show
from imagegen.errors import ImageGenError, InvalidInput, PayloadTooLarge
from imagegen.models import MULTIPLE, ModelSpec, clamp, fit
from imagegen.settings import Settings

R = TypeVar("R", GenerateRequest, EditRequest)
E = TypeVar("E", bound=ImageGenError)
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
    negative_prompt: str = ""
    warnings: tuple[str, ...] = ()


def parse_job(
    job_input: Any, strict: bool = True, most: Mapping[str, float] | None = None, others: Iterable[str] = ()
) -> Request:
    """Validates a job's `input`: `mode` chooses the request, "edit" where images are given and it is left out.

    Args:
        strict, most, others: as for `parse`.

    Raises:
        InvalidInput: naming the field, what came and what is allowed.
    """
    if not isinstance(job_input, dict):
        raise InvalidInput(f"input: must be an object with a prompt, and not {kind_of(job_input)}", "input")
    fields = {name: value for name, value in job_input.items() if name != "mode"}
    mode = job_input.get("mode")
    if not is_given(mode):
        edit = any(is_given(value) for name, value in fields.items() if aliases.is_image(name))
        mode = "edit" if edit else "generate"
    if mode not in MODES:
        raise InvalidInput(f"mode: {show(mode)} is not known; allowed are {' and '.join(MODES)}", "mode")
    if mode == "edit":
        return parse(EditRequest, fields, strict, most, others)
    return parse(GenerateRequest, fields, strict, most, others)


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


def parse(
    schema: type[R],
    fields: dict[str, Any],
    strict: bool = True,
    most: Mapping[str, float] | None = None,
    others: Iterable[str] = (),
) -> R:
    """Validates the fields of a request, under this project's names and others'.

    Args:
        strict: False: the strings of a form are read as the types that they stand for.
        most: what is allowed here (`limits`), for messages.
        others: names of the endpoint's own fields, for messages too.

    Raises:
        InvalidInput: for the first field at fault, by the caller's name of it.
    """
    mode = fields.get("mode")
    if is_given(mode) and mode != schema.mode:
        raise InvalidInput(f"mode: {show(mode)} is not this endpoint's; {schema.mode} is", "mode")
    fields = {name: value for name, value in fields.items() if name != "mode"}
    try:
        return schema.model_validate(fields, strict=strict)
    except ValidationError as error:
        fault = invalid_input(error.errors(include_url=False)[0], schema, most or {}, others)
    with suppress(ValueError):  # which is the fault itself
        fault = renamed(fault, aliases.translate(fields)[1])
    raise fault


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
    warnings = list(request.spoken.warnings)
    if spec.distilled:
        unused = {"guidance_scale": request.guidance_scale not in (None, spec.guidance_scale)}
        unused["negative_prompt"] = request.negative_prompt is not None
        warnings += [
            f"{request.spoken.name(name)}: {spec.name} is distilled and does not use it"
            for name, given in unused.items()
            if given
        ]
    elif request.negative_prompt is not None and guidance <= 1:
        warnings.append("negative_prompt: has no effect with a guidance_scale of 1 or less")
    return ResolvedRequest(
        prompt=request.prompt,
        negative_prompt=request.negative_prompt or "",
        width=width,
        height=height,
        num_inference_steps=request.num_inference_steps or spec.num_inference_steps,
        guidance_scale=spec.guidance_scale if spec.distilled else guidance,
        strength=request.strength if isinstance(request, EditRequest) else 1.0,
        seeds=tuple((seed + i) % (MAX_SEED + 1) for i in range(request.num_images)),
        warnings=tuple(warnings),
    )


def limits(spec: ModelSpec | None, settings: Settings) -> dict[str, float]:
    """The most that is allowed of a field here: what the operator and the model set, where it is known yet."""
    references = settings.max_references if spec is None else min(spec.max_references, settings.max_references)
    return {
        "num_inference_steps": settings.max_steps,
        "timeout": settings.timeout,
        "prompt": settings.max_prompt,
        "negative_prompt": settings.max_prompt,
        "images": references,
        "num_images": settings.max_images,
        "loras": settings.max_loras,
    }


def renamed(error: E, spoken: aliases.Spoken) -> E:
    """The error of a field by the caller's name of that field."""
    name = spoken.name(error.field or "")
    if error.field and name != error.field:
        error.message = name + error.message.removeprefix(error.field)
        error.field, error.args = name, (error.message,)
    return error


def check(request: Request, spec: ModelSpec, settings: Settings) -> None:
    """Checks what is the model's or the operator's to say, before any work is done for the job.

    Raises:
        InvalidInput: naming the field at fault.
    """
    allowed = limits(spec, settings)
    for field, received, what in (
        ("num_inference_steps", request.num_inference_steps or spec.num_inference_steps, "steps"),
        ("timeout", request.timeout or 1, "seconds"),
        ("prompt", len(request.prompt), "characters"),
        ("negative_prompt", len(request.negative_prompt or ""), "characters"),
        ("images", len(request.images) if isinstance(request, EditRequest) else 0, "references"),
        ("num_images", request.num_images, "images"),
        ("loras", len(request.loras), "LoRAs"),
    ):
        most = allowed[field]
        if received > most:
            raise InvalidInput(f"{field}: {received:g} {what} are too many here; 1 to {most:g} are allowed", field)
    for field, side in (("width", request.width), ("height", request.height)):
        if side is None:
            continue
        bounds = f"{spec.min_size} to {spec.max_size}"
        if not spec.min_size <= side <= spec.max_size:
            raise InvalidInput(f"{field}: {show(side)} is out of bounds ({bounds}, multiples of {MULTIPLE})", field)
        if side % MULTIPLE:
            raise InvalidInput(f"{field}: {show(side)} is not a multiple of {MULTIPLE} ({bounds})", field)


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
