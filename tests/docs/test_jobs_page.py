"""Runs what docs/jobs.md shows: curl, Python, the receiver of webhooks, the file of keys."""

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import tomllib

import httpx
import pytest
from PIL import Image

from imagegen.jobs import webhooks
from imagegen.jobs.keys import Key
from imagegen.jobs.state import JobState
from tests.docs.pages import PAGES, blocks, commands, section
from tests.server.conftest import serving
from tests.support import until

PAGE = "docs/jobs.md"
RECEIVER, BFL = (code for _, code in blocks(PAGE, "python"))
SECRET = re.search(r'SECRET = "(.*)"', RECEIVER)[1]


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    folder = tmp_path_factory.mktemp("jobs")
    with serving(jobs_dir=folder, private_hosts="127.0.0.1", webhook_secret=SECRET) as (url, service):
        service.start().result()
        yield url


@pytest.mark.slow  # curl may have to be installed
def test_the_commands(url, tmp_path):
    lines = [line.replace("localhost:7000", url.removeprefix("http://")) for line in commands(PAGE)]
    subprocess.run(["sh", "-e", "-c", "\n".join(lines)], cwd=tmp_path, check=True, timeout=300)
    assert (tmp_path / "events.txt").read_text().rstrip().splitlines()[-2] == "event: done"
    state = json.loads((tmp_path / "state.json").read_text())
    assert JobState.model_validate(state).status == "succeeded"
    with Image.open(tmp_path / "job.png") as image:
        assert image.size == (128, 128)
    assert state["id"] in [job["id"] for job in json.loads((tmp_path / "jobs.json").read_text())["jobs"]]
    first, second = (json.loads((tmp_path / name).read_text()) for name in ("first.json", "second.json"))
    assert first["seeds"] == second["seeds"]


@pytest.mark.slow  # starts a server
def test_the_program_for_bfls_api(url, tmp_path):
    code = BFL.replace("http://localhost:7000", url)
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=300)
    with Image.open(tmp_path / "bfl.jpg") as image:
        assert image.format == "JPEG"


@pytest.mark.slow  # starts a server
def test_the_receiver_takes_a_webhook_once_and_no_false_one(url, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [sys.executable, "-u", "-c", RECEIVER.replace("9000", port)]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, stderr=subprocess.DEVNULL)
    try:

        def answers():
            with contextlib.suppress(httpx.TransportError):
                return httpx.post(f"http://127.0.0.1:{port}/", content=b"{}").status_code == 400  # no signature

        until(answers)
        body = {"prompt": "a red circle", "webhook_url": f"http://127.0.0.1:{port}/"}
        job = httpx.post(f"{url}/jobs", json=body, timeout=60).json()["id"]
        until(lambda: httpx.get(f"{url}/jobs/{job}").json()["webhook"]["status"] == "delivered")
    finally:
        process.terminate()
        out, _ = process.communicate(timeout=300)
    assert out.splitlines() == [f"job.succeeded {job}"]


def test_the_state_and_the_tables_are_those_of_the_code():
    (shown, webhook) = (json.loads(block) for _, block in blocks(PAGE, "json"))
    JobState.model_validate(shown)
    assert set(shown) == set(JobState.model_fields)
    assert set(webhook) == {"type", "timestamp", "data"}
    (keys,) = (tomllib.loads(block) for _, block in blocks(PAGE, "toml"))
    assert all(Key.model_validate(table) for table in keys.values())
    for field in Key.model_fields:
        assert f"`{field}`" in section(PAGE, "Callers with keys of their own")
    states = JobState.model_json_schema()["properties"]["status"]["enum"]
    for state in states:
        assert f"| `{state}` |" in section(PAGE, "State")
    assert webhooks.DELAYS == (5.0, 60.0, 300.0, 1800.0, 7200.0, 18_000.0, 36_000.0)
    assert "after 5 seconds, 1, 5 and 30 minutes, 2, 5 and 10 hours" in " ".join(PAGES[PAGE].split())
