"""A program that was written for BFL's own API, against this server: as BFL's documentation shows it."""

from __future__ import annotations

import io
import time

import httpx
import pytest
from PIL import Image

from tests.jobs.test_jobs import ended
from tests.server.conftest import serving
from tests.support import until
from tests.support.images import scene, to_base64, to_bytes
from tests.support.webhook_receiver import receiving

KEY = "a-key-of-the-tests"


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    options = {"jobs_dir": tmp_path_factory.mktemp("jobs"), "api_key": KEY, "private_hosts": "127.0.0.1"}
    with serving(**options) as (url, service):
        service.start().result()
        yield url


def ask(url, **fields):
    return httpx.post(
        f"{url}/v1/flux-2-klein-9b",
        headers={"accept": "application/json", "x-key": KEY, "Content-Type": "application/json"},
        json={"prompt": "a red circle on a blue background", "width": 128, "height": 128, **fields},
        timeout=60,
    )


def poll(polling_url, headers=None):
    """As BFL's own example does it."""
    while True:
        time.sleep(0.05)
        result = httpx.get(polling_url, headers={"accept": "application/json", "x-key": KEY}, timeout=60).json()
        if result["status"] == "Ready" or result["status"] in ("Error", "Failed"):
            return result


def test_a_program_of_bfls_documentation(url):
    accepted = ask(
        url, seed=42, safety_tolerance=2, output_format="png", webhook_url=None, transparent_bg=False, input_image=""
    ).json()
    assert set(accepted) >= {"id", "polling_url"}
    assert accepted["warnings"] == ["safety_tolerance: changes nothing here"]
    result = poll(accepted["polling_url"])
    assert (result["id"], result["result"]["seed"]) == (accepted["id"], 42)
    assert result["result"]["prompt"] == "a red circle on a blue background"
    image = httpx.get(result["result"]["sample"])  # without the key, as from BFL's store
    assert image.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(image.content)).size == (128, 128)


def test_an_edit_is_a_jpeg_where_nothing_is_said(url):
    accepted = ask(url, input_image=to_base64(scene("circle", "red", "blue")), input_image_2=None)
    result = poll(accepted.json()["polling_url"])
    assert httpx.get(result["result"]["sample"]).headers["content-type"] == "image/jpeg"


def test_a_sample_needs_its_signature(url):
    sample = poll(ask(url).json()["polling_url"])["result"]["sample"]
    assert httpx.get(sample).status_code == 200
    assert httpx.get(sample[:-1] + ("0" if sample[-1] != "0" else "1")).status_code == 404
    assert httpx.get(sample.replace("expires=", "expires=9")).status_code == 404
    assert httpx.get(sample.partition("?")[0]).status_code == 404
    other = ask(url).json()["id"]
    assert httpx.get(sample.replace(sample.rpartition("/")[2].partition("?")[0], other)).status_code == 404


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"width": 100}, "width"),
        ({"transparent_bg": True}, "transparent_bg"),
        ({"steps": 60}, "steps"),
        ({"num_images": 2}, "num_images"),
        ({"n": 2}, "n"),
        ({"raw": True}, "raw"),
        ({f"input_image_{i}": "AAAA" for i in range(2, 7)}, "input_image_2"),
        ({"webhook_url": 0}, "webhook_url"),
        ({"output_format": "gif"}, "output_format"),
        ({"prompt": None}, "prompt"),
        ({"webhook_url": "http://10.0.0.1/"}, "webhook_url"),
        ({"webhook_url": "https://example.com/"}, "webhook_secret"),
        ({"webhook_secret": 7, "webhook_url": "https://example.com/"}, "webhook_secret"),
    ],
)
def test_what_cannot_be_honoured_is_named(url, fields, field):
    answer = ask(url, **fields)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body", field]


@pytest.mark.parametrize(
    ("fields", "warning"),
    [
        ({"prompt_upsampling": True}, "prompt_upsampling: changes nothing here"),
        ({"disable_pup": False}, "disable_pup: changes nothing here"),
        ({"safety_tolerance": "strict"}, "safety_tolerance: changes nothing here"),
    ],
)
def test_what_changes_nothing_is_warned_of(url, fields, warning):
    assert ask(url, **fields).json()["warnings"] == [warning]


@pytest.mark.parametrize("field", ["input_image", "input_image_2"])
def test_a_failed_job_says_why_and_names_the_callers_field(url, field):
    circle = {} if field == "input_image" else {"input_image": to_base64(scene("circle", "red", "blue"))}
    result = poll(ask(url, **circle, **{field: "AAAA"}).json()["polling_url"])
    assert (result["status"], result["details"]["code"]) == ("Error", "bad_reference")
    assert result["details"]["field"] == field
    assert result["details"]["message"].startswith(f"{field}: ")


def test_a_form_is_taken_too(url):
    fields = {"prompt": "a red circle", "width": "128", "height": "128", "seed": "7"}
    files = {"input_image": ("a.png", to_bytes(scene("circle", "red", "blue")), "image/png")}
    answer = httpx.post(f"{url}/v1/flux-2-klein-4b", headers={"x-key": KEY}, data=fields, files=files)
    assert poll(answer.json()["polling_url"])["result"]["seed"] == 7


def test_what_is_not_there(url):
    headers = {"x-key": KEY}
    missing = httpx.get(f"{url}/v1/get_result", params={"id": "nothing"}, headers=headers)
    assert (missing.status_code, missing.json()["status"]) == (404, "Task not found")
    assert httpx.get(f"{url}/v1/get_result", headers=headers).status_code == 422
    assert httpx.post(f"{url}/v1/flux-2-max", headers=headers, json={}).status_code == 404
    wrong = httpx.post(f"{url}/v1/flux-2-klein-9b", headers={"x-key": "wrong" * 4}, json={"prompt": "x"})
    assert (wrong.status_code, list(wrong.json())) == (401, ["detail"])


def test_its_webhook_is_signed_with_a_secret_of_any_kind(url):
    with receiving(b"my-secret") as (hook, receiver):
        accepted = ask(url, webhook_url=hook, webhook_secret="my-secret").json()
        job = accepted["id"]
        assert accepted["warnings"][0].startswith("webhook_url: is told as the Standard Webhooks specification")
        with httpx.Client(base_url=url, headers={"x-key": KEY}, timeout=300) as client:
            ended(client, job)
        until(lambda: receiver.came)
    assert receiver.wrong == []
    assert receiver.came[0][1]["data"]["id"] == job
