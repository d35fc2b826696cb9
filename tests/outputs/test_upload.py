"""What a store may answer to an upload, and what a caller is told: against a store on loopback that misbehaves."""

import asyncio
import datetime
import logging
import os
import re
import ssl
import tracemalloc
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import boto3
import botocore.auth
import pytest
from botocore.config import Config

from imagegen.outputs import upload
from imagegen.outputs.object_store import ObjectStore
from tests.outputs.test_signing import chain
from tests.support import settings
from tests.support.faulty_store import STORED, FaultyStore, answer, error, outcome, store_at

UNREACHABLE = "the object store could not be reached, or did not answer as one"
MALFORMED = "AuthorizationHeaderMalformed"
CREDENTIALS = "refused the credentials, or they may not write to this bucket"
ELSEWHERE = "has the bucket in another region, which its URL must name"
CLOCK = "says that this worker's clock is wrong"


def put(reply, **options):
    """What an upload to a store with these answers comes to, and the heads of the requests."""

    async def run():
        replies = iter(reply if isinstance(reply, list) else [])
        last = []

        def say(head):
            if callable(reply):
                return reply(head)
            last[:] = [next(replies, *last)] if last else [next(replies)]
            return last[0]

        count, data = options.pop("count", 1), options.pop("data", b"x")
        async with FaultyStore(say if isinstance(reply, list) or callable(reply) else lambda head: reply) as server:
            return await outcome(store_at(server.url, **options), data, count), server.heads

    return asyncio.run(run())


def region_of(text):
    """The region that a head or a URL is signed for."""
    return re.search(r"Credential=id(?:/|%2F)\d{8}(?:/|%2F)([a-z0-9-]+)(?:/|%2F)s3", text)[1]


@pytest.mark.parametrize(
    ("reply", "says", "requests"),
    [
        (error("404 Not Found", "NoSuchBucket"), "has no such bucket (NoSuchBucket)", 1),
        (answer("404 Not Found"), "has no such bucket (404)", 1),
        (error("403 Forbidden", "AccessDenied"), f"{CREDENTIALS} (AccessDenied)", 1),
        (error("403 Forbidden", "SignatureDoesNotMatch"), f"{CREDENTIALS} (SignatureDoesNotMatch)", 1),
        (error("400 Bad Request", "ExpiredToken"), f"{CREDENTIALS} (ExpiredToken)", 1),
        (answer("401 Unauthorized"), f"{CREDENTIALS} (401)", 1),
        (error("403 Forbidden", "RequestTimeTooSkewed"), f"{CLOCK} (RequestTimeTooSkewed)", 1),
        (error("400 Bad Request", "EntityTooLarge"), "did not take the image (EntityTooLarge)", 1),
        (error("503 Slow Down", "SlowDown"), "did not take the image (SlowDown)", 2),
        (answer("503 Service Unavailable"), "did not take the image (503)", 2),
        (answer("500 Oops", b"<html>canary</html>"), "did not take the image (500)", 2),
        (answer("429 Too Many Requests"), "did not take the image (429)", 2),
        (answer("507 Full", b"<Error><Code>canary /etc</Code></Error>"), "did not take the image (507)", 2),
        (answer("200 OK", b"<html>a portal</html>"), "did not answer as one (200)", 1),
        (answer("204 No Content"), "did not answer as one (204)", 1),
        (answer("302 Found", Location="http://169.254.169.254/canary"), f"{ELSEWHERE} (302)", 1),
        (error("301 Moved", "Permanent", "<Endpoint>canary.example</Endpoint>"), f"{ELSEWHERE} (Permanent)", 1),
        (error("307 Redirect", "Temporary", x_amz_bucket_region="eu-west-2"), f"{ELSEWHERE} (Temporary)", 1),
        (error("400 Bad Request", MALFORMED, "<Region>us-east-1</Region>"), f"{ELSEWHERE} ({MALFORMED})", 1),
        (error("400 Bad Request", MALFORMED, "<Region>../canary</Region>"), f"{ELSEWHERE} ({MALFORMED})", 1),
        (error("400 Bad Request", MALFORMED), f"{ELSEWHERE} ({MALFORMED})", 1),
    ],
)  # fmt: skip
def test_each_answer_has_its_error(reply, says, requests, monkeypatch, caplog):
    monkeypatch.setattr(upload, "_PAUSE_SECONDS", 0.01)
    message, heads = put(reply)
    assert message == f"the object store {says}"
    assert len(heads) == requests
    assert "canary" not in caplog.text and "127.0.0.1" not in caplog.text and "Signature=" not in caplog.text


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"nonsense\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x16\x03\x01\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: a\r\n" * 1000 + b"\r\n",
    ],
)
def test_what_is_no_answer_of_http_is_one_error(reply):
    assert put(reply)[0] == UNREACHABLE


