"""Images by URL through every endpoint, against moto's server: a real S3 API on loopback."""

import asyncio
import socket

import httpx
import pytest

from imagegen.contract.requests import parse_job
from imagegen.engine.service import Service
from imagegen.errors import DeliveryFailed
from imagegen.runpod import handler
from tests.support import settings, until
from tests.support.faulty_store import FaultyStore
from tests.support.images import from_base64, to_base64
from tests.support.object_store import object_store
from tests.support.runpod_queue import RunPodQueue

PROMPT = {"prompt": "a red circle on a blue background", "seed": 42}


@pytest.fixture(scope="module")
def bucket():
    """An S3 server with a bucket "pictures"; its URL, and its client."""
    with object_store("pictures") as store:
        yield store


@pytest.fixture(scope="module")
def stored(bucket):
    """A service with the bucket as its own store."""
    service = Service(
        settings(
            bucket_endpoint_url=bucket[0], bucket_access_key_id="id", bucket_secret_access_key="secret",
            bucket_name="pictures",
        )
    )  # fmt: skip
    yield service
    service.close()


def run(service, **fields):
    options = {name: fields.pop(name) for name in ("job_id", "max_answer", "store") if name in fields}
    return asyncio.run(service.run(parse_job({**PROMPT, **fields}), **options))


@pytest.mark.parametrize(("output_format", "extension"), [("png", "png"), ("jpeg", "jpg"), ("webp", "webp")])
def test_images_are_at_their_urls(bucket, stored, output_format, extension):
    answer = run(stored, delivery="url", num_images=2, output_format=output_format, job_id="job-1")
    assert answer.images == []
    plain = run(stored, num_images=2, output_format=output_format)
    for i, (url, picture) in enumerate(zip(answer.urls, plain.images, strict=True)):
        assert f"/pictures/job-1/{i}.{extension}?" in url
        got = httpx.get(url)
        assert got.headers["content-type"] == f"image/{output_format}"
        assert to_base64(got.content) == picture


def test_a_job_done_twice_leaves_one_object(bucket, stored):
    for _ in range(2):
        run(stored, delivery="url", job_id="job-2")
    listed = bucket[1].list_objects_v2(Bucket="pictures", Prefix="job-2/")["Contents"]
    assert [item["Key"] for item in listed] == ["job-2/0.png"]


def test_what_is_too_large_to_send_goes_to_the_store(stored):
    answer = run(stored, max_answer=4000)
    assert answer.images == []
    assert httpx.get(answer.urls[0]).status_code == 200
    (warning,) = answer.warnings
    assert warning.endswith("MB are too large to send; they are at the URLs")
    as_asked = run(stored, max_answer=4000, allow_format_change=True)  # a store is better than another format
    assert (as_asked.output_format, len(as_asked.urls)) == ("png", 1)


def test_a_url_is_good_for_as_long_as_the_setting_says(bucket):
    mine = settings(
        bucket_endpoint_url=f"{bucket[0]}/pictures", bucket_access_key_id="id", bucket_secret_access_key="secret",
        url_expiry=120,
    )  # fmt: skip
    service = Service(mine)
    assert "X-Amz-Expires=120&" in run(service, delivery="url").urls[0]
    service.close()


def test_a_bucket_that_is_not_there_is_named_as_the_cause(bucket):
    mine = settings(
        bucket_endpoint_url=f"{bucket[0]}/canary", bucket_access_key_id="id", bucket_secret_access_key="secret"
    )
    service = Service(mine)
    (warning,) = run(service, delivery="url").warnings
    assert warning == "the object store has no such bucket (NoSuchBucket); the pictures came as base64"
    service.close()


def test_a_store_that_fails_costs_a_warning_or_an_error_and_never_the_images(stored):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        broken = Service(
            settings(
                bucket_endpoint_url=url, bucket_access_key_id="id", bucket_secret_access_key="secret", bucket_name="b"
            )
        )
        answer = run(broken, delivery="url")
        assert answer.images == run(stored).images
        (warning,) = answer.warnings
        assert warning.startswith("the object store could not be reached")
        assert warning.endswith("; the pictures came as base64")
        with pytest.raises(DeliveryFailed, match=r"the object store could not be reached.* MB are too large to send"):
            run(broken, delivery="url", max_answer=4000)
        smaller = run(broken, delivery="url", max_answer=8000, width=256, height=256, allow_format_change=True)
        assert smaller.output_format == "webp"
        assert len(smaller.warnings) == 2
        broken.close()


