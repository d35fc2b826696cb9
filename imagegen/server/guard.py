"""ASGI middleware that every HTTP request passes: its id and log line, who may call, and how large a body may be."""

from __future__ import annotations

import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from imagegen import logs
from imagegen.engine.admission import UNREAD_BYTES
from imagegen.errors import ImageGenError, NotFound, Overloaded, PayloadTooLarge, internal
from imagegen.jobs.limits import KeyLimits
from imagegen.server.access import HEALTH_PATHS, Access, network_of
from imagegen.server.http import error_response
from imagegen.settings import Settings
from imagegen.telemetry import tracing
from imagegen.telemetry.metrics import Metrics
from imagegen.telemetry.tracing import Span


class Guard:
    """Gives each request an id and its caller's name, refuses those who may not call, and counts bodies as they come.

    It leaves in `scope["state"]`, where routes find it as `request.state`:

    - `request_id`: of the log lines, and of the job.
    - `caller`: the name of the key, else the client's address (an IPv6 client's /64). What is shared between callers is
      shared by this name.
    - `authorized`: whether this caller may have a job.
    """

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics, limits: KeyLimits) -> None:
        self._app = app
        self._metrics = metrics
        self._access = Access(settings, limits.keys)
        self._limits = limits
        self._metrics_port = settings.metrics_port
        self._limit = int(settings.max_body_mb * 1e6)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        method = scope["method"]
        # A slash at a path's end means nothing. A redirect would name this server's own scheme and host, which clients
        # of a proxy cannot reach, and some do not send their body again.
        scope = {**scope, "path": scope["path"].rstrip("/") or "/"}
        if method == "HEAD":  # as GET; the protocol, which has its own scope, sends no body
            scope["method"] = "GET"
        client = scope["client"][0] if scope.get("client") else "unknown"
        state = scope.setdefault("state", {})
        state.update(request_id=uuid.uuid4().hex, caller=network_of(client), authorized=False)
        with logs.request(state["request_id"], method=method, path=scope["path"][:100], client=client):
            if method != "POST":  # what machines ask every few seconds is not worth a trace
                await self._handle(scope, receive, send, Span(None))
                return
            attributes = {"http.request.method": method}
            with tracing.request(method, Headers(scope=scope), "server", **attributes) as span:
                await self._handle(scope, receive, send, span)

    async def _handle(self, scope: Scope, receive: Receive, send: Send, span: Span) -> None:
        started, received = False, 0

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = scope["state"]["request_id"]
                headers["X-Content-Type-Options"] = "nosniff"
                headers.update(span.headers)
                span.note(**{"http.route": _route(scope), "http.response.status_code": message["status"]})
                self._metrics.requests.labels(_route(scope), message["status"]).inc()
                logs.note(status=message["status"])
            await send(message)

        async def receive_counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._limit:
                raise self._too_large()
            return message

        try:
            await self._admit(scope)
            await self._app(scope, receive_counted, send_with_headers)
        except Exception as error:  # noqa: BLE001 - so that this answer too has its id, and no server logs the message
            answer = error if isinstance(error, ImageGenError) else internal(error)
            if not started:
                await error_response(answer, scope["path"])(scope, receive, send_with_headers)
        finally:
            if (upload := scope["state"].get("upload")) is not None:
                upload.release()
            if (answer_sent := scope["state"].get("answer_sent")) is not None:
                answer_sent()

    async def _admit(self, scope: Scope) -> None:
        """Checks what is known before the body is read; names the caller.

        Raises:
            Forbidden, Unauthorized, Overloaded, PayloadTooLarge, NotFound: the request is refused.
        """
        headers, state, path = Headers(scope=scope), scope["state"], scope["path"]
        self._access.check_page(headers, scope["method"])
        if self._metrics_port is not None and (path == "/metrics" or self._is_metrics_port(scope)):
            if path != "/metrics" or not self._is_metrics_port(scope):
                raise NotFound(f"there is no page {path[:100]} on this port")
            return
        key = await self._access.authorize(headers, path, scope["method"], state["caller"])
        state["authorized"] = key is not None or not self._access.needs_key
        if key is not None:
            state["caller"] = key
            logs.note(caller=key)
        self._check_connections(scope)
        if key is not None and scope["method"] == "POST":
            await self._limits.count_request(key)
        length = headers.get("content-length", "")
        if length.isascii() and length.isdigit() and int(length[:20]) > self._limit:
            raise self._too_large()

    def _check_connections(self, scope: Scope) -> None:
        """Refuses who asks for more while much waits to be read, or on too many connections.

        Slow readers could fill the memory, and one caller's streams of events could take every connection.
        """
        state = scope["state"]
        if "unread_bytes" not in state or scope["path"] in HEALTH_PATHS:  # of the protocol
            return
        unread_bytes, caller = state["unread_bytes"], state["caller"]
        if unread_bytes(caller) > UNREAD_BYTES // 2 or unread_bytes(None) > UNREAD_BYTES:
            raise Overloaded("answers: too many bytes of them wait to be read; try again once they are", retry_after=2)
        if state["authorized"] and state["is_crowded"](caller):
            raise Overloaded(
                "connections: this caller has as many as one may; close some of its streams", retry_after=2
            )

    def _is_metrics_port(self, scope: Scope) -> bool:
        return bool(scope.get("server")) and scope["server"][1] == self._metrics_port

    def _too_large(self) -> PayloadTooLarge:
        return PayloadTooLarge(f"the body is over {self._limit / 1e6:g} MB; send fewer or smaller images")


def _route(scope: Scope) -> str:
    """The route's path as it is declared, so that no path that a caller thinks of becomes a label."""
    return getattr(scope.get("route"), "path", "none")
