"""The steps of docs/drills.md that need no platform, as an operator takes them."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest

from imagegen.cli import inspect
from imagegen.models import MICRO_PATH
from tests.server.conftest import serving
from tests.support import ROOT, until
from tests.support.images import from_base64, to_bytes

JOB = {"prompt": "a red circle", "width": 512, "height": 512, "num_images": 4}
NEW, OLD = "n" * 16, "o" * 16


def unused_ports(count):
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def serve(port):
    env = {**os.environ, "IMAGEGEN_MODEL": "micro", "IMAGEGEN_DEVICE": "cpu"}
    return subprocess.Popen([sys.executable, "-m", "imagegen", "serve", "--port", str(port)], env=env)


def ready(port):
    asked = [sys.executable, "-m", "imagegen", "health", "--port", str(port)]
    until(lambda: subprocess.run(asked, check=False, timeout=300).returncode == 0, every=0.5)


@pytest.mark.slow  # two servers of their own
def test_an_upgrade_leaves_no_gap():
    answers = []
    before, after = unused_ports(2)
    old = serve(before)
    new = None
    try:
        ready(before)
        new = serve(after)
        ready(after)
        asking = threading.Thread(
            target=lambda: answers.append(httpx.post(f"http://127.0.0.1:{before}/generate", json=JOB, timeout=300))
        )
        asking.start()
        until(lambda: httpx.get(f"http://127.0.0.1:{before}/health").json()["status"] == "busy" or answers)
        old.send_signal(signal.SIGTERM)
        assert httpx.post(f"http://127.0.0.1:{after}/generate", json=JOB, timeout=300).status_code == 200
        assert old.wait(60) == 0
        asking.join(300)
        assert [answer.status_code for answer in answers] == [200]
    finally:
        for process in filter(None, (old, new)):
            process.kill()
            process.wait(300)


def test_a_key_is_rotated_without_a_caller_noticing():
    def statuses(url):
        return [
            httpx.get(f"{url}/capabilities", headers={"Authorization": f"Bearer {key}"}).status_code
            for key in (NEW, OLD)
        ]

    with serving(api_key=f"new:{NEW},old:{OLD}", preload_models=False) as (url, _):
        assert statuses(url) == [200, 200]
    with serving(api_key=f"new:{NEW}", preload_models=False) as (url, _):
        assert statuses(url) == [200, 401]


def test_a_model_is_deleted_from_the_cache(tmp_path):
    command = re.search(r"`(hf cache rm [^`]+)`", (ROOT / "docs" / "drills.md").read_text(encoding="utf-8"))[1]
    for name, commit in (("served", "a" * 40), ("old", "b" * 40)):
        folder = tmp_path / "hub" / f"models--us--{name}"
        snapshot = folder / "snapshots" / commit
        snapshot.mkdir(parents=True)
        (snapshot / "config.json").write_text("{}")
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text(commit)
    program, *arguments = command.replace("OWNER/NAME", "us/old").split()
    subprocess.run(
        [Path(sys.executable).parent / program, *arguments, "--yes"],
        env={**os.environ, "HF_HOME": str(tmp_path)},
        check=True,
        capture_output=True,
        timeout=60,
    )
    assert [path.name for path in (tmp_path / "hub").glob("models--*")] == ["models--us--served"]


def test_a_model_is_rolled_back_to_the_weights_of_an_earlier_commit(tmp_path):
    earlier = tmp_path / "hub" / "models--us--micro" / "snapshots" / ("b" * 40)
    shutil.copytree(MICRO_PATH, earlier)
    with serving(model_path=str(earlier)) as (url, service):
        service.start().result()
        answer = httpx.post(f"{url}/generate", json={"prompt": "a red circle"}, timeout=60).json()
    image = from_base64(answer["images"][0])
    assert image.size == (128, 128)
    record = inspect.read(to_bytes(image, exif=image.getexif()))
    assert (record["model"], "software" in record) == ("micro", True)
