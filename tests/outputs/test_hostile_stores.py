"""Object stores that drip, hang or never end: they cost their own job its delivery, and no memory or connection."""

import asyncio
import os
import ssl
import tracemalloc
from pathlib import Path

import pytest

from imagegen.outputs import upload
from imagegen.outputs.object_store import ObjectStore
from tests.outputs.test_signing import chain
from tests.support import settings
from tests.support.faulty_store import STORED, FaultyStore, outcome, store_at
from tests.support.loopback import listening

UNREACHABLE = "the object store could not be reached, or did not answer as one"


async def forever(head, part, every=0.0):
    yield head
    while True:
        await asyncio.sleep(every)
        yield part


@pytest.fixture
def soon(monkeypatch):
    """A deadline of a second."""
    monkeypatch.setattr(upload, "_SECONDS", 1)


def files():
    return len(list(Path("/proc/self/fd").iterdir()))


def attacked(reply, reads=True, seconds=60, count=8):
    """What uploads to a hostile store come to; afterwards none of its connections is open, and no file is left."""

    async def run():
        await asyncio.to_thread(upload.presign, store_at("http://127.0.0.1:9"), "a")  # whatever opens a file once
        async with FaultyStore(reply, reads) as server:
            before = files()
            begun = asyncio.get_running_loop().time()
            message = await outcome(store_at(server.url), os.urandom(2_000_000), count)
            assert asyncio.get_running_loop().time() - begun < seconds
            while (server.connections and reads) or files() - server.connections > before:
                await asyncio.sleep(0.02)
            return message

    return asyncio.run(run())


DRIPS = {
    "the status line": lambda: forever(b"HTTP/1.1 200", b" ", 0.05),
    "headers": lambda: forever(b"HTTP/1.1 200 OK\r\nX: ", b"x", 0.05),
    "an error": lambda: forever(b"HTTP/1.1 400 Bad Request\r\n\r\n", b"x", 0.05),
    "empty chunks": lambda: forever(b"HTTP/1.1 400 Bad\r\nTransfer-Encoding: chunked\r\n\r\n", b"1;", 0.05),
    "nothing": lambda: forever(b"", b"", 0.05),
    "100 Continue": lambda: forever(b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.05),
}


@pytest.mark.parametrize("what", DRIPS)
def test_a_store_that_drips_ends_at_the_deadline(what, monkeypatch):
    monkeypatch.setattr(upload, "_SECONDS", -31)  # and 32 for the bytes
    assert attacked(lambda head: DRIPS[what]()) == "the object store did not take the images within 1 s"


def test_a_store_that_never_reads_ends_at_the_deadline_and_holds_no_socket(monkeypatch):
    monkeypatch.setattr(upload, "_SECONDS", -31)
    assert attacked(lambda head: forever(b"", b"", 0.05), reads=False).endswith("did not take the images within 1 s")


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"HTTP/1.1 400 Bad\r\nContent-Length: 99999999999\r\n\r\n",
        b"HTTP/1.1 400 Bad\r\nContent-Encoding: gzip\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b'HTTP/1.1 200 OK\r\nETag: "0"\r\n\r\n',
    ],
)
def test_an_answer_without_end_ends_at_the_cap(head):
    def most():
        tracemalloc.start()
        try:
            got = attacked(lambda _: forever(head, b"\0" * 65536), count=2)
            return got, tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    got, memory = most()
    assert isinstance(got, list) if b"ETag" in head else got.startswith("the object store did not")
    assert memory < 14e6  # two objects of two megabytes, their signatures, and what the server holds of them


@pytest.mark.parametrize("part", [b"X: a\r\n", b"x" * 65536])
def test_headers_without_end_are_no_answer(part):
    assert attacked(lambda _: forever(b"HTTP/1.1 200 OK\r\n", part)) == UNREACHABLE


def test_interim_answers_without_end_are_no_answer():
    """Read until the deadline, they would take the event loop from everybody's jobs, and have its error."""
    assert attacked(lambda _: forever(b"", 1000 * b"HTTP/1.1 100 Continue\r\n\r\n"), seconds=5) == UNREACHABLE


def test_a_store_that_hangs_in_tls_is_given_up(monkeypatch):
    monkeypatch.setattr(upload, "_CONNECT_SECONDS", 0.3)

    async def run():
        async def hang(reader, writer):
            await asyncio.sleep(600)

        async with listening(hang) as port:
            before = files()
            url = f"https://127.0.0.1:{port}"
            message = await outcome(store_at(url), count=4)
            while files() - before > 8:  # the server's own side
                await asyncio.sleep(0.01)
            return message

    assert asyncio.run(run()) == UNREACHABLE


def test_a_certificate_that_nobody_vouches_for_is_refused(tmp_path):
    for name, text in zip(("chain", "key"), chain(), strict=True):
        (tmp_path / name).write_text(text)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "chain", tmp_path / "key")

    async def run():
        async with listening(tls=context) as port:
            return await outcome(store_at(f"https://127.0.0.1:{port}"))

    assert asyncio.run(run()) == "the object store could not be reached: no secure connection could be made to it"


def test_a_cancelled_job_leaves_no_connection():
    async def run():
        async with FaultyStore(lambda head: forever(b"", b"", 0.05)) as server:
            task = asyncio.ensure_future(upload.put(store_at(server.url), [("a", b"x")], "image/png"))
            while not server.connections:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            while server.connections:
                await asyncio.sleep(0.01)

    asyncio.run(run())  # ends


def test_the_workers_own_store_does_not_wait_for_those_of_jobs():
    """A hundred uploads of jobs hang; an upload to the own store passes at once."""

    async def run():
        async with FaultyStore(lambda head: forever(b"", b"", 0.05)) as hostile, FaultyStore(lambda _: STORED) as good:
            hanging = [asyncio.ensure_future(outcome(store_at(hostile.url), count=8)) for _ in range(13)]
            while hostile.connections < 104:
                await asyncio.sleep(0.01)
            own = ObjectStore.from_settings(
                settings(bucket_endpoint_url=good.url, bucket_access_key_id="id", bucket_secret_access_key="secret",
                         bucket_name="images")
            )  # fmt: skip
            async with asyncio.timeout(15):
                urls = await outcome(own, count=8)
            assert not any(task.done() for task in hanging)
            for task in hanging:
                task.cancel()
            return urls

    assert len(asyncio.run(run())) == 8
