"""`python handler.py --rp_serve_api` over plain HTTP, as a client of RunPod's API would use it."""

import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path
from unittest.mock import ANY

import httpx
import pytest

from imagegen.builder.micro.measure import background_colour, shape_colour
from tests.support import ROOT, until
from tests.support.images import from_base64, scene, to_base64

PROMPT = {"prompt": "a yellow star on a black background", "seed": 5}


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path_factory.mktemp("api") / "log"
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "handler.py", "--rp_serve_api", "--rp_api_port", str(port), "--rp_api_host", "127.0.0.1"],
            cwd=ROOT,
            stdout=out,
            stderr=out,
            env={**os.environ, "IMAGEGEN_MAX_RESULT_MB": "0.3"},
        )
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:

                def is_up():
                    assert process.poll() is None, log.read_text()
                    with contextlib.suppress(httpx.TransportError):
                        return client.get("/docs")

                until(is_up, every=0.1)
                client.headers["x-log"] = str(log)
                yield client
        finally:
            process.terminate()
            process.wait(300)


def test_runsync_generates_what_was_asked(api):
    answer = api.post("/runsync", json={"input": PROMPT}).json()
    assert answer["status"] == "COMPLETED"
    picture = from_base64(answer["output"]["images"][0])
    assert (background_colour(picture), shape_colour(picture)) == ("black", "yellow")


def test_run_and_status(api):
    queued = api.post("/run", json={"input": PROMPT}).json()
    assert queued["status"] == "IN_PROGRESS"
    answer = api.post(f"/status/{queued['id']}").json()
    assert answer["status"] == "COMPLETED"
    assert answer["output"]["seeds"] == [5]
    assert api.post("/status/nobody").json()["status"] == "FAILED"


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_an_edit(api, count):
    images = [to_base64(scene("circle", "red", "blue"))] * count
    answer = api.post("/runsync", json={"input": {"prompt": "make the background green", "images": images}}).json()
    assert answer["status"] == "COMPLETED"
    assert len(answer["output"]["images"]) == 1


@pytest.mark.parametrize(
    ("job", "error"),
    [
        ({}, "invalid_input: prompt: is missing"),
        ({**PROMPT, "mode": "paint"}, "invalid_input: mode: 'paint' is not known"),
        ({**PROMPT, "images": ["a"] * 5}, "invalid_input: images: 5 references were received; 1 to 4 are allowed"),
        ({**PROMPT, "image": "rubbish!"}, "bad_reference: images[0]: is not base64"),
        ({**PROMPT, "image": "A" * 30_000_000}, "payload_too_large: images[0]: is about 22.5 MB; 20 MB are allowed"),
        ({**PROMPT, "width": 1024, "height": 1024}, "result_too_large: the answer would be"),
        ({**PROMPT, "num_inference_steps": 50, "num_images": 8, "timeout": 1}, "deadline_exceeded: timeout: "),
    ],
)
def test_an_error_is_the_contracts_and_the_worker_lives_on(api, job, error):
    answer = api.post("/runsync", json={"input": job}).json()
    assert answer["status"] == "FAILED"
    assert answer["error"].startswith(error)
    code = error.partition(":")[0]
    assert answer["output"] == {"code": code, "field": ANY, "retryable": code == "deadline_exceeded"}
    assert answer["output"]["field"] in ("prompt", "mode", "images", "images[0]", "output_format", "timeout")
    assert api.post("/runsync", json={"input": PROMPT}).json()["status"] == "COMPLETED"


@pytest.mark.parametrize("body", [{}, {"input": None}, {"input": [1]}, {"input": 3}, [], None])
def test_a_job_that_is_none_leaves_the_worker_alive(api, body):
    refused = api.post("/runsync", json=body)
    assert refused.status_code == 422 or refused.json()["status"] == "FAILED"  # the SDK refuses some by itself
    assert api.post("/runsync", json={"input": PROMPT}).json()["status"] == "COMPLETED"


def test_the_log_holds_no_prompt_and_no_image(api):
    canary = "canary xylophone"
    output = api.post("/runsync", json={"input": {"prompt": canary}}).json()["output"]
    log = Path(api.headers["x-log"]).read_text()
    assert "loaded micro on cpu" in log
    assert canary not in log
    assert output["images"][0][:80] not in log
