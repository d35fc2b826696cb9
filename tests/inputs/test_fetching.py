"""References by URL, against servers on loopback that misbehave; names are a stub's. No socket is opened elsewhere."""

import asyncio
import contextlib
import gzip
import socket
import ssl
import tracemalloc
import zlib

import pytest
from aiohttp.abc import AbstractResolver

from imagegen.contract.requests import parse_job
from imagegen.errors import BadReference, ImageGenError, PayloadTooLarge
from imagegen.inputs import connections, fetching
from tests.inputs.test_addresses import IPV4, IPV6, METADATA, PRIVATE_4, PUBLIC, edges, embedded
from tests.outputs.test_signing import chain
from tests.support import settings
from tests.support.images import from_base64, scene, to_base64, to_bytes

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


@pytest.fixture
def names(monkeypatch):
    """Makes a stub the resolver."""

    def answer(*answers):
        stub = Names(*answers)
        monkeypatch.setattr(connections, "resolver", lambda: stub)
        return stub

    return answer


@pytest.fixture
def opened(monkeypatch):
    """The addresses for which a socket would have been opened; none is."""
    found = []
    check = connections.addresses.check

    def watch(address, trusted=False):
        check(address, trusted)
        found.append(address)
        raise OSError("not from a test")

    monkeypatch.setattr(connections.addresses, "check", watch)
    return found


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
    asked, tasks = [], set()

    async def talk(reader, writer):
        tasks.add(asyncio.current_task())
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

    running = await asyncio.start_server(talk, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{running.sockets[0].getsockname()[1]}", asked
    finally:
        running.close()
        for task in tasks:
            task.cancel()


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


# Addresses


def reserved():
    for network in (*IPV4, *IPV6):
        yield from edges(network)
    for address in (*METADATA, *PRIVATE_4):
        yield address
        if ":" not in address:
            yield from embedded(address)


def test_no_reserved_address_is_connected_to(names, opened):
    """Each as the answer of a name server, and each written in the URL."""
    for address in reserved():
        names([address])
        assert refused("https://example.com/a.png").message == NOWHERE
        literal = f"[{address}]" if ":" in address else address
        assert refused(f"http://{literal}/a.png").message == NOWHERE
    assert opened == []


def test_public_addresses_are_connected_to(names, opened):
    for address in PUBLIC:
        names([address])
        refused("https://example.com/a.png")
        literal = f"[{address}]" if ":" in address else address
        refused(f"http://{literal}:8080/a.png")
        assert opened == [address, address]
        opened.clear()


def test_a_rebinding_name_server_leads_nowhere(names, opened):
    stub = names(["93.184.215.14"], ["127.0.0.1"])
    for _ in range(3):
        assert refused("http://rebind.example/a.png").message == NOWHERE
    assert opened == ["93.184.215.14"]  # what was checked is what is connected to: one question, one answer
    assert len(stub.asked) == 3


def test_of_mixed_answers_the_private_ones_are_not_connected_to(names, opened):
    names(["10.0.0.1", "93.184.215.14", "::1"])
    refused("http://mixed.example/a.png")
    assert set(opened) == {"93.184.215.14"}


@pytest.mark.parametrize(
    "host",
    [
        "2130706433", "0x7f000001", "0x7f.0.0.1", "0177.0.0.1", "017700000001", "127.1", "127.0.1", "127.0.0.1.", "0",
        "localhost", "localhost.", "LOCALHOST", "[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]",
        "[0:0:0:0:0:0:0:1]", "①②⑦.⓪.⓪.①", "127。0。0。1", "169.254.169.254", "[fd00:ec2::254]",
        "[fe80::1%25lo]", "[fe80::1%lo]", "%31%32%37.0.0.1", "127.0.0.1%2eexample.com",
        "127.0.0.1\\@example.com", "example.com\\.127.0.0.1", "[::1",
        "127.0.0.1%00.example.com", "127.0.0.1 .example.com", "127.0.0.1\t", "", ":80", "[]", ".", "..", "[127.0.0.1]",
        "[v1.fe80]", "256.1.1.1.1", "\u2024", "127.0.0.1:80:80", "127.0.0.1:99999", "127.0.0.1:-1", "127.0.0.1:٣",
    ],
)  # fmt: skip
def test_no_way_to_write_an_inner_address_leads_to_it(host, opened):
    """The system's resolver is asked here, which knows loopback and no other name."""
    error = refused(f"http://{host}/a.png")
    assert isinstance(error, BadReference)
    assert error.message in (NOWHERE, "images[0]: is not a URL that can be fetched") or "port 3 is no" in error.message
    assert opened == []


@pytest.mark.parametrize("url", ["http://user@8.8.8.8/", "http://user:secret@8.8.8.8/", "https://8.8.8.8@127.0.0.1/"])
def test_a_url_with_a_user_is_refused_and_not_repeated(url, opened):
    message = refused(url).message
    assert message == "images[0]: a URL with a user's name or password is not fetched"
    assert opened == []


@pytest.mark.parametrize(
    "place",
    ["http://169.254.169.254/latest/", "//10.0.0.1/", "http://[::1]/", "http://localhost/", "http://2130706433/"],
)
def test_redirects_lead_no_further_than_urls(place):
    error, asked = from_server(lambda path: http(status="302 Found", Location=place))
    assert error.message == NOWHERE
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("file:///etc/passwd", "http and https are allowed"),
        ("ftp://127.0.0.1/a.png", "http and https are allowed"),
        ("gopher://127.0.0.1:6379/_INFO", "http and https are allowed"),
        ("data:image/png;base64,AAAA", "http and https are allowed"),
        ("https:///a.png", "is not a URL that can be fetched"),
        ("http://user:secret@127.0.0.1/", "a user's name or password"),
        ("/again", "is redirected too often; 5 redirects are allowed"),
        ("http://[", "its host did not send a whole answer"),
    ],
)
def test_what_a_redirect_may_not_name(place, says):
    error, asked = from_server(lambda path: http(status="307 Temporary Redirect", Location=place))
    assert says in error.message and "secret" not in error.message
    assert len(asked) == (6 if place == "/again" else 1)


