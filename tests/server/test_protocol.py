"""Connections: none can be held without sending or reading, and HTTP is read strictly."""

import asyncio
import json
import socket
import time
from http.client import HTTPResponse

import httpx
import pytest
from starlette.responses import PlainTextResponse

from imagegen.server import connection_limits, protocol
from imagegen.server.connection_limits import Limits
from tests.server.conftest import running, serving
from tests.support import settings, until

HEAD = b" HTTP/1.1\r\nHost: localhost\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
UPGRADE = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZQ==\r\n"


@pytest.fixture(scope="module")
def url():
    with serving(api_key="a-key-of-sixteen-and-more", preload_models=False) as (base, _):
        yield base


@pytest.fixture
def impatient(monkeypatch):
    """Deadlines that a test can wait for."""
    monkeypatch.setattr(protocol, "_TICK", 0.1)
    for name in ("_HEAD_SECONDS", "_BODY_WINDOW", "_ANSWER_WINDOW", "_LINGER_SECONDS"):
        monkeypatch.setattr(protocol, name, 0.5)


def connect(base, *data, receive_buffer=None):
    host, port = base.removeprefix("http://").split(":")
    client = socket.socket()
    if receive_buffer:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    client.settimeout(300)
    client.connect((host, int(port)))
    for part in data:
        client.sendall(part)
    return client


def answer(client):
    """All that comes until the server closes."""
    received = b""
    try:
        while part := client.recv(65536):
            received += part
    except ConnectionResetError:
        pass
    return received


def one_answer(client):
    """The next answer: its status and body."""
    response = HTTPResponse(client)
    response.begin()
    return response.status, response.read()


@pytest.mark.parametrize(
    "data",
    [
        b"POST /generate" + HEAD + UPGRADE + b"Sec-WebSocket-Version: 13\r\nContent-Length: 5\r\n\r\n",
        b"GET /health" + HEAD + UPGRADE + b"\r\n",
        b"CONNECT localhost:80" + HEAD + b"\r\n",
        b"POST /generate" + HEAD + b"Content-Length: 5\r\n" + CHUNKED + b"0\r\n\r\n",
        b"POST /generate" + HEAD + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nabcde",
        b"GET /health HTTP/1.1\nHost: localhost\n\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\nX: y\r\n\r\n",
        b"GET /health" + HEAD + b"X: a\r\n b\r\n\r\n",
        b"GET /health" + HEAD + b"X : a\r\n\r\n",
        b"POST /health" + HEAD + CHUNKED + b"zz\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET /health" + HEAD + b"X: " + b"a" * 70_000 + b"\r\n\r\n",
        b"GET /health" + HEAD + b"a:b\r\n" * 20_000 + b"\r\n",
        b"GET /" + b"a" * 70_000 + HEAD + b"\r\n",
        b"GET /" + b"a" * 17_000 + HEAD + b"\r\n",
        b"GET /health" + HEAD + b"X: " + b"a" * 17_000 + b"\r\n\r\n",
        b"GET /health" + HEAD + b"a:\r\n" * 4000 + b"\r\n",
        b"GET /health" + HEAD + b"Upgrade: h2c\r\nConnection: Upgrade\r\nX: " + b"a" * 17_000 + b"\r\n\r\n",
        b"GET /health\r\n\r\n",
        b"GET /health HTTP/0.9\r\n\r\n",
        b"GET /health HTTP/2.0\r\nHost: localhost\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"POST /generate" + HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"POST /generate" + HEAD + b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /generate" + HEAD + b"Transfer-Encoding: identity\r\nContent-Length: 2\r\n\r\n{}",
        b"POST /generate" + HEAD + CHUNKED + b"2;a\nb\r\n{}\r\n0\r\n\r\n",
        b"POST /generate" + HEAD + CHUNKED + b"10000000000000002\r\n{}\r\n0\r\n\r\n",
        b"POST /generate" + HEAD + b"Content-Length: +2\r\n\r\n{}",
        b"GET http://[/health" + HEAD + b"\r\n",
    ],
    ids=lambda data: repr(data[:12] + data[-40:]),
)
def test_what_is_not_plain_http_is_refused_and_closed(url, data, caplog):
    with connect(url, data) as client:
        received = answer(client)
    status, body = received.split(b" ", 2)[1], received.partition(b"\r\n\r\n")[2]
    assert status in (b"400", b"431")
    assert json.loads(body)["error"]["code"] == "invalid_input"
    assert "callback error" not in body.decode()
    assert b"nosniff" in received
    assert "Traceback" not in caplog.text


