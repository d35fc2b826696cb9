"""The steps of docs/drills.md that need no platform, as an operator takes them."""

import os
import signal
import subprocess
import sys
import threading

import httpx
import pytest

from tests.server.conftest import serving
from tests.support import until

JOB = {"prompt": "a red circle", "width": 512, "height": 512, "num_images": 4}
NEW, OLD = "n" * 16, "o" * 16


def serve(port):
    env = {**os.environ, "IMAGEGEN_MODEL": "micro", "IMAGEGEN_DEVICE": "cpu"}
    return subprocess.Popen([sys.executable, "-m", "imagegen", "serve", "--port", str(port)], env=env)


def ready(port):
    asked = [sys.executable, "-m", "imagegen", "health", "--port", str(port)]
    until(lambda: subprocess.run(asked, check=False, timeout=30).returncode == 0, 120, every=0.5)


@pytest.mark.slow  # two servers of their own
def test_an_upgrade_leaves_no_gap():
    answers = []
    old = serve(7311)
    new = None
    try:
        ready(7311)
        new = serve(7312)
        ready(7312)
        asking = threading.Thread(
            target=lambda: answers.append(httpx.post("http://127.0.0.1:7311/generate", json=JOB, timeout=120))
        )
        asking.start()
        until(lambda: httpx.get("http://127.0.0.1:7311/health").json()["status"] == "busy" or answers, 60)
        old.send_signal(signal.SIGTERM)
        assert httpx.post("http://127.0.0.1:7312/generate", json=JOB, timeout=120).status_code == 200
        assert old.wait(60) == 0
        asking.join(60)
        assert [answer.status_code for answer in answers] == [200]
    finally:
        for process in filter(None, (old, new)):
            process.kill()
            process.wait(20)


def test_a_key_is_rotated_without_a_caller_noticing():
    def statuses(url):
        return [
            httpx.get(f"{url}/capabilities", headers={"Authorization": f"Bearer {key}"}).status_code
            for key in (NEW, OLD)
        ]

    with serving(api_key=f"new:{NEW},old:{OLD}") as (url, _):
        assert statuses(url) == [200, 200]
    with serving(api_key=f"new:{NEW}") as (url, _):
        assert statuses(url) == [200, 401]
