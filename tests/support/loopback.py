"""A server on loopback whose connections end with it."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def listening(talk: Talk | None = None, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """The port of a server that leaves each connection to `talk`, or says nothing.

    At the end what still talks is cancelled, and every connection is closed: none is left to the garbage collector.
    """
    talks: set[asyncio.Task[None]] = set()
    writers: list[asyncio.StreamWriter] = []

    async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        talks.add(task)
        writers.append(writer)
        if talk is not None:
            with contextlib.suppress(asyncio.CancelledError):  # asyncio's streams would write of it to stderr
                await talk(reader, writer)

    server = await asyncio.start_server(meet, "127.0.0.1", 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in talks:
            task.cancel()
        await asyncio.gather(*talks, return_exceptions=True)
        for writer in writers:
            writer.transport.abort()
        await asyncio.sleep(0.01)  # both ends learn of it