@pytest.mark.parametrize(
    "first", [b"", error("503 Slow Down", "SlowDown"), answer("500 Oops"), answer("502 Bad Gateway")]
)
def test_a_store_that_fails_once_is_asked_again(first):
    urls, heads = put([first, STORED])
    assert len(urls) == 1 and len(heads) == 2


def test_a_store_in_another_region_gives_a_url_that_is_signed_for_it():
    urls, heads = put([error("400 Bad Request", MALFORMED, "<Region>eu-west-2</Region>"), STORED])
    assert [region_of(head) for head in heads] == ["us-east-1", "eu-west-2"]
    assert region_of(urls[0]) == "eu-west-2"


def test_all_images_of_a_job_are_in_the_region_that_took_them():
    def reply(head):
        right = region_of(head) == "eu-west-2"
        return STORED if right else error("400 Bad Request", MALFORMED, "<Region>eu-west-2</Region>")

    urls, heads = put(reply, count=8)
    assert [region_of(url) for url in urls] == ["eu-west-2"] * 8
    assert len(heads) <= 16


def test_a_region_that_is_given_is_the_one_that_is_signed_for():
    urls, heads = put(STORED, region="ap-south-1")
    assert region_of(urls[0]) == region_of(heads[0]) == "ap-south-1"
    own = ObjectStore.from_settings(
        settings(bucket_endpoint_url="https://b.s3.eu-west-1.amazonaws.com", bucket_access_key_id="id",
                 bucket_secret_access_key="secret", bucket_region="eu-north-1")
    )  # fmt: skip
    assert own.region == "eu-north-1"


def test_the_workers_own_store_remembers_its_region():
    async def run():
        def reply(head):
            if region_of(head) == "eu-west-2":
                return STORED
            return error("400 Bad Request", MALFORMED, x_amz_bucket_region="eu-west-2")

        async with FaultyStore(reply) as server:
            own = ObjectStore.from_settings(
                settings(bucket_endpoint_url=server.url, bucket_access_key_id="id", bucket_secret_access_key="secret",
                         bucket_name="images")
            )  # fmt: skip
            for _ in range(3):
                await outcome(own)
            return [region_of(head) for head in server.heads]

    assert asyncio.run(run()) == ["us-east-1", "eu-west-2", "eu-west-2", "eu-west-2"]


@pytest.mark.parametrize(
    ("url", "region", "moved"),
    [
        ("https://pics.s3.us-east-1.amazonaws.com", "eu-west-2", "https://s3.eu-west-2.amazonaws.com"),
        ("https://s3.amazonaws.com/pics", "eu-west-2", "https://s3.eu-west-2.amazonaws.com"),
        ("https://pics.s3-us-west-2.amazonaws.com", "eu-west-2", "https://s3.eu-west-2.amazonaws.com"),
        ("https://pics.s3.dualstack.us-west-2.amazonaws.com", "eu-west-2", "https://s3.eu-west-2.amazonaws.com"),
        ("https://pics.s3.cn-north-1.amazonaws.com.cn", "cn-northwest-1", "https://s3.cn-northwest-1.amazonaws.com.cn"),
        ("https://pics.s3.eu-central-1.wasabisys.com", "us-west-1", "https://s3.us-west-1.wasabisys.com"),
        ("https://account.r2.cloudflarestorage.com/pics", "eu-west-2", None),
        ("https://pics.fra1.digitaloceanspaces.com", "eu-west-2", None),
        ("http://127.0.0.1:9000/pics", "eu-west-2", None),
    ],
)
def test_a_redirect_to_another_region_leads_to_its_host_of_the_same_domain(url, region, moved):
    config = {"accessId": "id", "accessSecret": "secret", "endpointUrl": url}
    store = ObjectStore.from_job(config, settings(private_hosts="127.0.0.1"))
    told = upload._Answer(307, "TemporaryRedirect", region)
    assert upload._move(store, store, told) == (moved is not None)
    if moved is not None:
        assert (store.endpoint_url, store.region) == (moved, region)
        assert urlsplit(upload.presign(store, "a.png")).hostname.endswith(urlsplit(moved).hostname)


