"""Black Forest Labs' own API for klein in terms of this project's jobs: its fields, its states and its errors.

Fields and states as https://docs.bfl.ai has them (November 2026). `imagegen.contract.aliases` says which of the fields
have another name here, which change nothing, and which are refused.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

from imagegen.contract import requests
from imagegen.contract.given import is_given
from imagegen.contract.requests import Request
from imagegen.errors import ImageGenError, InvalidInput, NotFound
from imagegen.job_settings import PREFIX, is_secret
from imagegen.jobs.rows import OPEN, Row
from imagegen.models import ModelSpec

#: BFL's models, and those of this project that are the same. micro stands in for each, as it does for klein everywhere.
MODELS = {"flux-2-klein-9b": ("klein-9b", "klein-9b-kv", "micro"), "flux-2-klein-4b": ("klein-4b", "micro")}
#: Characters of a webhook_secret.
_MAX_SECRET = 256


def check_model(name: str, spec: ModelSpec) -> None:
    """Raises NotFound where the served model is not the one of this route."""
    if spec.name not in MODELS[name]:
        raise NotFound(f"{name} is not served here; {spec.name} is")


def translate(fields: dict[str, Any], strict: bool = True, most: Mapping[str, float] | None = None) -> Request:
    """BFL's fields -> a request of this project. They are taken as at every other endpoint, but for the format where
    none is given, and the number of images, of which an answer of BFL's has one.

    Args:
        strict, most: as for `requests.parse`.

    Raises:
        InvalidInput: a field that is not known, or holds what it must not; by the caller's name of it.
    """
    request = requests.parse_job(fields, strict, most, ("webhook_url", "webhook_secret"))
    if request.num_images != 1:
        name = request.spoken.name("num_images")
        raise InvalidInput(f"{name}: {request.num_images} images do not go into an answer of this route; 1 does", name)
    if "output_format" not in request.model_fields_set:
        request = request.model_copy(update={"output_format": "jpeg"})
    return request


def secret_of(secret: Any) -> str | None:
    """BFL's webhook_secret, which is any text, as the specification of webhooks writes it: its bytes in base64.

    Raises:
        InvalidInput: it is no text, or a very long one.
    """
    field = "webhook_secret"
    if not is_given(secret):
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
            **({"loras": made["loras"]} if made.get("loras") else {}),
            "duration": round(max(0.0, row.finished - row.started), 4),  # a clock may be set back
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