def test_a_good_redirect_is_followed():
    data, asked = from_server(
        lambda path: (
            http(PICTURE) if path == "/b.png?c=%7E%2f" else http(status="301 Moved", Location="/b.png?c=%7E%2f")
        )
    )
    assert data == PICTURE and len(asked) == 2  # and the query is sent as it was written


def test_an_error_repeats_nothing_of_the_url():
    for answer in (http(status="404 Not Found"), http(status="500 Oops"), b"nonsense\r\n\r\n", b""):
        error, _ = from_server(lambda path, answer=answer: answer, path="/secret.png?Signature=secret")
        assert isinstance(error, BadReference)
        assert "secret" not in error.message and "127" not in error.message


def test_no_cookie_proxy_or_netrc_of_the_machine_is_used(monkeypatch, tmp_path):
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password secret")
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    data, asked = from_server(
        lambda path: http(PICTURE) if path == "/b" else http(status="302 Found", Location="/b", Set_Cookie="a=b")
    )
    assert data == PICTURE
    assert not any(word in head for head in asked for word in ("Authorization", "Cookie"))


# The operator's settings


def test_fetching_can_be_switched_off(opened):
    message = refused("https://example.com/a.png", fetch_urls=False).message
    assert message == "images[0]: URLs are not fetched here; send base64 or a data: URI"
    assert opened == []


def test_an_allow_list_holds_at_every_hop(names, opened):
    names(["93.184.215.14"])
    assert "the operator has a list" in refused("https://evil.example/", url_hosts="good.example").message
    assert opened == []
    refused("https://cdn.good.example/", url_hosts="*.good.example")
    assert set(opened) == {"93.184.215.14"}


