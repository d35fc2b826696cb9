"""Black Forest Labs' own API for klein in terms of this project's jobs: its fields, its states and its errors.

Fields and states as https://docs.bfl.ai has them (November 2026). What this server cannot honour is warned of, or
refused by name.
"""

from __future__ import annotations

import base64
import json
from typing import Any

from imagegen.contract import requests
from imagegen.contract.aliases import nearest
from imagegen.contract.given import is_given
from imagegen.contract.requests import Request
from imagegen.contract.showing import show
from imagegen.errors import ImageGenError, InvalidInput, NotFound
from imagegen.job_settings import PREFIX, is_secret
from imagegen.jobs.rows import OPEN, Row
from imagegen.models import ModelSpec

#: BFL's models, and those of this project that are the same. micro stands in for each, as it does for klein everywhere.
MODELS = {"flux-2-klein-9b": ("klein-9b", "klein-9b-kv", "micro"), "flux-2-klein-4b": ("klein-4b", "micro")}
#: BFL's fields, in the order of the references that they hold.
_IMAGES = ("input_image", "input_image_2", "input_image_3", "input_image_4")
_SAME = ("prompt", "seed", "width", "height", "loras")
_KNOWN = (*_SAME, *_IMAGES, "output_format", "safety_tolerance", "webhook_url", "webhook_secret")
#: Characters of a webhook_secret.
_MAX_SECRET = 256
#: The most of safety_tolerance.
_TOLERANCE = 6


def check_model(name: str, spec: ModelSpec) -> None:
    """Raises NotFound where the served model is not the one of this route."""
    if spec.name not in MODELS[name]:
        raise NotFound(f"{name} is not served here; {spec.name} is")


def translate(fields: dict[str, Any]) -> tuple[Request, list[str]]:
    """BFL's fields -> a request of this project, and what the caller should know.

    Raises:
        InvalidInput: a field that is not known, or holds what it must not; in BFL's names.
    """
    given = {name: value for name, value in fields.items() if is_given(value)}
    for name in given:
        if name not in _KNOWN:
            shown, similar = name[:60], nearest(name, _KNOWN)
            text = f"is not a field of this route; the nearest is {similar}; allowed are {', '.join(_KNOWN)}"
            raise InvalidInput(f"{shown}: {text}", shown)
    warnings = []
    if (tolerance := given.get("safety_tolerance")) is not None:
        whole = isinstance(tolerance, int | float) and not isinstance(tolerance, bool) and tolerance % 1 == 0
        if not whole or not 0 <= tolerance <= _TOLERANCE:
            came = show(tolerance)
            raise InvalidInput(f"safety_tolerance: {came} came; 0 to {_TOLERANCE} are allowed", "safety_tolerance")
        warnings.append("safety_tolerance: changes nothing; this server has no filter")
    native = {name: given[name] for name in _SAME if name in given}
    native["output_format"] = given.get("output_format", "jpeg")
    if images := [given[name] for name in _IMAGES if name in given]:
        native["images"] = images
    try:
        return requests.parse_job(native), warnings
    except InvalidInput as error:
        raise to_bfl_field(error, [name for name in _IMAGES if name in given]) from None


def to_bfl_field(error: InvalidInput, images: list[str]) -> InvalidInput:
    """The error of a field in BFL's names.

    Args:
        images: the fields of the references.
    """
    for i, name in enumerate(images):
        ours = f"images[{i}]"
        if error.field == ours:
            return InvalidInput(error.message.replace(ours, name, 1), name)
    return error


def secret_of(secret: Any) -> str | None:
    """BFL's webhook_secret, which is any text, as the specification of webhooks writes it: its bytes in base64.

    Raises:
        InvalidInput: it is no text, or a very long one.
    """
    field = "webhook_secret"
    if secret is None:
        return None
    try:
        data = secret.encode() if isinstance(secret, str) and len(secret) <= _MAX_SECRET else b""
    except UnicodeEncodeError:  # half a surrogate pair
        data = b""
    if not data:
        raise InvalidInput(f"{field}: must be a text of 1 to {_MAX_SECRET} characters", field)
    return secret if is_secret(secret) else PREFIX + base64.b64encode(data).decode()


def result_of(row: Row, sample: str | None, step: tuple[int, int] | None) -> dict[str, Any]:
    """The answer of /v1/get_result.

    Args:
        sample: the URL of the image, where there is one.
        step: the steps that are done, and all of them.
    """
    status = "Ready" if row.state == "succeeded" else "Pending" if row.state in OPEN else "Error"
    answer: dict[str, Any] = {"id": row.id, "status": status, "result": None, "progress": None, "details": None}
    if row.state == "succeeded" and row.started and row.finished:
        made = json.loads(row.result or "{}")
        answer["progress"] = 1.0
        answer["result"] = {
            "sample": sample,
            "prompt": json.loads(row.fields).get("prompt"),
            "seed": made["seeds"][0],
            "start_time": row.started,
            "end_time": row.finished,
            "duration": round(row.finished - row.started, 4),
        }
    elif row.error:
        answer["details"] = json.loads(row.error)
    elif step is not None:
        answer["progress"] = round(step[0] / step[1], 4)
    return answer


def not_found(job: str) -> dict[str, Any]:
    """The answer of /v1/get_result to an id that is none, or that is kept no more."""
    return {"id": job[:100], "status": "Task not found", "result": None, "progress": None, "details": None}


def error_body(error: ImageGenError) -> dict[str, Any]:
    """An error in BFL's shape, which is FastAPI's."""
    if error.status == 422:
        return {"detail": [{"loc": ["body", error.field or ""], "msg": error.message, "type": error.code}]}
    return {"detail": error.message}
