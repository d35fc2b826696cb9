"""Webhooks, delivered by a real server to real receivers, and verified by the specification's own package."""

from __future__ import annotations

import json
import socket
import time

import httpx
import pytest

from imagegen.errors import StoreFailed
from imagegen.jobs import webhooks
from imagegen.jobs.deliveries import Deliveries
from tests.jobs.test_jobs import JOB, ended, post
from tests.server.conftest import serving
from tests.support import until
from tests.support.webhook_receiver import SECRET, receiving


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    options = {"private_hosts": "127.0.0.1", "webhook_secret": SECRET, "max_body_mb": 3}
    with serving(jobs_dir=tmp_path_factory.mktemp("jobs"), **options) as (url, service):
        service.start().result()
        yield url


@pytest.fixture(scope="module")
def client(server):
    with httpx.Client(base_url=server, timeout=60) as open_client:
        yield open_client


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    monkeypatch.setattr(webhooks, "DELAYS", (0.1, 0.1))
    monkeypatch.setattr(webhooks, "_LOOK", 0.1)


def told(client, job_id):
    """The job's webhook once it is delivered or given up."""

    def look():
        state = client.get(f"/jobs/{job_id}").json()["webhook"]
        return state if state["status"] in ("delivered", "failed") else None

    return until(look, every=0.05)


def test_a_webhook_that_was_taken_is_not_sent_again_while_that_cannot_be_stored(client, monkeypatch):
    monkeypatch.setattr(webhooks, "_LOOK", 0.05)
    failures, note = 5, Deliveries.note

    def failing(*args):
        nonlocal failures
        failures -= 1
        if failures >= 0:
            raise StoreFailed("the disk is full")
        note(*args)

    monkeypatch.setattr(Deliveries, "note", failing)
    with receiving() as (url, receiver):
        job = post(client, webhook_url=url)
        assert told(client, job["id"])["tries"] == 1
    assert failures == -1
    assert receiver.requests == 1


def test_the_end_of_a_job_is_told_and_verified(client):
    with receiving() as (url, receiver):
        job = post(client, webhook_url=url)
        assert job["webhook"]["status"] == "waiting"
        assert told(client, job["id"]) == {"status": "delivered", "tries": 1, "next_try_at": None, "error": None}
        failed = post(client, webhook_url=url, images=["AAAA"])
        told(client, failed["id"])
    assert receiver.wrong == []
    (first, done), (second, broken) = receiver.came
    assert (first, second) == (f"msg_{job['id']}", f"msg_{failed['id']}")
    assert (done["type"], done["data"]["id"], done["data"]["result"]["seeds"]) == ("job.succeeded", job["id"], [42])
    assert (broken["type"], broken["data"]["error"]["code"]) == ("job.failed", "bad_reference")


def test_a_jobs_own_secret_signs(client):
    own = "whsec_" + "A" * 32
    with receiving(own) as (url, receiver):
        told(client, post(client, webhook_url=url, webhook_secret=own)["id"])
    assert receiver.wrong == []


def test_a_failed_delivery_is_tried_again_with_the_same_id(client):
    with receiving() as (url, receiver):
        receiver.answer = lambda handler, number: handler.send_answer(500 if number == 1 else 200)
        job = post(client, webhook_url=url)
        assert told(client, job["id"])["tries"] == 2
    assert [identity for identity, _ in receiver.came] == [f"msg_{job['id']}"] * 2
    assert receiver.wrong == []


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (lambda handler, _: handler.send_answer(500), "answered 500"),
        (lambda handler, _: handler.hang(3), "no web server that answers within 1 s"),
        (lambda handler, _: handler.send_answer(302, Location="http://169.254.169.254/"), "redirects are not followed"),
        (lambda handler, _: handler.wfile.write(b"HTTP/1.1 99999 what\r\n\r\n"), "no web server"),
    ],
    ids=["500", "hangs", "redirects", "no HTTP"],
)
def test_a_delivery_that_never_succeeds_ends_at_a_bound_and_says_why(client, monkeypatch, answer, why):
    monkeypatch.setattr(webhooks, "_SECONDS", 1.0)
    with receiving() as (url, receiver):
        receiver.answer = answer
        state = told(client, post(client, webhook_url=url)["id"])
        assert receiver.requests == 3
    assert (state["status"], state["tries"]) == ("failed", 3)
    assert why in state["error"]