def test_a_redirect_leaves_no_allow_list():
    error, asked = from_server(
        lambda path: http(status="302 Found", Location="http://localhost/"), url_hosts="127.0.0.1"
    )
    assert "the operator has a list" in error.message
    assert len(asked) == 1


def test_loopback_is_reached_only_where_the_operator_names_it():
    assert from_server(lambda path: http(PICTURE))[0] == PICTURE
    error, asked = from_server(lambda path: http(PICTURE), private_hosts="127.0.0.1:1, localhost")
    assert error.message == NOWHERE and asked == []


# Servers that misbehave


async def drip(head, every=0.05):
    yield head
    while True:
        await asyncio.sleep(every)
        yield b"x"


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
        (b"HTTP/1.1 200 ", NOWHERE_2),
        (b"HTTP/1.1 200 OK\r\nX: ", NOWHERE_2),
        (http(), "images[0]: did not arrive within 2 s"),
        (http(Content_Length=1000), "images[0]: did not arrive within 2 s"),
    ],
)
def test_a_server_that_drips_ends_at_the_deadline(head, says):
    error, asked = from_server(lambda path: drip(head), url_timeout=2)
    assert error.message == says
    assert len(asked) == 1


def test_redirects_share_the_deadline():
    async def slow():
        await asyncio.sleep(0.7)
        yield http(status="302 Found", Location="/again")

    error, asked = from_server(lambda path: slow(), url_timeout=2)
    assert error.message == NOWHERE_2
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
        greeting = b"SSH-2.0-OpenSSH_9.2\r\n"
        talking = await asyncio.start_server(lambda _, writer: writer.write(greeting), "127.0.0.1", 0)
        async with talking:
            for scheme in ("http", "https"):
                url = f"{scheme}://127.0.0.1:{talking.sockets[0].getsockname()[1]}/"
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
            await asyncio.sleep(0.2)
            here.discard(path)
            yield http(PICTURE)

        async with server(slow) as (url, asked):
            port = url.rpartition(":")[2]
            spellings = ("victim.example", "VICTIM.example", "victim.example.")
            urls = [f"http://{spellings[i % 3]}:{port}/{i}" for i in range(40)]
            got = await asyncio.gather(*(fetching.fetch(one, "images[0]", settings()) for one in urls))
            assert got == [PICTURE] * 40 and len(asked) == 40

    asyncio.run(run())
    assert most == 16


def test_a_certificate_that_nobody_vouches_for_is_refused(tmp_path):
    for name, text in zip(("chain", "key"), chain(), strict=True):
        (tmp_path / name).write_text(text)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "chain", tmp_path / "key")

    async def run():
        running = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0, ssl=context)
        port = running.sockets[0].getsockname()[1]
        async with running:
            await fetching.fetch(f"https://localhost:{port}/", "images[0]", settings(private_hosts="localhost"))

    with pytest.raises(BadReference, match="no secure connection could be made to its host"):
        asyncio.run(run())


# Through the doors


def edit(service, *images, **fields):
    job = {"prompt": "make it green", "images": list(images), "width": 64, "height": 64, **fields}
    return asyncio.run(service.run(parse_job({**job, "seed": 1, "num_inference_steps": 1})))


@pytest.fixture
def trusting(service, monkeypatch):
    """The service, which may reach loopback."""
    mine = settings(private_hosts="127.0.0.1", max_reference_mb=0.1, url_timeout=20)
    monkeypatch.setattr(service.runner, "_settings", mine)
    return service


def through_the_road(service, answer, count=1):
    async def run():
        async with server(answer) as (url, asked):
            job = {"prompt": "make it green", "images": [f"{url}/{i}" for i in range(count)], "seed": 1}
            job |= {"width": 64, "height": 64, "num_inference_steps": 1}
            try:
                return await service.run(parse_job(job)), asked
            except ImageGenError as error:
                return error, asked

    return asyncio.run(run())


