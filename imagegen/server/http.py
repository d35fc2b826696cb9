"""Errors as HTTP answers."""

from __future__ import annotations

import json
from typing import Any

from fastapi import Response
from starlette.exceptions import HTTPException

from imagegen import logs
from imagegen.contract.faults import TYPES
from imagegen.contract.responses import ErrorResponse
from imagegen.contract.showing import show
from imagegen.engine import openai
from imagegen.errors import ImageGenError, InvalidInput, MethodNotAllowed, NotFound, Unauthorized
from imagegen.jobs import bfl

#: For OpenAPI: what each status means.
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse, "description": text}
    for status, text in {
        401: "No API key, or a wrong one.",
        403: "The Host header or the page's origin is not allowed.",
        410: "The job of this Idempotency-Key has expired.",
        413: "The body, a reference or the answer is too large.",
        415: "The body is neither JSON nor a form.",
        422: "A field is missing, unknown or out of its bounds; the error names it.",
        429: "The queue is full; Retry-After says when to try again.",
        499: "The job was cancelled.",
        502: "The object store could not be reached, or refused the images.",
        500: "A bug; the message holds an id that the log has too.",
        503: "The model is loading or could not be loaded, or the GPU failed.",
        504: "The job's timeout ran out.",
        507: "The image does not fit into the GPU's memory.",
    }.items()
}


def error_response(error: ImageGenError, path: str) -> Response:
    """An error as HTTP: the contract's shape, and below /v1 OpenAI's or BFL's."""
    logs.note(outcome=error.code)
    headers = {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    if path.startswith(("/v1/flux-", "/v1/get_result", "/v1/samples/")):
        return _json(bfl.error_body(error), error.status, headers)
    if path.startswith("/v1/"):
        return _json({"error": openai.error_body(error)}, openai.status_of(error), headers)
    return _json({"error": error.body()}, error.status, headers)


def _json(content: Any, status: int, headers: dict[str, str]) -> Response:
    """JSON in ASCII: a message may repeat half of a surrogate pair, which has no UTF-8."""
    return Response(json.dumps(content), status, headers, media_type="application/json")


def what_is_wrong(error: dict[str, Any]) -> str:
    """What pydantic finds wrong with a value of a path, a query or a header, in the contract's words."""
    kind, came = error["type"], show(error["input"])
    if kind == "missing":
        return "is missing"
    if kind in ("greater_than_equal", "less_than_equal"):
        (bound,) = error["ctx"].values()
        return f"{came} is out of bounds ({'at least' if kind == 'greater_than_equal' else 'at most'} {bound})"
    return f"must be {TYPES.get(kind.partition('_')[0], kind)}, and not {came}"


def framework_error(error: HTTPException, path: str) -> ImageGenError:
    """Starlette's own errors in the contract's words."""
    if error.status_code == 404:
        return NotFound(f"there is no page {path[:100]}; see /docs")
    if error.status_code == 405:
        return MethodNotAllowed(f"{path[:100]} is not for this method; see /docs")
    return InvalidInput(f"the request cannot be read: {error.detail}")
