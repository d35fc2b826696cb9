"""References by URL: the operator's settings, and jobs that name one at each endpoint."""

import asyncio

import httpx
import pytest

from imagegen.contract.requests import parse_job
from imagegen.errors import ImageGenError
from tests.support import settings
from tests.support.image_hosts import (
    NOWHERE,
    PICTURE,
    drip,
    from_server,
    http,
    refused,
    server,
)
from tests.support.images import from_base64, to_base64


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


# In a job


def edit(service, *images, **fields):
    job = {"prompt": "make it green", "images": list(images), "width": 64, "height": 64, **fields}
    return asyncio.run(service.run(parse_job({**job, "seed": 1, "num_inference_steps": 1})))


@pytest.fixture
def trusting(service, monkeypatch):
    """The service, which may reach loopback."""
    mine = settings(private_hosts="127.0.0.1", max_reference_mb=0.1, url_timeout=20)
    monkeypatch.setattr(service.runner, "_settings", mine)
    return service


def through_the_service(service, answer, count=1):
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
    answer, asked = through_the_service(trusting, lambda path: http(PICTURE, Content_Type="text/html"), count=2)
    sent = edit(trusting, to_base64(PICTURE), to_base64(PICTURE))
    assert from_base64(answer.images[0]).tobytes() == from_base64(sent.images[0]).tobytes()
    assert len(asked) == 2 and answer.timings.references > 0


def test_content_is_known_by_its_bytes_and_not_by_its_header(trusting):
    error, _ = through_the_service(trusting, lambda path: http(b"<html>inside</html>", Content_Type="image/png"))
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


def test_every_endpoint_fetches(trusting, monkeypatch):
    """RunPod's, HTTP's JSON and form, OpenAI's two forms: the same error, and the same image."""
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
