"""What every HTTP route needs: who may come in, how much, in which form, and how a mistake is answered."""

from __future__ import annotations

import asyncio
import base64
import hmac
import io
import json
import re
import uuid
from collections.abc import AsyncIterator, Coroutine, Mapping
from typing import Any, TypeVar

from fastapi import Request, Response
from PIL import Image
from pydantic import TypeAdapter
from starlette.datastructures import Headers, MutableHeaders, UploadFile
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from imagegen.errors import (
    Cancelled,
    ImageGenError,
    InvalidInput,
    MethodNotAllowed,
    NotFound,
    PayloadTooLarge,
    Unauthorized,
    UnsupportedMediaType,
)
from imagegen.events import Event, Queued, References
from imagegen.metrics import Metrics
from imagegen.server.schemas import EditRequest
from imagegen.service import Service
from imagegen.settings import Settings

T = TypeVar("T")

#: Open without a key: what a load balancer asks, and the page, which asks for the key itself.
OPEN_PATHS = ("/", "/health", "/ping")
#: The longer side of a preview, in pixels, and its JPEG quality: small enough to send at every step.
_PREVIEW_SIDE, _PREVIEW_QUALITY = 512, 80
#: Bodies over this are parsed in a thread, so that /health is answered meanwhile.
_LARGE_BODY = 1_000_000


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
        headers = Headers(scope=scope)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
                self._metrics.requests.labels(message["status"]).inc()
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
        await self._app(scope, receive_counted, send_with_id)

    def _check_key(self, headers: Mapping[str, str]) -> Unauthorized | None:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        if hmac.compare_digest(given.encode(errors="surrogateescape"), self._key or b""):
            return None
        came = "a wrong key came" if given else "no key came"
        return Unauthorized(f"{came}; send the header Authorization: Bearer KEY, or X-API-Key: KEY")

    def _too_large(self) -> PayloadTooLarge:
        return PayloadTooLarge(f"the body is over {self._limit / 1e6:g} MB; send fewer or smaller pictures")


def error_response(error: ImageGenError, path: str) -> Response:
    """An error as HTTP: the contract's shape, and OpenAI's below /v1."""
    headers = {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    if path.startswith("/v1/"):
        from imagegen.server.openai import error_body, status_of

        return JSONResponse({"error": error_body(error)}, status_of(error), headers)
    return JSONResponse({"error": error.body()}, error.status, headers)


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
        NotReady, Overloaded: the service takes no job now.
    """
    service: Service = request.app.state.service
    service.check_open(wait_for_model=not service.settings.preload_models)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return await _read_form(request), True
    if kind != "application/json":
        raise UnsupportedMediaType(
            f"Content-Type: {kind[:60] or 'nothing'} came; allowed are application/json and multipart/form-data"
        )
    body = await request.body()
    try:
        fields = await asyncio.to_thread(json.loads, body) if len(body) > _LARGE_BODY else json.loads(body)
    except (ValueError, RecursionError):
        raise InvalidInput("the body is not JSON", "body") from None
    if not isinstance(fields, dict):
        raise InvalidInput("the body must be a JSON object with a prompt", "body")
    return fields, False


async def _read_form(request: Request) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    images: list[str] = []
    try:
        async with request.form(max_files=16, max_fields=64) as form:
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


def typed(fields: dict[str, Any]) -> dict[str, Any]:
    """A form's strings as the types that the schema wants; what is not of its type is left for the schema to name."""
    result = {}
    for name, value in fields.items():
        field = EditRequest.model_fields.get(name)
        text = str(field.annotation) if field else ""
        result[name] = value
        if isinstance(value, str) and re.search(r"\b(int|float|bool)\b", text):
            kind: Any = bool if "bool" in text else int if "int" in text else float
            try:
                result[name] = TypeAdapter(kind).validate_python(value)
            except ValueError:
                continue
    return result


async def until_gone(request: Request, task: asyncio.Task[T]) -> T:
    """The task's result; a client that goes away, or a cancelled task, ends it.

    Raises:
        Cancelled: the client is gone, or someone cancelled the task.
    """
    gone = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
        if task.cancelled():
            raise Cancelled("the job was cancelled")
        return task.result()
    finally:
        gone.cancel()
        task.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class EventQueue:
    """A running job's events, for a stream: `async for` gives them until its task is done."""

    def __init__(self) -> None:
        self._events: asyncio.Queue[Event | None] = asyncio.Queue()

    def listen(self, event: Event) -> None:
        """For Service.run."""
        self._events.put_nowait(event)

    async def follow(self, task: asyncio.Task[T]) -> AsyncIterator[Event]:
        """The events until the task is done. Whoever stops following early cancels the task."""
        task.add_done_callback(lambda _: self._events.put_nowait(None))
        try:
            while (event := await self._events.get()) is not None:
                yield event
        finally:
            task.cancel()


async def start_following(events: AsyncIterator[Event], task: asyncio.Task[Any]) -> AsyncIterator[Event]:
    """The same events, once the first has come: a job that is not even admitted is an error of its request, with a
    status of its own, and not an event of a stream that has already begun with 200.

    Raises:
        ImageGenError: the job was refused.
    """
    first = await anext(events, None)
    if first is None:
        task.result()

    async def rest() -> AsyncIterator[Event]:
        if first is not None:
            yield first
        async for event in events:
            yield event

    return rest()


async def ended(task: asyncio.Task[T]) -> T | ImageGenError:
    """A done task's result, or the contract's error."""
    try:
        return await task
    except ImageGenError as error:
        return error
    except asyncio.CancelledError:
        return Cancelled("the job was cancelled")


def server_sent(name: str, data: str) -> str:
    """One event of a text/event-stream; `data` is JSON without line breaks."""
    return f"event: {name}\ndata: {data}\n\n"


async def event_fields(event: Event, job_id: str) -> tuple[str, dict[str, Any]]:
    """An event's name and fields for the native stream."""
    if isinstance(event, Queued):
        return "queued", {"id": job_id, "place": event.place}
    if isinstance(event, References):
        return "references", {}
    fields: dict[str, Any] = {"step": event.step, "total": event.total, "seconds_left": event.seconds_left}
    if event.preview is not None:
        picture = event.preview
        fields["preview"] = await to_base64(picture, _PREVIEW_SIDE, "JPEG")
    return "step", fields


async def to_base64(preview: Image.Image, side: int | None, file_format: str) -> str:
    """A preview as base64, made smaller where its longer side is over `side`."""

    def encode() -> str:
        picture = preview.copy()
        if side is not None:
            picture.thumbnail((side, side))
        file = io.BytesIO()
        picture.save(file, file_format, quality=_PREVIEW_QUALITY)
        return base64.b64encode(file.getvalue()).decode("ascii")

    return await asyncio.to_thread(encode)


def run_job(jobs: dict[str, asyncio.Task[Any]], job_id: str, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """Starts a job under an id by which it can be cancelled, for as long as it runs."""
    task = asyncio.create_task(work)
    jobs[job_id] = task
    task.add_done_callback(lambda _: jobs.pop(job_id, None))
    return task
