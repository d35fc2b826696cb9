"""Hosts of references that drip, never end, send bombs or no HTTP: each is a typed error in time."""

import asyncio
import gzip
import socket
import ssl
import tracemalloc
import zlib

import pytest

from imagegen.errors import BadReference, PayloadTooLarge
from imagegen.inputs import connections, fetching
from tests.outputs.test_signing import chain
from tests.support import settings
from tests.support.image_hosts import (
    NOWHERE,
    NOWHERE_2,
    PICTURE,
    Names,
    drip,
    from_server,
    http,
    refused,
    server,
)
from tests.support.loopback import listening


async def endless():
    yield http(Content_Type="image/png")
    while True:
        yield b"\0" * 65536


def bomb(megabytes, coding):
    if coding == "deflate":
        return zlib.compress(b"\0" * (megabytes << 20), 9)
    return gzip.compress(b"\0" * (megabytes << 20), 9)


@pytest.mark.parametrize(
    ("head", "says"),
    [
        (b"HTTP/1.1 200 ", NOWHERE),
        (b"HTTP/1.1 200 OK\r\nX: ", NOWHERE),
        (http(), "images[0]: did not arrive within 20 s"),
        (http(Content_Length=1000), "images[0]: did not arrive within 20 s"),
    ],
)
def test_a_server_that_drips_ends_at_the_deadline(head, says):
    for seconds in (2, 20, 200):  # where a busy machine comes to no answer within the first
        error, asked = from_server(lambda path: drip(head), url_timeout=seconds)
        found = error.message, len(asked)
        wanted = says.replace("20 s", f"{seconds} s"), 1
        if found == wanted:
            break
    assert found == wanted


@pytest.mark.parametrize("count", [16, 17])
def test_few_interim_answers_may_come_before_the_picture(count):
    async def patient():
        yield count * b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + http(Content_Type="image/png") + PICTURE

    found, _ = from_server(lambda path: patient())
    assert found == PICTURE if count == 16 else found.message == NOWHERE


def test_redirects_share_the_deadline():
    async def slow():
        await asyncio.sleep(0.35 * seconds)
        yield http(status="302 Found", Location="/again")

    for seconds in (2, 20, 200):  # a busy machine may not come to the first request within the shorter ones
        error, asked = from_server(lambda path: slow(), url_timeout=seconds)
        if asked:
            break
    assert error.message == NOWHERE.replace("20 s", f"{seconds} s")
    assert 1 <= len(asked) <= 3


def test_a_name_server_that_is_silent_ends_at_the_deadline(monkeypatch):
    class Silent(Names):
        async def resolve(self, host, port=0, family=socket.AF_INET):
            await asyncio.sleep(60)

    monkeypatch.setattr(connections, "resolver", lambda: Silent([]))
    assert refused("http://silent.example/", url_timeout=0.2).message == NOWHERE.replace("20 s", "0.2 s")


def test_an_endless_answer_ends_at_the_cap():
    error, _ = from_server(lambda path: endless())
    assert isinstance(error, PayloadTooLarge)
    assert error.message == "images[0]: is over 0.1 MB, which are allowed"


def test_a_length_over_the_cap_ends_before_the_body():
    error, _ = from_server(lambda path: drip(http(Content_Length=10**12)))
    assert isinstance(error, PayloadTooLarge)


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_a_bomb_ends_at_the_cap_of_what_comes_out_of_it(coding):
    packed = bomb(50, coding)
    assert len(packed) < 100_000
    tracemalloc.start()
    try:
        error, _ = from_server(lambda path: http(packed, Content_Encoding=coding, Content_Length=len(packed)))
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert isinstance(error, PayloadTooLarge)
    assert most < 4e6


@pytest.mark.parametrize(
    "reply",
    [
        http(PICTURE[:50], Content_Length=len(PICTURE)),
        http(b"ffff\r\n" + PICTURE[:50], Transfer_Encoding="chunked"),
        http(b"not gzip", Content_Encoding="gzip", Content_Length=8),
    ],
)
def test_an_answer_that_is_not_whole_is_none(reply):
    error, _ = from_server(lambda path: reply)
    assert error.message == "images[0]: its host did not send a whole answer"


