"""Each limit of the table in docs/api.md, met at each endpoint: the same code, and the next job is answered."""

import asyncio
import re
import socket
import threading
import time
from functools import partial

import httpx
import pytest
from PIL import Image

from imagegen.contract.editing import MAX_REFERENCES
from imagegen.contract.fields import MAX_IMAGES
from imagegen.contract.prompts import MAX_PROMPT
from imagegen.runpod import handler
from imagegen.server.main import create_app
from imagegen.server.protocol import Protocol
from imagegen.settings import Settings
from tests.docs.pages import section
from tests.server.conftest import running, serving
from tests.support import held_gpu, settings, until
from tests.support.images import scene, to_base64

PROMPT = "a red circle on a blue background"
SMALL = to_base64(scene("circle", "red", "blue"))
LOW = {
    "max_body_mb": 0.5,
    "max_reference_mb": 0.03,
    "max_prompt": 100,
    "max_references": 2,
    "max_images": 2,
    "max_steps": 10,
    "max_megapixel_steps": 1.0,
}
LIMITS = settings(**LOW)
#: What is over each limit, in the native fields, and the code that it has.
OVER = {
    "IMAGEGEN_MAX_BODY_MB": ({"prompt": PROMPT, "user": "A" * 600_000}, "payload_too_large"),
    "IMAGEGEN_MAX_REFERENCE_MB": ({"prompt": PROMPT, "image": "A" * 60_000}, "payload_too_large"),
    "50 megapixels": (
        {"prompt": PROMPT, "image": to_base64(Image.new("1", (13000, 13000)))},
        "bad_reference",
    ),
    "IMAGEGEN_MAX_REFERENCES": ({"prompt": PROMPT, "images": [SMALL] * 3}, "invalid_input"),
    "IMAGEGEN_MAX_PROMPT": ({"prompt": "red " * 26}, "invalid_input"),
    "IMAGEGEN_MAX_IMAGES": ({"prompt": PROMPT, "num_images": 3}, "invalid_input"),
    "IMAGEGEN_MAX_STEPS": ({"prompt": PROMPT, "num_inference_steps": 11}, "invalid_input"),
    "IMAGEGEN_MAX_MEGAPIXEL_STEPS": ({"prompt": PROMPT, "width": 512, "height": 512}, "invalid_input"),
    "the model's": ({"prompt": PROMPT, "width": 2048, "height": 2048}, "invalid_input"),
}


@pytest.fixture(scope="module")
def low():
    """The URL and the service of a server with low limits."""
    with serving(**LOW) as (url, service):
        service.start().result()
        yield url, service


def by_runpod(url, fields):
    output = asyncio.run(handler.handler({"id": "a-job", "input": fields}))
    return output.get("code", "ok")


def by_native(url, fields):
    route = "/edit" if {"image", "images"} & set(fields) else "/generate"
    answer = httpx.post(f"{url}{route}", json=fields, timeout=60).json()
    return answer["error"]["code"] if "error" in answer else "ok"


def by_openai(url, fields):
    fields = dict(fields)
    if "num_images" in fields:
        fields["n"] = fields.pop("num_images")
    if "width" in fields:
        fields["size"] = f"{fields.pop('width')}x{fields.pop('height')}"
    route = "edits" if {"image", "images"} & set(fields) else "generations"
    answer = httpx.post(f"{url}/v1/images/{route}", json=fields, timeout=60).json()
    return answer["error"]["code"] if "error" in answer else "ok"


ENDPOINTS = pytest.mark.parametrize("endpoint", [by_runpod, by_native, by_openai])


@ENDPOINTS
@pytest.mark.parametrize("limit", OVER)
def test_what_is_over_a_limit_is_refused_and_the_next_job_is_generated(low, monkeypatch, endpoint, limit):
    url, service = low
    monkeypatch.setattr(handler, "service", lambda: service)
    monkeypatch.setattr(handler, "get_settings", lambda: LIMITS)
    fields, code = OVER[limit]
    assert endpoint(url, fields) == code
    assert endpoint(url, {"prompt": PROMPT}) == "ok"


@ENDPOINTS
def test_what_is_at_the_limits_is_generated(low, monkeypatch, endpoint):
    url, service = low
    monkeypatch.setattr(handler, "service", lambda: service)
    monkeypatch.setattr(handler, "get_settings", lambda: LIMITS)
    assert endpoint(url, {"prompt": "a red circle" + " " * 88, "images": [SMALL] * 2, "num_images": 2}) == "ok"


@ENDPOINTS
def test_time_and_queue(monkeypatch, endpoint):
    """While one job runs, another finds the queue full. Then one runs out of time."""
    codes = []

    def start(url):
        thread = threading.Thread(target=lambda: codes.append(endpoint(url, {"prompt": PROMPT})))
        thread.start()
        return thread

    monkeypatch.setattr(handler, "service", lambda: service)
    with serving(max_queue=0) as (url, service):
        with held_gpu(service):
            running = start(url)
            until(lambda: service.health().status == "busy")
            assert endpoint(url, {"prompt": PROMPT}) == "overloaded"
        running.join(300)
        assert codes == ["ok"]
    codes.clear()
    with serving(timeout=1, max_queue=0) as (url, service):
        with held_gpu(service):
            running = start(url)
            until(lambda: codes)
        running.join(300)
        assert codes == ["deadline_exceeded"]


