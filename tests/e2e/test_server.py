"""`python -m imagegen` and `uvicorn imagegen.server.main:app` as processes: they come up, answer, drain and end."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading

import httpx
import pytest

from tests.support import ROOT, until
from tests.support.faulty_gpu import DEAD, HANGS, SLOW

PROMPT = {"prompt": "a red circle on a blue background", "seed": 42}


@contextlib.contextmanager
def running(tmp_path, *command, health="/health", **environment):
    """The process and its base URL, once it answers at `health` and the model is ready."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [word.replace("PORT", port) for word in command]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            stdout=log,
            stderr=log,
            env={**os.environ, **environment, "PORT": port},
        )
    url = f"http://127.0.0.1:{port}"

    def is_up():
        assert process.poll() is None, (tmp_path / "log").read_text()
        with contextlib.suppress(httpx.TransportError):
            answer = client.get(health)
            return health != "/health" or answer.json()["status"] == "ready"

    try:
        with httpx.Client(base_url=url, timeout=300) as client:
            until(is_up, every=0.1)
        yield process, url
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow  # a process of its own that loads the model; the next test does too
@pytest.mark.parametrize(
    "command",
    [
        ["-m", "imagegen"],
        [
            "-m",
            "uvicorn",
            "imagegen.server.main:app",
            "--host",
            "127.0.0.1",
            "--port",
            "PORT",
            "--http",
            "imagegen.server.protocol:Protocol",
            "--ws",
            "none",
            "--loop",
            "asyncio",
            "--no-proxy-headers",
        ],
    ],
)
def test_it_serves(tmp_path, command):
    with running(tmp_path, *command) as (_, url):
        assert httpx.post(f"{url}/generate", json=PROMPT, timeout=60).json()["seeds"] == [42]


def test_sigterm_finishes_what_runs_and_ends_with_0(tmp_path):
    steps = tmp_path / "steps"
    with running(tmp_path, "-m", "tests.support.faulty_gpu", STEPS_FILE=str(steps)) as (process, url):
        answers = []
        job = {**PROMPT, "seed": SLOW, "num_images": 4, "num_inference_steps": 8}
        asking = threading.Thread(target=lambda: answers.append(httpx.post(f"{url}/generate", json=job, timeout=300)))
        asking.start()
        until(steps.exists)
        process.send_signal(signal.SIGTERM)
        asking.join(300)
        assert answers[0].status_code == 200
        assert len(answers[0].json()["images"]) == 4
        assert process.wait(20) == 0
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{url}/health")


@pytest.mark.slow  # a process of its own that loads the model
def test_a_load_balancers_ping_has_a_port_of_its_own(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {"PORT_HEALTH": str(port), "LOAD_FILE": str(tmp_path / "load")}

    def status():
        return httpx.get(f"http://127.0.0.1:{port}/ping", timeout=60).status_code

    with running(tmp_path, "-m", "tests.support.faulty_gpu", health="/ping", **environment) as (process, url):
        assert status() == 204  # it loads
        (tmp_path / "load").touch()
        until(lambda: status() != 204)
        assert status() == 200
        assert httpx.get(f"{url}/ping").status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


@pytest.mark.slow  # a process of its own that loads the model; tests/e2e/test_queue_ends.py has a dead GPU in every run
@pytest.mark.parametrize(("seed", "says"), [(DEAD, "the GPU failed"), (HANGS, "the GPU made no step for 5 s")])
def test_a_dead_gpu_is_answered_and_ends_the_process(tmp_path, seed, says):
    with running(tmp_path, "-m", "tests.support.faulty_gpu", IMAGEGEN_STALL_TIMEOUT="5") as (process, url):
        assert httpx.post(f"{url}/generate", json=PROMPT, timeout=60).status_code == 200
        answer = httpx.post(f"{url}/generate", json={**PROMPT, "seed": seed}, timeout=60)
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "gpu_failed"
        assert says in answer.json()["error"]["message"]
        assert process.wait(20) == 1
        assert says in (tmp_path / "log").read_text()


@pytest.mark.slow  # a process of its own that loads the model; tests/e2e/test_canaries.py looks for more
def test_the_log_holds_no_prompt_no_image_and_no_key(tmp_path):
    with running(tmp_path, "-m", "imagegen", IMAGEGEN_API_KEY="canary-key-of-a-caller", LOG_LEVEL="DEBUG") as (_, url):
        key = {"Authorization": "Bearer canary-key-of-a-caller"}
        job = {"prompt": "canary xylophone", "embed_prompt": True}
        answer = httpx.post(f"{url}/generate", json=job, headers=key, timeout=60)
        httpx.post(f"{url}/edit", json={"prompt": "canary two", "image": "canary!"}, headers=key)
        httpx.post(f"{url}/generate", json={"canary_field": "canary"}, headers={"X-API-Key": "canary-wrong"})
    log = (tmp_path / "log").read_text()
    assert "loaded micro on cpu" in log
    assert "canary" not in log
    assert answer.json()["images"][0][60:120] not in log


def test_a_wrong_setting_is_one_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "imagegen"],
        cwd=ROOT,
        env={**os.environ, "PORT": "0"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: PORT: ")
    assert len(done.stderr.strip().splitlines()) == 1
