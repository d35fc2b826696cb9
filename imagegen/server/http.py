"""What every HTTP route needs: who may come in, how much, in which form, and how a mistake is answered."""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import uuid
from collections.abc import Mapping
from typing import Any

from fastapi import Request, Response
from starlette.datastructures import Headers, MutableHeaders, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from imagegen import logs
from imagegen.engine.service import Service
from imagegen.errors import (
    Cancelled,
    DeadlineExceeded,
    ImageGenError,
    InvalidInput,
    MethodNotAllowed,
    NotFound,
    PayloadTooLarge,
    Unauthorized,
    UnsupportedMediaType,
    internal,
)
from imagegen.metrics import Metrics
from imagegen.settings import Settings

#: Open without a key: what a load balancer asks, and the page, which asks for the key itself.
OPEN_PATHS = ("/", "/health", "/ping")
#: Seconds in which a body must have come.
_BODY_SECONDS = 120
#: Lists, objects and their members in a JSON body: a prompt has 4,000 characters, a job a dozen fields.
_MAX_PARTS = 20_000


class Guard:
    """ASGI middleware: gives each request an id, asks for the key, counts bodies as they come, and answers."""

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics
        self._key = settings.api_key.get_secret_value().encode() if settings.api_key else None
        self._limit = int(settings.max_body_mb * 1e6)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        with logs.request(request_id, method=scope["method"], path=scope["path"][:100]):
            await self._handle(scope, receive, send, request_id)

    async def _handle(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        headers = Headers(scope=scope)
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
                self._metrics.requests.labels(message["status"]).inc()
                logs.note(status=message["status"])
            await send(message)

        received = 0

        async def receive_counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._limit:
                raise self._too_large()
            return message

        refusal: ImageGenError | None = None
        if self._key is not None and scope["path"] not in OPEN_PATHS and scope["method"] != "OPTIONS":
            refusal = self._check_key(headers)
        length = headers.get("content-length", "")
        if refusal is None and length.isascii() and length.isdigit() and int(length[:20]) > self._limit:
            refusal = self._too_large()
        if refusal is not None:
            await error_response(refusal, scope["path"])(scope, receive, send_with_id)
            return
        try:
            await self._app(scope, receive_counted, send_with_id)
        except Exception as error:  # here, so that this answer too has its id, and no server logs the message
            answer = error_response(internal(error), scope["path"])
            if not started:
                await answer(scope, receive, send_with_id)

    def _check_key(self, headers: Mapping[str, str]) -> Unauthorized | None:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = [token.strip() if scheme.lower() == "bearer" else "", headers.get("x-api-key", "")]
        # Headers are bytes that were read as latin-1.
        if True in [hmac.compare_digest(key.encode("latin-1"), self._key or b"") for key in given]:
            return None
        came = "a wrong key came" if any(given) else "no key came"
        return Unauthorized(f"{came}; send the header Authorization: Bearer KEY, or X-API-Key: KEY")

    def _too_large(self) -> PayloadTooLarge:
        return PayloadTooLarge(f"the body is over {self._limit / 1e6:g} MB; send fewer or smaller pictures")


def error_response(error: ImageGenError, path: str) -> Response:
    """An error as HTTP: the contract's shape, and OpenAI's below /v1."""
    logs.note(outcome=error.code)
    headers = {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    if path.startswith("/v1/"):
        from imagegen.engine.openai import error_body, status_of

        return _json({"error": error_body(error)}, status_of(error), headers)
    return _json({"error": error.body()}, error.status, headers)


def _json(content: Any, status: int, headers: dict[str, str]) -> Response:
    """JSON in ASCII: a message may repeat half of a surrogate pair, which has no UTF-8."""
    return Response(json.dumps(content), status, headers, media_type="application/json")


def framework_error(error: HTTPException, path: str) -> ImageGenError:
    """Starlette's own errors in the contract's words."""
    if error.status_code == 404:
        return NotFound(f"there is no page {path[:100]}; see /docs")
    if error.status_code == 405:
        return MethodNotAllowed(f"{path[:100]} is not for this method; see /docs")
    return InvalidInput(f"the request cannot be read: {error.detail}")


async def read_fields(request: Request) -> tuple[dict[str, Any], bool]:
    """The fields of a body, and whether they came as a form, whose values are all strings.

    A body is not read for a job that would be refused.

    Files of a form become base64 in `images`, in their order.

    Raises:
        InvalidInput: it is not JSON, not an object, or a broken form.
        UnsupportedMediaType: it is neither JSON nor a form.
        PayloadTooLarge: it is over the limit.
        DeadlineExceeded, Cancelled: it did not come in time, or its sender went away.
        NotReady, Overloaded: the service takes no job now.
    """
    service: Service = request.app.state.service
    with service.reading(wait_for_model=not service.settings.preload_models):
        try:
            async with asyncio.timeout(_BODY_SECONDS):
                return await _read(request, int(service.settings.max_body_mb * 1e6))
        except TimeoutError:
            raise DeadlineExceeded(f"the body did not come within {_BODY_SECONDS} s") from None
        except ClientDisconnect:
            raise Cancelled("the client went away") from None


async def _read(request: Request, limit: int) -> tuple[dict[str, Any], bool]:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return await _read_form(request, limit), True
    if kind != "application/json":
        raise UnsupportedMediaType(
            f"Content-Type: {kind[:60] or 'nothing'} came; allowed are application/json and multipart/form-data"
        )
    body = await request.body()
    # A list of a million empty lists is read for seconds, and takes 25 times its bytes. base64 holds none of these.
    if sum(body.count(mark) for mark in (b",", b"[", b"{")) > _MAX_PARTS:
        raise PayloadTooLarge(f"the body has too many parts; {_MAX_PARTS} are allowed", "body")
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        raise InvalidInput("the body is not JSON", "body") from None
    if not isinstance(fields, dict):
        raise InvalidInput("the body must be a JSON object with a prompt", "body")
    return fields, False


async def _read_form(request: Request, limit: int) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    images: list[str] = []
    try:
        async with request.form(max_files=16, max_fields=64, max_part_size=limit) as form:
            for name, value in form.multi_items():
                if isinstance(value, UploadFile):
                    data = await value.read()
                    if name.removesuffix("[]") in ("image", "images"):
                        images.append((await asyncio.to_thread(base64.b64encode, data)).decode())
                    else:
                        fields[name] = value  # no field takes a file: the schema names it
                elif name.removesuffix("[]") in ("image", "images"):
                    images.append(value)
                elif name in fields:
                    raise InvalidInput(f"{name[:60]}: came twice", name[:60])
                else:
                    fields[name] = value
    except HTTPException as error:
        raise InvalidInput(f"the form cannot be read: {error.detail}", "body") from None
    if images:
        fields["images"] = images
    return fields