def test_an_answer_over_its_limit_is_an_error_at_runpods_handler(service, monkeypatch):
    monkeypatch.setattr(handler, "service", lambda: service)
    monkeypatch.setattr(handler, "get_settings", lambda: settings(max_result_mb=0.01))
    assert by_runpod("", {"prompt": PROMPT, "width": 512, "height": 512}) == "result_too_large"


def test_openai_s_errors_name_openai_s_fields(low):
    url, _ = low
    answer = httpx.post(f"{url}/v1/images/generations", json={"prompt": PROMPT, "n": 3}).json()
    assert answer["error"]["param"] == "n"
    assert answer["error"]["message"] == "n: 3 images are too many here; 1 to 2 are allowed"


def test_capabilities_tell_the_limits(low):
    url, _ = low
    limits = httpx.get(f"{url}/capabilities").json()["limits"]
    assert limits.items() >= {"prompt": 100, "images": 2, "num_images": 2, "body_mb": 0.5}.items()


def test_the_defaults_are_the_contracts():
    defaults = Settings(_env_file=None)
    assert (defaults.max_prompt, defaults.max_references, defaults.max_images) == (
        MAX_PROMPT,
        MAX_REFERENCES,
        MAX_IMAGES,
    )


def test_the_table_of_limits_is_what_is_tested_here():
    text = section("docs/api.md", "Limits")
    rows = dict(
        re.findall(r"^\| [^|]+ \| (?:its `timeout`, )?`?([^|`]+?)`? \| `?([a-z_]+)`?[^|]* \|$", text, re.MULTILINE)
    )
    met = {limit: code for limit, (_, code) in OVER.items()}
    elsewhere = {
        "IMAGEGEN_REQUEST_TIMEOUT": "deadline_exceeded",
        "IMAGEGEN_MAX_QUEUE": "overloaded",
        "IMAGEGEN_MAX_RESULT_MB": "result_too_large",
        "the model's (512, micro 32)": "none",  # tests/contract/test_prompts.py
        "200 megapixels": "bad_reference",  # tests/inputs/test_decoding.py
        "1 GB, and 1 GB for those that take over 250 MB": "none",  # these two: tests/inputs/test_decoders.py
        "8 of the processor's, 10 in all": "bad_reference",
        "IMAGEGEN_URL_TIMEOUT": "bad_reference",  # these two: tests/inputs/test_fetching.py
        "5": "bad_reference",
        "36 megapixels": "bad_reference",  # tests/editing
        "20,000": "payload_too_large",  # these three: tests/server/test_http.py
        "120": "deadline_exceeded",
        "10": "none",
    }
    assert rows == {"limit": "error", **met, **elsewhere}


def test_a_job_of_a_million_small_things_is_refused_in_time(monkeypatch):
    monkeypatch.setattr(handler, "get_settings", lambda: LIMITS)
    nested: object = "x"
    for _ in range(100_000):
        nested = [nested]
    for job_input in ({"prompt": [1] * 1_000_000}, {"prompt": nested, "x": "A" * 600_000}):
        begun = time.thread_time()  # seconds of the processor: a busy machine is no fault
        assert by_runpod("", job_input) == "payload_too_large"
        assert time.thread_time() - begun < 1


@pytest.fixture
def impatient(monkeypatch):
    """A server that waits a second for headers, and an hour for the next request; connects to it."""
    monkeypatch.setattr("imagegen.server.protocol._HEAD_SECONDS", 1.0)
    app = create_app(settings(preload_models=False))
    with running(app, http=Protocol, timeout_keep_alive=3600) as url:
        yield partial(socket.create_connection, ("127.0.0.1", httpx.URL(url).port), timeout=60)


def wait_until_closed(connection):
    while connection.recv(4096):
        pass


@pytest.mark.parametrize("sent", [b"", b"GET /health HT", b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Slow: "])
def test_half_a_header_does_not_stay_open(impatient, sent):
    begun = time.monotonic()
    with impatient() as connection:
        connection.sendall(sent)
        wait_until_closed(connection)
    assert time.monotonic() - begun > 0.9


def test_nor_does_one_that_drips(impatient):
    def drip(connection):
        for _ in range(1200):  # a minute
            connection.sendall(b"x")
            time.sleep(0.05)

    with impatient() as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nX-Slow: ")
        with pytest.raises(ConnectionError):
            drip(connection)


def test_nor_does_a_second_request_s(impatient):
    with impatient() as connection:
        connection.sendall(b"GET /ping HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        begun = time.monotonic()
        connection.sendall(b"GET /ping HT")
        wait_until_closed(connection)
    assert time.monotonic() - begun > 0.9


def test_a_client_that_takes_its_time_between_requests_is_served(impatient, monkeypatch):
    monkeypatch.setattr("imagegen.server.protocol._HEAD_SECONDS", 60.0)
    with impatient() as connection:
        for _ in range(2):
            connection.sendall(b"GET /ping HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert connection.recv(4096).startswith(b"HTTP/1.1 200")
            time.sleep(1.2)  # the server has looked at it in between


def test_a_body_may_take_longer_than_headers(impatient, monkeypatch):
    monkeypatch.setattr("imagegen.server.protocol._BODY_WINDOW", 600.0)  # seconds; its end is not met here
    with impatient() as connection:
        connection.sendall(b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                           b"Content-Length: 2\r\n\r\n{")  # fmt: skip
        time.sleep(2.2)
        connection.sendall(b"}")
        assert connection.recv(4096).startswith(b"HTTP/1.1 422")
