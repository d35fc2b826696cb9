"""kill -9 at each moment of a job: none is lost, none that was stored is generated again, each webhook is delivered."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time

import httpx
import pytest

from tests.support import ROOT, until
from tests.support.jobs_server import MOMENTS
from tests.support.killable import KillableServer
from tests.support.webhook_receiver import SECRET, receiving

JOB = {"prompt": "a red circle on a blue background", "width": 64, "height": 64, "webhook_secret": SECRET}


@pytest.fixture
def server(tmp_path):
    one = KillableServer(tmp_path)
    try:
        yield one
    finally:
        one.kill()


@pytest.mark.slow  # each moment starts two servers
@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_at_a_moment(server, moment):
    accepted = []
    with receiving() as (hook, receiver):
        server.start(moment, "2")
        for i in range(4):
            with contextlib.suppress(httpx.TransportError):
                answer = httpx.post(f"{server.url}/jobs", json={**JOB, "seed": i, "webhook_url": hook}, timeout=60)
                assert answer.status_code == 202
                accepted.append(answer.json()["id"])
        server.process.wait(120)
        assert server.process.returncode == -signal.SIGKILL
        before = server.moments("stored")
        server.start()
        states = until(lambda: ended(server, accepted))
        assert [state["status"] for state in states] == ["succeeded"] * len(accepted)
        assert [state["result"]["seeds"] for state in states] == [[i] for i in range(len(accepted))]
        for state in states:
            assert httpx.get(server.url + state["result"]["urls"][0]).status_code == 200
        until(lambda: {f"msg_{job}" for job in accepted} <= {identity for identity, _ in receiver.came})
        if moment == "told":  # told, and not noted: it comes again, by the same id
            until(lambda: len(receiver.came) > len({identity for identity, _ in receiver.came}))
    assert receiver.wrong == []
    once = [job for job in before if server.moments("generated").count(job) != 1]
    assert once == [], "stored, and generated again"
    order = list(dict.fromkeys(server.moments("running")))
    assert order == server.moments("accepted")[: len(order)], "in order of arrival"
    # What was stored without an answer to its caller, at the moment "accepted", is done too.
    until(lambda: set(server.moments("accepted")) == set(server.moments("stored")))


def ended(server, jobs):
    """The jobs' states, once all have ended."""
    states = server.states(jobs)
    return states if all(state["finished_at"] for state in states) else None


@pytest.mark.slow  # starts servers
def test_sigterm_ends_soon_and_the_next_process_goes_on(server):
    server.start()
    until(lambda: httpx.get(f"{server.url}/health").json()["status"] == "ready")
    long = {**JOB, "num_images": 8, "num_inference_steps": 50, "width": 256, "height": 256}
    del long["webhook_secret"]
    jobs = [httpx.post(f"{server.url}/jobs", json={**long, "num_images": 1}).json()["id"] for _ in range(4)]
    with httpx.stream("GET", f"{server.url}/jobs/{jobs[3]}/events", timeout=60) as stream:
        lines = stream.iter_lines()
        next(lines)
        server.process.terminate()
        begun = time.monotonic()
        for _ in lines:
            pass  # the stream of what waits ends
        assert time.monotonic() - begun < 60
    server.process.wait(120)
    assert server.process.returncode == 0
    server.start()
    states = until(lambda: ended(server, jobs))
    assert [state["status"] for state in states] == ["succeeded"] * 4


@pytest.mark.slow  # starts servers
def test_a_second_server_may_not_have_the_folder(server):
    server.start()
    other = KillableServer(server.folder.parent)
    words = [sys.executable, "-m", "imagegen", "serve", "--port", str(other.port)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "IMAGEGEN_JOBS_DIR": str(server.folder)}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert "another process uses this folder" in done.stderr
