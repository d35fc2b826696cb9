"""HTTP connections to hosts that a caller names: references by URL, and the object store of a job.

Each address is checked when a socket is opened for it (`imagegen.inputs.addresses`), so that no answer of a name server
leads inside. Proxies, cookies and .netrc of the environment are not used. When the work ends, for whatever reason, its
sockets are shut down: a peer that neither reads nor sends holds nothing.

The connections at one host are bounded, for all jobs together: the worker is no tool for flooding other people's hosts.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext, suppress
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

import aiohttp
from aiohttp.connector import Connection
from aiohttp.http import RawResponseMessage

from imagegen import __version__
from imagegen.inputs import addresses

#: Connections at one host, of all jobs together: four edits with four references each.
_PER_HOST = 16

#: Interim answers (1xx) before the answer itself. Clients are sent one or two; HTTP has no bound (RFC 9110, 15.2).
_INTERIM = 16

_turns: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()


class _Response(aiohttp.ClientResponse):
    """An answer with few interim ones before it: aiohttp reads any number, as fast as they come."""

    async def start(self, connection: Connection) -> aiohttp.ClientResponse:
        """Reads the answer's head.

        Raises:
            aiohttp.ClientError: there is none.
        """
        protocol, heads = connection.protocol, 0
        assert protocol is not None
        read = protocol.read

        async def read_few() -> tuple[RawResponseMessage, aiohttp.StreamReader]:
            nonlocal heads
            heads += 1
            if heads > _INTERIM + 1:
                raise aiohttp.ClientPayloadError("interim answers without end")
            return await read()

        protocol.read = read_few  # type: ignore[method-assign]
        try:
            return await super().start(connection)
        finally:
            del protocol.read  # the class has its own


@asynccontextmanager
async def open_session(
    trusted: bool,
    timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 - of aiohttp's kind, for each part of an exchange
    headers: dict[str, str] | None = None,
    decompress: bool = False,
) -> AsyncIterator[aiohttp.ClientSession]:
    """A session for one exchange; it keeps no connection and no cookie.

    Args:
        trusted: the operator named the host, which may have any address.
        timeout: of the connection and of each read; the caller has a deadline for the whole.
        headers: of every request, beside User-Agent.
        decompress: whether a body comes out of its gzip.
    """
    sockets: list[socket.socket] = []
    names = resolver()
    connector = aiohttp.TCPConnector(
        socket_factory=partial(_open, trusted, sockets), resolver=names, use_dns_cache=False, force_close=True
    )
    try:
        async with aiohttp.ClientSession(
            connector=connector,
            response_class=_Response,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=timeout,
            headers={"User-Agent": f"image-gen/{__version__}", **(headers or {})},
            auto_decompress=decompress,
        ) as session:
            yield session
    except BaseException:
        for opened in sockets:  # what was not sent is dropped, where the kernel would go on offering it
            with suppress(OSError):
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raise
    finally:
        for opened in sockets:  # asyncio would keep one open until the peer has read what was sent
            with suppress(OSError):
                opened.shutdown(socket.SHUT_RDWR)
        await names.close()


def turn(host: str, trusted: bool) -> AbstractAsyncContextManager[None]:
    """To be held while connected to a host; waits while too many of its connections are open."""
    if trusted:
        return nullcontext()
    return _turns.setdefault(host.lower().rstrip("."), asyncio.Semaphore(_PER_HOST))


def resolver() -> aiohttp.abc.AbstractResolver:
    """Who is asked for a name's addresses: c-ares, whose questions can be given up, unlike the system's."""
    return aiohttp.AsyncResolver()


def _open(trusted: bool, sockets: list[socket.socket], info: tuple[Any, ...]) -> socket.socket:
    """A socket for an address that may be connected to; no other way leads to one."""
    family, kind, protocol, _, address = info
    addresses.check(address[0], trusted)
    sockets.append(socket.socket(family, kind, protocol))
    return sockets[-1]