def test_a_job_brings_a_store_of_its_own(bucket, service, monkeypatch):
    monkeypatch.setattr(handler, "service", lambda: service)
    monkeypatch.setenv("IMAGEGEN_PRIVATE_HOSTS", bucket[0].removeprefix("http://"))
    config = {"accessId": "id", "accessSecret": "secret", "bucketName": "pictures", "endpointUrl": bucket[0]}
    job = {"id": "job-3", "input": {**PROMPT, "delivery": "url"}}
    output = asyncio.run(handler.handler({**job, "s3Config": config}))
    assert httpx.get(output["urls"][0]).status_code == 200
    assert asyncio.run(handler.handler(job))["field"] == "delivery"  # this worker has none
    wrong = asyncio.run(handler.handler({**job, "s3Config": {**config, "bucketName": 3}}))
    assert (wrong["code"], wrong["field"]) == ("invalid_input", "s3Config.bucketName")


@pytest.mark.parametrize("part", [b"", b"x"])
def test_a_job_whose_store_never_ends_has_its_deadline_and_the_next_one_its_image(service, monkeypatch, part):
    async def forever():
        yield b"HTTP/1.1 400 Bad Request\r\n\r\n" if part else b""
        while True:
            await asyncio.sleep(0.05)
            yield part

    monkeypatch.setattr(handler, "service", lambda: service)
    monkeypatch.setenv("IMAGEGEN_PRIVATE_HOSTS", "127.0.0.1")
    job = {**PROMPT, "delivery": "url", "width": 64, "height": 64, "num_inference_steps": 1}

    async def run():
        async with FaultyStore(lambda head: forever()) as store:
            config = {"accessId": "id", "accessSecret": "secret", "bucketName": "b", "endpointUrl": store.url}
            slow = await handler.handler({"id": "a", "input": {**job, "timeout": 3}, "s3Config": config})
            await asyncio.sleep(0.5)
            assert store.connections == 0
            return slow, await handler.handler({"id": "b", "input": {**job, "delivery": "base64"}})

    slow, following = asyncio.run(run())
    assert slow["code"] == "deadline_exceeded"
    assert len(following["images"]) == 1


def test_openais_and_native_http_answer_with_urls(bucket, tmp_path):
    from fastapi.testclient import TestClient

    from imagegen.server.main import create_app

    mine = settings(
        bucket_endpoint_url=f"{bucket[0]}/pictures", bucket_access_key_id="id", bucket_secret_access_key="secret"
    )
    with TestClient(create_app(mine), base_url="http://localhost") as client:
        until(lambda: client.get("/health").json()["status"] == "ready")
        native = client.post("/generate", json={**PROMPT, "delivery": "url"})
        assert httpx.get(native.json()["urls"][0]).status_code == 200
        assert native.headers["x-request-id"] in native.json()["urls"][0]
        openai = client.post("/v1/images/generations", json={**PROMPT, "response_format": "url"})
        assert set(openai.json()["data"][0]) == {"url"}
        assert httpx.get(openai.json()["data"][0]["url"]).status_code == 200
        picture = client.post("/generate", json={**PROMPT, "delivery": "url"}, headers={"Accept": "image/png"})
        assert picture.json()["error"]["field"] == "delivery"
        stream = client.post("/v1/images/generations", json={**PROMPT, "response_format": "url", "stream": True})
        assert stream.json()["error"]["param"] == "response_format"


@pytest.mark.slow  # a worker of its own, and 30 MB of images
def test_thirty_megabytes_arrive_by_url(bucket, tmp_path):
    from tests.support.faulty_gpu import NOISE

    environment = {
        "BUCKET_ENDPOINT_URL": bucket[0], "BUCKET_ACCESS_KEY_ID": "id", "BUCKET_SECRET_ACCESS_KEY": "secret",
        "BUCKET_NAME": "pictures",
    }  # fmt: skip
    with RunPodQueue() as queue, queue.worker(tmp_path / "log", "-m", "tests.support.faulty_gpu", **environment):
        job = queue.run({**PROMPT, "seed": NOISE, "num_images": 8}).wait()  # 8 images of 4.2 MB in base64
        assert len(job.output["urls"]) == 8
        assert job.output["warnings"] == ["delivery: 33.6 MB are too large to send; they are at the URLs"]
        assert from_base64(to_base64(httpx.get(job.output["urls"][7]).content)).size == (1024, 1024)