def test_a_fetched_reference_is_the_one_that_was_sent(trusting):
    answer, asked = through_the_road(trusting, lambda path: http(PICTURE, Content_Type="text/html"), count=2)
    sent = edit(trusting, to_base64(PICTURE), to_base64(PICTURE))
    assert from_base64(answer.images[0]).tobytes() == from_base64(sent.images[0]).tobytes()
    assert len(asked) == 2 and answer.timings.references > 0


def test_content_is_known_by_its_bytes_and_not_by_its_header(trusting):
    error, _ = through_the_road(trusting, lambda path: http(b"<html>inside</html>", Content_Type="image/png"))
    assert error.message == "images[0]: is HTML or XML; PNG, JPEG, WebP and AVIF are allowed"


def fetches():
    """The tasks that fetch and decode a reference."""
    return [task for task in asyncio.all_tasks() if "_reference" in repr(task.get_coro())]


def test_one_bad_url_ends_the_others(trusting):
    """The bad one answers once all are under way; soon after its error none is left."""
    asked, most = set(), []

    async def bad():
        while len(asked) < 3:
            await asyncio.sleep(0.01)
        most.append(len(fetches()))
        yield http(status="404 Not Found")

    def answer(path):
        asked.add(path)
        return bad() if path == "/1" else drip(http())

    async def run():
        async with server(answer) as (url, _):
            job = {"prompt": "make it green", "images": [f"{url}/{i}" for i in range(3)], "seed": 1}
            with pytest.raises(ImageGenError) as caught:
                await trusting.run(parse_job(job))
            for _ in range(2):
                await asyncio.sleep(0)
            assert fetches() == []
            return caught.value

    assert asyncio.run(run()).message == "images[1]: its host answered 404, and not 200"
    assert most[0] >= 3


def test_a_jobs_deadline_ends_its_fetches(trusting):
    async def run():
        async with server(lambda path: drip(http())) as (url, _):
            job = {"prompt": "x", "images": [url], "timeout": 1}
            with pytest.raises(ImageGenError) as caught:
                await trusting.run(parse_job(job))
            assert fetches() == []
            return caught.value

    assert asyncio.run(run()).code == "deadline_exceeded"


def test_every_door_fetches(trusting, monkeypatch):
    """RunPod's, HTTP's JSON and form, OpenAI's two forms: the same error, and the same picture."""
    import httpx

    from imagegen.runpod import handler
    from imagegen.server.main import create_app

    monkeypatch.setattr(handler, "service", lambda: trusting)
    app = create_app(trusting.settings)
    app.state.service = trusting
    fields = {"prompt": "make it green", "seed": 1}

    async def answers(url):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            job = await handler.handler({"id": "a", "input": {**fields, "image": url}})
            openai = {**fields, "size": "auto"}
            return [
                job.get("images") or job["error"],
                *(
                    (answer.json().get("images") or answer.json()["error"]["message"])
                    for answer in (
                        await client.post("/edit", json={**fields, "image": url}),
                        await client.post(
                            "/edit",
                            files={name: (None, str(value)) for name, value in {**fields, "image": url}.items()},
                        ),
                    )
                ),
                *(
                    [item["b64_json"] for item in answer.json().get("data", [])] or answer.json()["error"]["message"]
                    for answer in (
                        await client.post("/v1/images/edits", json={**openai, "images": [{"image_url": url}]}),
                        await client.post("/v1/images/edits", json={**openai, "image": url}),
                    )
                ),
            ]

    async def run():
        async with server(lambda path: http(PICTURE)) as (url, _):
            return await answers(url), await answers(url.replace("127.0.0.1", "localhost") + "/")

    good, bad = asyncio.run(run())
    assert [from_base64(pictures[0]).size for pictures in good] == [(128, 128)] * 5
    assert len({pictures[0] for pictures in good}) == 1
    assert {text.removeprefix("bad_reference: ") for text in bad} == {NOWHERE}
