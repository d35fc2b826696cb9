"""How a process ends: SIGTERM while the GPU hangs, and a model that can never be loaded."""

import os
import signal
import subprocess
import sys
import time

import httpx
import pytest

from tests.support import ROOT, until
from tests.support.faulty_gpu import HANGS
from tests.support.runpod_queue import RunPodQueue

HANGING = {"prompt": "a red circle on a blue background", "seed": HANGS, "timeout": 1}
FAULTY = ("-m", "tests.support.faulty_gpu")


def http_server(log, port, *command, **environment):
    environment = {**os.environ, "PORT": str(port), "IMAGEGEN_SERVE": "http", **environment}
    with log.open("w") as file:
        return subprocess.Popen([sys.executable, *command], cwd=ROOT, env=environment, stdout=file, stderr=file)


def answers(url):
    try:
        return httpx.get(f"{url}/health", timeout=20)
    except httpx.TransportError:
        return None


@pytest.mark.slow  # two processes load a model, and a hanging GPU is waited for
def test_sigterm_ends_a_server_whose_gpu_hangs_on_a_job_that_is_answered(tmp_path, free_tcp_port):
    url = f"http://127.0.0.1:{free_tcp_port}"
    with http_server(tmp_path / "log", free_tcp_port, *FAULTY, IMAGEGEN_STALL_TIMEOUT="20") as process:
        try:
            until(lambda: (health := answers(url)) is not None and health.status_code == 200)
            usual = {**HANGING, "seed": 1, "timeout": 60}  # the first job takes longer, and would not get to the GPU
            assert httpx.post(f"{url}/generate", json=usual, timeout=60).status_code == 200
            assert httpx.post(f"{url}/generate", json=HANGING, timeout=60).status_code == 504
            process.send_signal(signal.SIGTERM)
            assert process.wait(90) == 1
        finally:
            process.kill()
    assert "the GPU made no step for 20 s; this worker must be replaced" in (tmp_path / "log").read_text()


@pytest.mark.slow  # the same
def test_sigterm_ends_a_worker_of_the_queue_whose_gpu_hangs_on_a_job_that_is_answered(tmp_path):
    with RunPodQueue() as queue, queue.worker(tmp_path / "log", *FAULTY, IMAGEGEN_STALL_TIMEOUT="20") as worker:
        queue.run({**HANGING, "seed": 1, "timeout": 60}).wait()
        job = queue.run(HANGING).wait()
        assert job.error.startswith("deadline_exceeded: ")
        worker.terminate()
        assert worker.process.wait(90) == 1
        pings = len(queue.pings)
        time.sleep(2.5)
        assert len(queue.pings) == pings  # its heartbeat has ended too


@pytest.mark.parametrize("keep", ["", "true"])
def test_a_server_whose_model_can_never_be_loaded_ends_unless_it_is_to_be_kept(tmp_path, free_tcp_port, keep):
    url = f"http://127.0.0.1:{free_tcp_port}"
    environment = {"IMAGEGEN_MODEL": "klein-9b", "HF_HOME": str(tmp_path), "IMAGEGEN_KEEP_FAILED": keep}
    with http_server(tmp_path / "log", free_tcp_port, "-m", "imagegen", **environment) as process:
        try:
            if keep:
                until(lambda: (health := answers(url)) is not None and health.json()["status"] == "failed")
                answer = httpx.post(f"{url}/generate", json={"prompt": "x"}, timeout=60)
                assert answer.status_code == 503
                assert answer.json()["error"]["code"] == "load_failed"
                assert answer.json()["error"]["retryable"] is False
                process.send_signal(signal.SIGTERM)
                assert process.wait(60) == 0
            else:
                assert process.wait(60) == 1
        finally:
            process.kill()
    assert "HUGGING_FACE_TOKEN" in (tmp_path / "log").read_text()