def test_a_refused_body_is_not_waited_for(url, impatient):
    with connect(url, b"POST /generate" + HEAD + b"Content-Length: 100000000\r\n\r\n") as client:
        assert b"connection: close" in client.recv(1000)
        begun = time.monotonic()
        with pytest.raises(OSError):  # noqa: PT011, PT012 - broken pipe or reset, after some
            while time.monotonic() - begun < 20:
                client.sendall(b"a")
                time.sleep(0.1)


def test_a_bad_chunk_after_the_answer_is_no_error(url, caplog):
    with connect(url, b"POST /generate" + HEAD + CHUNKED) as client:
        assert client.recv(1000).startswith(b"HTTP/1.1 401")
        client.sendall(b"zz\r\n")
        answer(client)
    assert "Exception" not in caplog.text and "Traceback" not in caplog.text


def test_a_flood_of_a_refused_body_is_cut_off(url):
    with connect(url, b"POST /generate" + HEAD + CHUNKED) as client, pytest.raises(OSError):  # noqa: PT011, PT012
        for _ in range(2000):
            client.sendall(b"1\r\na\r\n" * 10_000)


def test_tiny_chunks_of_an_accepted_body_are_refused():
    with serving(preload_models=False) as (base, _):
        head = b"POST /generate" + HEAD + b"Content-Type: application/json\r\n" + CHUNKED
        with connect(base, head) as client:
            try:
                for _ in range(50):
                    client.sendall(b"1\r\n \r\n" * 10_000)
            except OSError:
                pass
            refused = answer(client)
            assert refused.startswith(b"HTTP/1.1 431 ")
            assert b"the body comes in chunks that are too small" in refused


def test_trailers_never_become_headers(url):
    trailer = b"0\r\nX-API-Key: a-key-of-sixteen-and-more\r\n\r\n"
    with connect(url, b"POST /generate" + HEAD + CHUNKED + trailer) as client:
        assert answer(client).split(b" ")[1] in (b"400", b"401")


def test_half_a_header_and_silence_end(url, impatient):
    for data in (b"", b"GET /health HTTP/1.1\r\nHost: loc"):
        with connect(url, data) as client:
            begun = time.monotonic()
            assert answer(client) == b""
            assert time.monotonic() - begun < 20


def test_a_body_that_drips_is_refused(impatient):
    with serving(preload_models=False) as (base, _):
        head = b"POST /generate" + HEAD + b"Content-Type: application/json\r\nContent-Length: 50\r\n\r\n"
        with connect(base, head) as client:
            received = answer(client)
    assert received.startswith(b"HTTP/1.1 408 ")
    assert b"bytes a second" in received


def test_an_answer_that_is_not_read_ends(impatient, monkeypatch):
    ended = []

    async def app(scope, receive, send):
        if scope["type"] == "http":
            scope["state"]["authorized"] = True
            try:
                await PlainTextResponse(b"a" * 50_000_000)(scope, receive, send)
            finally:
                ended.append(True)

    with running(app, lifespan="off") as base:
        with connect(base, b"GET /" + HEAD + b"\r\n", receive_buffer=4096) as client:
            until(lambda: ended)
            assert len(answer(client)) < 50_000_000
        # One that reads, though with pauses, has it all; it takes longer than two of these windows.
        monkeypatch.setattr(protocol, "_ANSWER_WINDOW", 2.0)
        begun = time.monotonic()
        with connect(base, b"GET /" + HEAD + b"Connection: close\r\n\r\n") as client:
            received = 0
            while part := client.recv(50_000):
                received += len(part)
                time.sleep(0.006)
            assert received > 50_000_000
        assert time.monotonic() - begun > 5


