"""What every HTTP route needs: who may come in, how much, in which form, and how a mistake is answered."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import hmac
import io
import json
import re
import uuid
from collections import deque
from collections.abc import AsyncIterator, Coroutine, Mapping
from typing import Any, TypeVar, cast

from fastapi import Request, Response
from PIL import Image
from pydantic import TypeAdapter
from starlette.datastructures import Headers, MutableHeaders, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

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
from imagegen.events import Event, Queued, References, Step
from imagegen.metrics import Metrics
from imagegen.server.schemas import EditRequest
from imagegen.service import Service
from imagegen.settings import Settings

T = TypeVar("T")

#: Open without a key: what a load balancer asks, and the page, which asks for the key itself.
OPEN_PATHS = ("/", "/health", "/ping")
#: The longer side of a preview, in pixels, and its JPEG quality: small enough to send at every step.
_PREVIEW_SIDE, _PREVIEW_QUALITY = 512, 80
#: Seconds in which a body must have come.
_BODY_SECONDS = 120
#: Previews that may wait for a slow client.
_PENDING_PREVIEWS = 8


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

        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
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
    headers = {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    if path.startswith("/v1/"):
        from imagegen.server.openai import error_body, status_of

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
    service.check_open(wait_for_model=not service.settings.preload_models, reading=service.reading)
    service.reading += 1
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            return await _read(request, int(service.settings.max_body_mb * 1e6))
    except TimeoutError:
        raise DeadlineExceeded(f"the body did not come within {_BODY_SECONDS} s") from None
    except ClientDisconnect:
        raise Cancelled("the client went away") from None
    finally:
        service.reading -= 1


async def _read(request: Request, limit: int) -> tuple[dict[str, Any], bool]:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return await _read_form(request, limit), True
    if kind != "application/json":
        raise UnsupportedMediaType(
            f"Content-Type: {kind[:60] or 'nothing'} came; allowed are application/json and multipart/form-data"
        )
    body = await request.body()
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
        self._events: deque[Event | None] = deque()
        self._more = asyncio.Event()

    def listen(self, event: Event | None) -> None:
        """For Service.run; None ends the stream."""
        self._events.append(event)
        # A client that does not read must not keep pictures by the hundred: the oldest previews go.
        shown = [i for i, e in enumerate(self._events) if isinstance(e, Step) and e.preview is not None]
        for i in shown[:-_PENDING_PREVIEWS]:
            self._events[i] = dataclasses.replace(cast(Step, self._events[i]), preview=None)
        self._more.set()

    async def follow(self, task: asyncio.Task[T]) -> AsyncIterator[Event]:
        """The events until the task is done."""
        task.add_done_callback(lambda _: self.listen(None))
        while True:
            await self._more.wait()
            while self._events:
                event = self._events.popleft()
                if event is None:
                    return
                yield event
            self._more.clear()


class EventStream(StreamingResponse):
    """A text/event-stream whose end, however it comes, is the end of its job."""

    def __init__(self, body: AsyncIterator[str], task: asyncio.Task[Any]) -> None:
        super().__init__(body, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        self._task = task

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the stream."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            # Not left to the generators below: nobody closes those in time when their client goes away.
            self._task.cancel()


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
