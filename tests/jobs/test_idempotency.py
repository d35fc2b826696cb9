"""Idempotency-Key: the same key with the same body is the same job, at every route that makes images."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest
from PIL import Image

from tests.jobs.test_jobs import ended
from tests.server.conftest import events, serving
from tests.support.images import scene, to_base64, to_bytes

PROMPT = "a red circle on a blue background"
#: Without a seed two jobs are two images.
BODY = {"prompt": PROMPT, "width": 128, "height": 128}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("jobs")


@pytest.fixture(scope="module")
def client(folder):
    # Of more idle connections than it is to keep, httpcore closes one that another thread has just been given.
    limits = httpx.Limits(max_keepalive_connections=100)
    with (
        serving(jobs_dir=folder / "jobs") as (url, service),
        httpx.Client(base_url=url, timeout=120, limits=limits) as client,
    ):
        service.start().result()
        yield client


def test_the_same_key_is_the_same_job(client):
    answers = [client.post("/jobs", json=BODY, headers={"Idempotency-Key": "k1"}) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [202, 202]
    assert answers[0].json()["id"] == answers[1].json()["id"]
    assert client.post("/jobs", json=BODY, headers={"Idempotency-Key": "k2"}).json()["id"] != answers[0].json()["id"]


def test_two_hundred_at_once_with_twenty_keys_are_twenty_jobs(client):
    def ask(number):
        answer = client.post("/jobs", json=BODY, headers={"Idempotency-Key": f"key {number % 20}"})
        assert answer.status_code == 202, answer.text
        return number % 20, answer.json()["id"]

    with ThreadPoolExecutor(50) as pool:
        made = set(pool.map(ask, range(200)))
    assert len(made) == 20
    for _, job in made:
        ended(client, job)


@pytest.mark.parametrize("route", ["/generate", "/edit"])
def test_a_second_request_gets_the_first_ones_images(client, route):
    body = BODY if route == "/generate" else {**BODY, "images": [to_base64(scene("circle", "red", "blue"))]}
    key = {"Idempotency-Key": route}
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: client.post(route, json=body, headers=key), range(4)))
    assert {answer.status_code for answer in answers} == {200}
    first = answers[0].json()
    assert all(answer.json() == first for answer in answers)
    # In another form, and by the job's id
    image = client.post(route, json=body, headers={**key, "Accept": "image/png"})
    assert image.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(image.content)).size == (128, 128)
    with client.stream("POST", route, json=body, headers={**key, "Accept": "text/event-stream"}) as stream:
        assert list(events(stream))[-1] == ("done", first)
    assert client.get(f"/jobs/{image.headers['x-request-id']}").json()["result"]["seeds"] == first["seeds"]


def test_another_body_is_refused(client):
    client.post("/jobs", json=BODY, headers={"Idempotency-Key": "reused"})
    for other in ({**BODY, "prompt": "a blue square"}, {**BODY, "images": [to_base64(scene("circle", "red", "blue"))]}):
        answer = client.post("/jobs", json=other, headers={"Idempotency-Key": "reused"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "idempotency_key_reuse")
    answer = client.post("/v1/images/generations", json={"prompt": "x"}, headers={"Idempotency-Key": "reused"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "idempotency_key_reuse")


def test_openais_client_sends_one(client):
    images = openai.OpenAI(base_url=f"{str(client.base_url).rstrip('/')}/v1", api_key="none").images

    def generate():
        return images.generate(prompt=PROMPT, size="128x128", extra_headers={"Idempotency-Key": "openai"})

    def edit():
        circle = ("a.png", to_bytes(scene("circle", "red", "blue")), "image/png")
        return images.edit(prompt=PROMPT, image=circle, extra_headers={"Idempotency-Key": "edit"})

    for ask in (generate, edit):
        first, second = ask(), ask()
        assert first.data[0].b64_json == second.data[0].b64_json


def test_a_failed_job_is_the_same_failed_job(client):
    body = {**BODY, "images": ["AAAA"]}
    answers = [client.post("/edit", json=body, headers={"Idempotency-Key": "failed"}) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [422, 422]
    assert answers[0].json() == answers[1].json()
    assert answers[0].json()["error"]["field"] == "images[0]"


def test_two_keys_of_one_request_are_one_key(client):
    headers = [("Idempotency-Key", "a"), ("Idempotency-Key", "b")]
    job = client.post("/jobs", json=BODY, headers=headers).json()["id"]
    assert client.post("/jobs", json=BODY, headers={"Idempotency-Key": "a, b"}).json()["id"] == job


def test_the_same_body_in_another_form_is_the_same_job(client):
    key, written = {"Idempotency-Key": "forms"}, {"Content-Type": "application/json", "Idempotency-Key": "forms"}
    text = f'{{ "height": 128.0,\n "width":128, "seed": null, "prompt": "{PROMPT}" }}'
    answers = [client.post("/jobs", json=BODY, headers=key), client.post("/jobs", content=text, headers=written)]
    form = {name: (None, str(value)) for name, value in BODY.items()}
    answers.append(client.post("/jobs", files=form, headers=key))
    assert [answer.status_code for answer in answers] == [202] * 3
    assert len({answer.json()["id"] for answer in answers}) == 1


@pytest.mark.parametrize("key", ["", "x" * 256, "tab\tin it"])
def test_a_key_that_is_none_is_refused(client, key):
    answer = client.post("/jobs", json=BODY, headers={"Idempotency-Key": key})
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, "Idempotency-Key")


def test_the_longest_key_is_taken(client):
    assert client.post("/jobs", json=BODY, headers={"Idempotency-Key": "x" * 255}).status_code == 202


@pytest.mark.slow  # starts two servers
def test_it_holds_after_a_restart(tmp_path):
    seen = []
    for _ in range(2):
        with serving(jobs_dir=tmp_path / "jobs") as (url, service):
            service.start().result()
            answer = httpx.post(f"{url}/generate", json=BODY, headers={"Idempotency-Key": "k"}, timeout=60)
            seen.append(answer.json()["images"])
    assert seen[0] == seen[1]
