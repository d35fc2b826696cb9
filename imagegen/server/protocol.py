"""uvicorn's HTTP protocol with limits, so that no client can hold a connection without sending or reading.

uvicorn alone closes a connection only while it is idle between requests. This class adds deadlines, minimum rates, a
cap on connections, and a strict reading of HTTP (llhttp's, through httptools). docs/decisions/0020-connections.md
says why. For uvicorn's command line: `--http imagegen.server.protocol:Protocol --ws none`.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterable
from contextlib import suppress
from http import HTTPStatus
from typing import Any, cast

import httptools
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from imagegen.errors import ImageGenError, InvalidInput, NotReady
from imagegen.server.access import HEALTH_PATHS, network_of
from imagegen.server.connection_limits import Limits
from imagegen.settings import Settings

log = logging.getLogger(__name__)

#: Seconds between two looks at a connection.
_TICK = 1.0
#: Seconds from the opening of a connection, or from the last answer, to the end of the next request's headers.
_HEAD_SECONDS = 10.0
#: Bytes a second that a client must send of a body, or take of an answer. Kestrel asks for 240, nginx for any at all.
_MIN_RATE = 1000
#: Seconds over which the rate is measured. A client that reads slowly takes bytes in bursts of its receive buffer.
_BODY_WINDOW, _ANSWER_WINDOW = 10.0, 20.0
#: Bytes of a request's line and headers, as in Node.js. Some headers are parsed in quadratic time.
_MAX_HEAD = 16_384
#: Bytes of everything in a request that is not its body, beyond as many as the body has.
_MAX_OVERHEAD = 65_536
#: A refused body is thrown away without being parsed for so many seconds and bytes; then the connection is reset.
#: Closing at once would reset it, and the client could lose the answer.
_LINGER_SECONDS, _LINGER_BYTES = 2.0, 8_000_000
#: Connections beyond the cap, for nothing but health checks, where every other one is at work.
_RESERVE = 32


class Protocol(HttpToolsProtocol):
    """One connection.

    The state that the application leaves in `scope["state"]` tells which requests are at work: those with
    "authorized" set are never closed to make room for another connection.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # The application hands its limits over by its lifespan; one without a lifespan has the defaults.
        self._limits: Limits = self.app_state.get("limits") or Limits(Settings())
        self._app = cast(ASGIApp, self.app)
        self.app = cast(Any, self._run)
        self.address = ""
        self.since = self._window = self.loop.time()
        self._state: str | None = None
        self._received = self._body_bytes = self._head_bytes = self._moved = self._buffered = self._mark = 0
        self._head_done = self._reserved = self._closing = self._ignoring = False
        self._lingering: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    # ---- What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has connected: there must be room for it."""
        super().connection_made(cast(asyncio.Transport, transport))
        self.address = network_of(self.client[0] if self.client else "")
        self._timer = self.loop.call_later(_TICK, self._tick)
        self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is closed."""
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """The client has sent something."""
        self._unset_keepalive_if_required()
        self._received += len(data)
        if self._lingering is not None or self._ignoring:
            if self._received > (_LINGER_BYTES if self._lingering is not None else _MAX_OVERHEAD):
                self.close_now("it sends more than was asked for")
            return
        self._parse(data)
        if self._received - self._body_bytes > _MAX_OVERHEAD + self._body_bytes:
            self._refuse(InvalidInput("the body comes in chunks that are too small"), 431)

    def _parse(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            cause: BaseException | str = error
            if isinstance(error.__context__, ValueError):  # of a method of this class
                cause = error.__context__
            elif isinstance(error.__context__, httptools.HttpParserInvalidURLError):
                cause = "its URL cannot be read"
            status = 431 if self._head_bytes > _MAX_HEAD else 400
            self._refuse(InvalidInput(f"the request is not valid HTTP: {cause}"), status)

    def resume_writing(self) -> None:
        """The client has read what was buffered."""
        super().resume_writing()
        self._moved += int(_MIN_RATE * _ANSWER_WINDOW)

    def shutdown(self) -> None:
        """The server is ending: a body that is still coming is for no job any more, and nobody is waited for who is not
        at work."""
        super().shutdown()
        if self.cycle is not None and self.cycle.more_body and not self.cycle.response_complete:
            self._refuse(NotReady("the worker is ending; another will answer", retry_after=1), 503)
        self.loop.call_later(_LINGER_SECONDS, self._end_unless_at_work)

    def _end_unless_at_work(self) -> None:
        if not self.at_work:
            self.close_now("the server is ending")

    # ---- What httptools calls

    def on_message_begin(self) -> None:
        """A request begins; one before the answer to the last (pipelining, which no client needs) is ignored."""
        if self.cycle is not None and not self.cycle.response_complete:
            raise ValueError("a request before the answer to the last one")
        self._head_done = False
        self._head_bytes = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """A part of the URL."""
        self._count_head(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header; one after the body (a trailer) would be taken for a header by the application."""
        if self._head_done:
            raise ValueError("trailers are not allowed")
        self._count_head(len(name) + len(value) + 4)
        if name.lower() == b"transfer-encoding" and value.strip().lower() != b"chunked":
            raise ValueError("Transfer-Encoding may be chunked alone")
        super().on_header(name, value)

    def _count_head(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > _MAX_HEAD:
            raise ValueError(f"its line and headers have more than {_MAX_HEAD} bytes")

    def on_headers_complete(self) -> None:
        """The headers are complete; a request for an upgrade is `_upgrade`'s."""
        if (version := self.parser.get_http_version()) not in ("1.0", "1.1"):
            raise ValueError(f"HTTP/{version} was received; HTTP/1.1 and HTTP/1.0 are served")
        self._head_done = True
        if self.parser.should_upgrade():
            return
        super().on_headers_complete()
        if self._reserved and self.scope["path"] not in HEALTH_PATHS:
            self.cycle.disconnected = True
            self._refuse(NotReady("there are too many connections", retry_after=1), 503)

    def on_body(self, body: bytes) -> None:
        """A part of the body, of one chunk at most."""
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The body is complete."""
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def _upgrade(self, rest: bytes) -> None:
        """Answers a request for another protocol: HTTP/2 in clear text is optional, and is served as HTTP/1.1.

        Java's HttpClient asks for that with each first request; httptools drops the body then, so the request is
        parsed again without it.
        """
        upgrade = b"".join(value for name, value in self.headers if name == b"upgrade").lower()
        if upgrade != b"h2c" or self.parser.get_method() == b"CONNECT":
            self._refuse(InvalidInput("this server upgrades to no other protocol"), 400)
            return
        dropped = (b"upgrade", b"connection", b"http2-settings")
        kept = [name + b": " + value for name, value in self.headers if name not in dropped]
        head = b"\r\n".join([self.parser.get_method() + b" " + self.url + b" HTTP/1.1", *kept, b"", b""])
        self.parser = httptools.HttpRequestParser(self)
        self._received -= len(rest)
        self._parse(head)
        self.data_received(rest)

    # ---- Answers

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The application, where an answer that goes out before the body has come closes the connection."""
        cycle = self.cycle
        scope["state"].update(
            unread_bytes=self._unread_bytes, is_crowded=self._is_crowded, is_paused=lambda: self.flow.write_paused
        )

        async def closing(message: Message) -> None:
            if message["type"] == "http.response.start" and cycle.more_body:
                self._closing = True
                headers: Iterable[tuple[bytes, bytes]] = message.get("headers", [])
                message = {**message, "headers": [*headers, (b"connection", b"close")]}
            await send(message)
            # uvicorn would close at once, which resets the connection: `on_response_complete` does.
            cycle.keep_alive = cycle.keep_alive or self._closing

        await self._app(scope, receive, closing)

    def on_response_complete(self) -> None:
        """An answer is written, though perhaps not read."""
        super().on_response_complete()
        self.since = self.loop.time()
        self._received = self._body_bytes = 0
        if self._closing:
            self._linger()

    def _refuse(self, error: ImageGenError, status: int) -> None:
        """Answers a request that never gets to the application, or no further, and closes the connection."""
        if self._lingering is not None or self._ignoring:
            return
        log.debug("refused %s: %s", self.address, error)
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete and not cycle.disconnected:
            if cycle.response_started or not cycle.more_body:
                self._ignoring = True  # what follows a complete request; it is answered first
                cycle.keep_alive = False
                return
            cycle.disconnected = True
            cycle.message_event.set()
        content = json.dumps({"error": error.body()}).encode()
        head = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(content)}\r\nX-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + content)
        self._linger()

    def _linger(self) -> None:
        """Ends the answer, and throws away what still comes for a moment."""
        if self.transport.is_closing():
            return
        self._unset_keepalive_if_required()
        self._lingering = self.loop.time()
        self._received = 0
        self.flow.resume_reading()
        with suppress(OSError):  # the peer has ended the connection before
            self.transport.write_eof()

    # ---- Limits

    @property
    def at_work(self) -> bool:
        """Whether it is used by a request that may use it: one that is authorized, until its answer is read."""
        cycle = self.cycle
        if cycle is None or not cycle.scope["state"].get("authorized"):
            return False
        return not cycle.response_complete or self.transport.get_write_buffer_size() > 0

    def _unread_bytes(self, caller: str | None) -> int:
        """Bytes of answers that a caller, or None: anybody, has not taken yet; they are in memory."""
        return sum(
            other.transport.get_write_buffer_size()
            for other in self.connections
            if isinstance(other, Protocol)
            and other.cycle is not None
            and caller in (None, other.cycle.scope["state"].get("caller"))
        )

    def _is_crowded(self, caller: str) -> bool:
        """Whether a caller has as many connections at work as one may, so that some are left for others."""
        others = [other for other in self.connections if isinstance(other, Protocol) and other.at_work]
        of_caller = sum(other.cycle.scope["state"].get("caller") == caller for other in others)
        return bool(of_caller > self._limits.per_caller)

    def _make_room(self) -> None:
        """Closes another connection if there are too many: of those not at work, the one that waits longest.

        Where all are at work, this one may ask for the server's health alone.
        """
        others = [other for other in self.connections if isinstance(other, Protocol) and other is not self]
        own = [other for other in others if other.address == self.address]
        if len(own) >= self._limits.of(self.client[0] if self.client else ""):
            others = own
        elif len(others) < self._limits.total:
            return
        for other in sorted(others, key=lambda other: other.since):
            if not other.at_work:
                other.close_now("another connection needs its place")
                return
        if len(self.connections) <= self._limits.total + _RESERVE:
            self._reserved = True
        else:
            self.close_now("there are too many connections")

    def _tick(self) -> None:
        """Closes a connection whose client does not do what is awaited of it."""
        self._timer = self.loop.call_later(_TICK, self._tick)
        now, buffered = self.loop.time(), self.transport.get_write_buffer_size()
        self._moved += max(0, self._buffered - buffered)
        self._buffered = buffered
        if buffered:
            self._demand("answer", _ANSWER_WINDOW, now)
        elif self._lingering is not None:
            if now - self._lingering > _LINGER_SECONDS:
                self.close_now("its body was refused")
        elif self.cycle is None or self.cycle.response_complete:
            self._state = None
            if now - self.since > _HEAD_SECONDS:
                self.close_now("its headers did not come in time")
        elif self.cycle.more_body and not self.flow.read_paused:
            self._demand("body", _BODY_WINDOW, now)
        else:
            self._state = None  # the server's turn

    def _demand(self, state: str, window: float, now: float) -> None:
        """Closes the connection if too few bytes have moved while it was in this state for the whole window."""
        moved = self._received if state == "body" else self._moved
        if state != self._state:
            self._state, self._window, self._mark = state, now, moved
        elif now - self._window > window:
            if moved - self._mark >= _MIN_RATE * window:
                self._window, self._mark = now, moved
            elif state == "body":
                self._refuse(InvalidInput(f"body: fewer than {_MIN_RATE} bytes a second were received", "body"), 408)
            else:
                self.close_now("it does not read its answer")

    def close_now(self, reason: str) -> None:
        """Closes the connection at once, whatever has not been sent."""
        log.debug("closed the connection of %s: %s", self.address, reason)
        self.connections.discard(self)
        self.transport.abort()