def test_of_a_gigabyte_nothing_is_read(client):
    sent = 0

    def flood(handler, _):
        nonlocal sent
        handler.send_response(200)
        handler.send_header("Content-Length", str(10**9))
        handler.end_headers()
        for _ in range(10_000):
            handler.wfile.write(b"x" * 100_000)
            sent += 100_000

    with receiving() as (url, receiver):
        receiver.answer = flood
        assert told(client, post(client, webhook_url=url)["id"])["status"] == "delivered"
    time.sleep(0.2)
    assert sent < 20e6  # what the kernel's buffers take


def test_nobody_at_the_port(client):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    state = told(client, post(client, webhook_url=f"http://127.0.0.1:{port}/")["id"])
    assert (state["status"], state["tries"]) == ("failed", 3)


@pytest.mark.slow  # starts a server
def test_a_receiver_that_hangs_keeps_no_other_caller_waiting():
    keys = "alice:" + "a" * 16 + ",bob:" + "b" * 16
    options = {"private_hosts": "127.0.0.1", "webhook_secret": SECRET, "api_key": keys}
    with serving(**options) as (url, service), receiving() as (slow, hanging), receiving() as (fast, _):
        service.start().result()
        hanging.answer = lambda handler, _: handler.hang(3)
        alice = httpx.Client(base_url=url, headers={"X-API-Key": "a" * 16}, timeout=60)
        bob = httpx.Client(base_url=url, headers={"X-API-Key": "b" * 16}, timeout=60)
        with alice, bob:
            jobs = [post(alice, webhook_url=slow, width=64, height=64) for _ in range(8)]
            for job in jobs:
                ended(alice, job["id"])
            assert told(bob, post(bob, webhook_url=fast)["id"])["status"] == "delivered"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"webhook_url": "http://169.254.169.254/latest"}, "webhook_url"),
        ({"webhook_url": "http://[::1]/"}, "webhook_url"),
        ({"webhook_url": "http://10.0.0.1:8080/"}, "webhook_url"),
        ({"webhook_url": "ftp://example.com/"}, "webhook_url"),
        ({"webhook_url": "http://user:password@example.com/"}, "webhook_url"),
        ({"webhook_url": "http://example.com:22/"}, "webhook_url"),
        ({"webhook_url": "http://example.com/\ud800"}, "webhook_url"),
        ({"webhook_url": 7}, "webhook_url"),
        ({"webhook_url": "example.com"}, "webhook_url"),
        ({"webhook_secret": SECRET}, "webhook_secret"),
        ({"webhook_url": "http://example.com/", "webhook_secret": "short"}, "webhook_secret"),
        ({"webhook_url": "http://example.com/", "webhook_secret": "whsec_!!!"}, "webhook_secret"),
        ({"webhook_url": "http://example.com/", "webhook_secret": ["x"]}, "webhook_secret"),
    ],
)
def test_a_webhook_that_cannot_be_is_refused_at_once(client, fields, field):
    body = json.dumps({**JOB, **fields})  # httpx would not write half of a character
    answer = client.post("/jobs", content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, field)


def test_without_any_secret_a_webhook_is_refused():
    with serving(preload_models=False) as (url, _):
        answer = httpx.post(f"{url}/jobs", json={**JOB, "webhook_url": "https://example.com/"}, timeout=60)
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, "webhook_secret")


@pytest.mark.slow  # starts a server
def test_a_name_with_a_private_address_is_refused_at_each_try(tmp_path):
    """localhost is a name here; its address is looked at when the socket is opened."""
    with serving(webhook_secret=SECRET, jobs_dir=tmp_path) as (url, service), receiving() as (hook, receiver):
        service.start().result()
        with httpx.Client(base_url=url, timeout=60) as client:
            job = post(client, webhook_url=hook.replace("127.0.0.1", "localhost"))
            state = told(client, job["id"])
    assert (state["status"], receiver.requests) == ("failed", 0)
    assert "no public address" in state["error"]
