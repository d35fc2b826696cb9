"""An object store on loopback that answers as it is told, and one that speaks S3 well: an asyncio server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from imagegen.errors import DeliveryFailed
from imagegen.outputs import upload
from imagegen.outputs.object_store import ObjectStore
from imagegen.settings import Settings
from tests.support.loopback import listening

#: What is sent to a request with this head: bytes, or parts that go on for as long as they like.
Reply = Callable[[str], "bytes | AsyncIterator[bytes]"]
STORED = b'HTTP/1.1 200 OK\r\nETag: "0"\r\nContent-Length: 0\r\n\r\n'


def answer(status: str, body: bytes = b"", **headers: str) -> bytes:
    """An answer of HTTP with these headers, "_" for "-"."""
    headers = {"Content_Length": str(len(body)), **headers}
    lines = [f"HTTP/1.1 {status}", *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


def error(status: str, code: str, inside: str = "", **headers: str) -> bytes:
    """An error as S3 writes it."""
    return answer(status, f"<?xml?><Error><Code>{code}</Code>{inside}</Error>".encode(), **headers)


class FaultyStore:
    """The server; `async with` it. `heads` are the requests that came, `url` is where it listens."""

    def __init__(self, reply: Reply, reads: bool = True) -> None:
        self._reply, self._reads = reply, reads
        self.heads: list[str] = []
        self._open: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> FaultyStore:
        self._stack = contextlib.AsyncExitStack()
        self.url = f"http://127.0.0.1:{await self._stack.enter_async_context(listening(self._talk))}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    @property
    def connections(self) -> int:
        """Those that are open."""
        return sum(not task.done() for task in self._open)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        serving = asyncio.ensure_future(self._serve(reader, writer))
        left = asyncio.ensure_future(self._until_left(reader))
        try:
            await asyncio.wait({serving, left}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            pass  # asyncio's streams would tell of it on stderr
        finally:
            serving.cancel()
            left.cancel()
            await asyncio.gather(serving, left, return_exceptions=True)
            writer.close()
            self._open.discard(task)

    async def _until_left(self, reader: asyncio.StreamReader) -> None:
        """Ends when the client has closed the connection; never where nothing is read."""
        while not reader.at_eof() and reader.exception() is None:
            await asyncio.sleep(0.01)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        self.heads.append(head)
        if self._reads:
            if "100-continue" in head:
                writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            length = next(line.split(":")[1] for line in head.splitlines() if line.lower().startswith("content-length"))
            await reader.readexactly(int(length))
        reply = self._reply(head)
        if isinstance(reply, bytes):
            writer.write(reply)
            await writer.drain()
            return
        async for part in reply:
            writer.write(part)
            await writer.drain()


def store_at(url: str, **changes: object) -> ObjectStore:
    """A store that a job names, at this URL, which the operator trusts to be on loopback."""
    config = {"accessId": "id", "accessSecret": "secret", "bucketName": "images", "endpointUrl": url}
    region = changes.pop("region", None)
    mine = Settings(_env_file=None, **{"private_hosts": "127.0.0.1", **changes})  # type: ignore[arg-type, call-arg]
    return ObjectStore.from_job({**config, "region": region} if region else config, mine)


async def outcome(store: ObjectStore, data: bytes = b"x", count: int = 1) -> list[str] | str:
    """The URLs of an upload of `count` objects, or the message of its error."""
    with contextlib.suppress(asyncio.CancelledError):
        try:
            return await upload.put(store, [(f"job/{i}.png", data) for i in range(count)], "image/png")
        except DeliveryFailed as failure:
            return failure.message
    return "cancelled"