def test_a_store_that_sends_uploads_around_without_end_is_left():
    def reply(head):
        other = {"eu-west-1": "eu-west-2"}.get(region_of(head), "eu-west-1")
        return error("400 Bad Request", MALFORMED, f"<Region>{other}</Region>")

    message, heads = put(reply)
    assert message.endswith(f"another region, which its URL must name ({MALFORMED})")
    assert len(heads) == 3


# Signatures


def botos(store, **options):
    """boto3's own client for the same store."""
    return boto3.client(
        "s3", endpoint_url=store.endpoint_url, region_name=store.region, aws_access_key_id="id",
        aws_secret_access_key="secret",
        config=Config(signature_version="s3v4", s3={"addressing_style": store.addressing},
                      request_checksum_calculation="when_required"),
        **options,
    )  # fmt: skip


@pytest.mark.parametrize(
    "url",
    [
        "https://s3.eu-central-1.amazonaws.com/pics",
        "https://pics.s3.eu-central-1.amazonaws.com",
        "http://127.0.0.1:9000/pics",
        "http://[::1]/pics",
        "https://store.example/prefix~1/pics",
    ],
)
def test_what_is_signed_is_what_boto3_signs(url, monkeypatch):
    moment = datetime.datetime(2026, 11, 26, 12, tzinfo=datetime.UTC)
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda: moment)
    config = {"accessId": "id", "accessSecret": "secret", "bucketName": "pics", "endpointUrl": url}
    store = ObjectStore.from_job(config, settings(private_hosts="127.0.0.1,[::1]", url_expiry=120))
    client, sent = botos(store), []

    def catch(request, **_):
        sent.append(request)
        raise RuntimeError("not from a test")

    client.meta.events.register("before-send.s3", catch)
    with pytest.raises(RuntimeError):
        client.put_object(Bucket="pics", Key="job/0.png", Body=b"data", ContentType="image/png")
    (request,) = sent
    mine = upload._sign(store, "job/0.png", b"data", "image/png")
    assert store.url_of("job/0.png") == request.url
    for name in ("X-Amz-Content-SHA256", "X-Amz-Date", "Content-Type"):
        theirs = request.headers[name]
        assert mine[name] == (theirs.decode() if isinstance(theirs, bytes) else theirs)
    assert "content-type;host;x-amz-content-sha256;x-amz-date" in mine["Authorization"]
    theirs = client.generate_presigned_url(
        "get_object", Params={"Bucket": "pics", "Key": "job/0.png"}, ExpiresIn=store.expiry
    )
    ours = upload.presign(store, "job/0.png")
    assert urlsplit(ours)[:3] == urlsplit(theirs)[:3]
    assert parse_qs(urlsplit(ours).query) == parse_qs(urlsplit(theirs).query)


# Stores that misbehave


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
            for _ in range(100):
                if (server.connections == 0 or not reads) and files() - server.connections <= before:
                    break
                await asyncio.sleep(0.02)
            assert (server.connections == 0 or not reads) and files() - server.connections <= before
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


def test_a_store_that_hangs_in_tls_is_given_up(monkeypatch):
    monkeypatch.setattr(upload, "_CONNECT_SECONDS", 0.3)

    async def run():
        async def hang(reader, writer):
            await asyncio.sleep(30)

        server = await asyncio.start_server(hang, "127.0.0.1", 0)
        async with server:
            before = files()
            url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            message = await outcome(store_at(url), count=4)
            await asyncio.sleep(0.1)
            return message, files() - before

    message, left = asyncio.run(run())
    assert message == UNREACHABLE
    assert left <= 8  # the server's own side


def test_a_certificate_that_nobody_vouches_for_is_refused(tmp_path):
    for name, text in zip(("chain", "key"), chain(), strict=True):
        (tmp_path / name).write_text(text)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "chain", tmp_path / "key")

    async def run():
        server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0, ssl=context)
        async with server:
            return await outcome(store_at(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"))

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
            await asyncio.sleep(0.1)
            return server.connections

    assert asyncio.run(run()) == 0


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
            for task in hanging:
                task.cancel()
            return urls

    assert len(asyncio.run(run())) == 8


def test_botocores_lines_hold_no_signature(caplog):
    logging.getLogger("botocore").setLevel(logging.NOTSET)
    try:
        with caplog.at_level(logging.DEBUG):
            import importlib

            importlib.reload(upload)
            put(STORED)
    finally:
        logging.getLogger("botocore").setLevel(logging.INFO)
    assert "Signature" not in caplog.text and "secret" not in caplog.text
