"""What a store may answer to an upload, and what a caller is told: against a store on loopback that misbehaves."""

import asyncio
import logging
import re
from urllib.parse import urlsplit

import pytest

from imagegen.outputs import upload
from imagegen.outputs.object_store import ObjectStore
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
