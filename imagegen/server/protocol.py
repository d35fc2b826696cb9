"""uvicorn's HTTP with an end to headers that never end.

uvicorn closes a connection that is idle after an answer, and none before: a client that sends half a header, or a byte
of one now and then, keeps it for good. `--http imagegen.server.protocol:Protocol` gives it to uvicorn's command line.
"""

from __future__ import annotations

import asyncio
from typing import cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


class Protocol(H11Protocol):
    """h11, where a request's headers must be whole some seconds after they may have begun."""

    #: Seconds from the opening of a connection, or from the first byte of its next request.
    header_seconds = 10.0
    _due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has connected."""
        super().connection_made(cast(asyncio.Transport, transport))
        self._watch()

    def data_received(self, data: bytes) -> None:
        """It has sent something."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        if self._due is not None:
            self._due.cancel()
        super().connection_lost(exc)

    def _watch(self) -> None:
        awaited = self.conn.their_state is h11.IDLE
        if awaited and self._due is None:
            self._due = self.loop.call_later(self.header_seconds, self.timeout_keep_alive_handler)
        elif not awaited and self._due is not None:
            self._due.cancel()
            self._due = None