def test_a_server_that_ends_waits_for_no_body(monkeypatch):
    monkeypatch.setattr(protocol, "_BODY_WINDOW", 600)
    with serving(preload_models=False) as (base, _):
        head = b"POST /generate" + HEAD + b"Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
        client = connect(base, head + b"{" * 500)
        until(lambda: httpx.get(f"{base}/health").is_success)
    with client:
        received = answer(client)
    assert received.startswith(b"HTTP/1.1 503 ") and b"the worker is ending" in received


def test_a_server_that_ends_waits_for_nobody_who_has_no_job(monkeypatch):
    monkeypatch.setattr(protocol, "_ANSWER_WINDOW", 600)
    with running(PlainTextResponse(b"a" * 50_000_000), lifespan="off") as base:
        client = connect(base, b"GET /" + HEAD + b"\r\n", receive_buffer=4096)
        assert client.recv(1)
    with client:
        assert len(answer(client)) < 50_000_000


def test_pipelined_requests_are_not_answered(url):
    with connect(url, (b"GET /health" + HEAD + b"\r\n") * 400) as client:
        assert answer(client).count(b"HTTP/1.1 ") == 1


def test_requests_one_after_the_other_share_a_connection(url):
    with connect(url) as client:
        for _ in range(3):
            client.sendall(b"GET /health" + HEAD + b"\r\n")
            assert one_answer(client)[0] == 200


def test_a_request_for_http_2_is_served_as_http_1():
    async def app(scope, receive, send):
        if scope["type"] == "http":
            body = (await receive())["body"]
            await PlainTextResponse(body + str(dict(scope["headers"])).encode())(scope, receive, send)

    # As Java's HttpClient sends its first request.
    head = b"POST /" + HEAD + b"Connection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAEAAEAA\r\nUpgrade: h2c\r\n"
    with running(app, lifespan="off") as base, connect(base, head + b"Content-Length: 5\r\n\r\nhello") as client:
        status, received = one_answer(client)
    assert status == 200
    assert b"hello" in received and b"h2c" not in received


def test_other_connections_of_the_address_make_room(monkeypatch):
    monkeypatch.setattr(Limits, "of", lambda self, address: 200)
    with serving(api_key="a-key-of-sixteen-and-more", preload_models=False) as (base, _):
        held = [connect(base, b"GET /health HTTP/1.1\r\nHost: loc") for _ in range(300)]
        try:
            for _ in range(3):
                assert httpx.get(f"{base}/ping").status_code in (200, 204)
            closed = until(lambda: [client for client in held if _is_closed(client)] or None)
            assert held[0] in closed
        finally:
            for client in held:
                client.close()


def test_where_all_are_at_work_health_is_still_answered(monkeypatch):
    monkeypatch.setattr(Limits, "of", lambda self, address: 2)

    async def app(scope, receive, send):
        if scope["type"] == "http":
            scope["state"]["authorized"] = True
            if scope["path"] == "/work":
                begun.append(scope)
                await asyncio.sleep(3600)
            await PlainTextResponse("ok")(scope, receive, send)

    begun = []
    with running(app, lifespan="off", timeout_graceful_shutdown=0) as base:
        working = [connect(base, b"GET /work" + HEAD + b"\r\n") for _ in range(2)]
        try:
            until(lambda: len(begun) == 2)
            assert httpx.get(f"{base}/health").status_code == 200
            refused = httpx.get(f"{base}/other")
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "not_ready")
            assert not any(_is_closed(client) for client in working)
        finally:
            for client in working:
                client.close()


def test_the_cap_leaves_files_for_the_rest(monkeypatch):
    monkeypatch.setattr(connection_limits.resource, "getrlimit", lambda _: (1024, 4096))
    assert Limits(settings()).total == 512
    assert Limits(settings(max_queue=10_000)).total == 512
    limits = Limits(settings(trusted_proxies="10.0.0.0/8"))
    assert (limits.of("10.1.2.3"), limits.of("192.0.2.1")) == (512, 256)


def _is_closed(client):
    client.setblocking(False)
    try:
        return client.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