@pytest.mark.parametrize(
    "reply",
    [
        http(PICTURE, Content_Length=50),
        http(b"not hex\r\n", Transfer_Encoding="chunked"),
        http(PICTURE, Content_Length="-1"),
        http(PICTURE, Content_Length="1, 2"),
        http(X="a" * 100_000),
        b"HTTP/9 x\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"\x16\x03\x01 not http at all\r\n\r\n",
        b"",
    ],
)
def test_what_is_no_answer_of_http_is_the_same_error_as_none(reply):
    error, _ = from_server(lambda path: reply)
    assert error.message == NOWHERE


def test_open_closed_and_silent_ports_are_one_error():
    """A worker that told them apart would look at other people's ports for anybody."""
    with socket.create_server(("127.0.0.1", 0)) as silent, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and not listening
        for scheme in ("http", "https"):
            for port in (silent.getsockname()[1], closed.getsockname()[1]):
                message = refused(f"{scheme}://127.0.0.1:{port}/", private_hosts="127.0.0.1", url_timeout=0.5).message
                assert message == NOWHERE.replace("20 s", "0.5 s")

    async def run():
        async def greet(reader, writer):
            writer.write(b"SSH-2.0-OpenSSH_9.2\r\n")

        async with listening(greet) as port:
            for scheme in ("http", "https"):
                url = f"{scheme}://127.0.0.1:{port}/"
                with pytest.raises(BadReference) as caught:
                    await fetching.fetch(url, "images[0]", settings(private_hosts="127.0.0.1", url_timeout=2))
                assert caught.value.message == NOWHERE_2

    asyncio.run(run())


@pytest.mark.parametrize("port", [1, 21, 22, 25, 53, 81, 445, 993, 1023, 2049, 5060, 6000, 6667, 10080])
def test_a_port_of_no_web_server_is_refused_before_anything_is_asked(port, names, opened):
    stub = names(["93.184.215.14"])
    for host in ("example.com", "127.0.0.1"):
        message = refused(f"http://{host}:{port}/a.png").message
        assert message == f"images[0]: port {port} is no web server's; 80, 443 and most from 1024 on are allowed"
    assert stub.asked == [] and opened == []
    refused(f"http://example.com:{port}/a.png", private_hosts=f"example.com:{port}")
    assert opened == ["93.184.215.14"]


def test_the_downloads_at_one_host_are_bounded(names, monkeypatch):
    """Twenty jobs name one victim: no more than sixteen connections are open at once, and none is lost."""
    monkeypatch.setattr(connections.addresses, "is_public", lambda address: True)
    names(["127.0.0.1"])
    here, most = set(), 0

    async def run():
        async def slow(path):
            nonlocal most
            here.add(path)
            most = max(most, len(here))
            while most < 16:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.05)  # for a seventeenth to show
            here.discard(path)
            yield http(PICTURE)

        async with server(slow) as (url, asked):
            port = url.rpartition(":")[2]
            spellings = ("victim.example", "VICTIM.example", "victim.example.")
            urls = [f"http://{spellings[i % 3]}:{port}/{i}" for i in range(40)]
            patient = settings(url_timeout=300)
            got = await asyncio.gather(*(fetching.fetch(one, "images[0]", patient) for one in urls))
            assert got == [PICTURE] * 40 and len(asked) == 40

    asyncio.run(run())
    assert most == 16


def test_a_certificate_that_nobody_vouches_for_is_refused(tmp_path):
    for name, text in zip(("chain", "key"), chain(), strict=True):
        (tmp_path / name).write_text(text)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "chain", tmp_path / "key")

    async def run():
        async with listening(tls=context) as port:
            await fetching.fetch(f"https://localhost:{port}/", "images[0]", settings(private_hosts="localhost"))

    with pytest.raises(BadReference, match="no secure connection could be made to its host"):
        asyncio.run(run())
