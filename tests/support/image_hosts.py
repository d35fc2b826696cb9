"""Hosts of reference images, on loopback and with names of a stub, and what is fetched from them.

No socket is opened elsewhere.
"""

import asyncio
import contextlib
import socket

import pytest
from aiohttp.abc import AbstractResolver

from imagegen.errors import ImageGenError
from imagegen.inputs import fetching
from tests.support import settings
from tests.support.images import scene, to_bytes
from tests.support.loopback import listening

PICTURE = to_bytes(scene("circle", "red", "blue"))
NOWHERE = "images[0]: its host has no public address, or no web server that answers within 20 s"
NOWHERE_2 = NOWHERE.replace("20 s", "2 s")


class Names(AbstractResolver):
    """Answers each question with the next of its answers, the last one for ever."""

    def __init__(self, *answers):
        self.answers, self.asked = list(answers), []

    async def resolve(self, host, port=0, family=socket.AF_INET):
        self.asked.append(host)
        found = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if not found:
            raise OSError("no such name")
        return [
            {
                "hostname": host,
                "host": address,
                "port": port,
                "family": socket.AF_INET6 if ":" in address else socket.AF_INET,
                "proto": 0,
                "flags": socket.AI_NUMERICHOST,
            }
            for address in found
        ]

    async def close(self):
        pass


def fetch(url, **changes):
    return asyncio.run(fetching.fetch(url, "images[0]", settings(**changes)))


def refused(url, **changes):
    with pytest.raises(ImageGenError) as caught:
        fetch(url, **changes)
    assert caught.value.field == "images[0]"
    return caught.value


@contextlib.asynccontextmanager
async def server(answer):
    """A server on loopback that sends `answer(path)`: bytes, or an async iterator of them; its URL, and who asked."""
    asked = []

    async def talk(reader, writer):
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            asked.append(head)
            reply = answer(head.split()[1])
            if isinstance(reply, bytes):
                writer.write(reply)
            else:
                async for part in reply:
                    writer.write(part)
                    await writer.drain()
        writer.close()

    async with listening(talk) as port:
        yield f"http://127.0.0.1:{port}", asked


def http(body=b"", status="200 OK", **headers):
    lines = [f"HTTP/1.1 {status}", *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


def from_server(answer, path="/a.png", **changes):
    """What is fetched of a server on loopback, which is trusted here, and what it was asked."""

    async def run():
        async with server(answer) as (url, asked):
            mine = settings(**{"private_hosts": "127.0.0.1", "max_reference_mb": 0.1, "url_timeout": 20, **changes})
            try:
                return await fetching.fetch(url + path, "images[0]", mine), asked
            except ImageGenError as error:
                return error, asked

    return asyncio.run(run())


async def drip(head, every=0.05):
    yield head
    while True:
        await asyncio.sleep(every)
        yield b"x"
