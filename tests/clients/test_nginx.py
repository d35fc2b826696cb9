"""The server behind Debian's nginx with its defaults, and with a timeout that is shorter than a job's wait."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import time

import httpx
import openai
import pytest

from tests.conftest import until
from tests.docs.pages import section
from tests.server.conftest import serving

pytestmark = pytest.mark.slow  # nginx is installed by `make slow`

#: Seconds for which the model waits before each step in the first test, and for which a job waits in the second: three
#: times the proxy's timeout, the smallest that leaves room for a comment.
STEP, WAIT, TIMEOUT = 1.0, 36, 12


@contextlib.contextmanager
def nginx(folder, backend, timeout=""):
    """The server block of docs/clients.md, before `backend`; gives its base URL."""
    (block,) = re.findall(
        r"^```nginx\n(.*?)^```", section("docs/clients.md", "Behind a proxy"), re.MULTILINE | re.DOTALL
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    block = block.replace("listen 8080", f"listen 127.0.0.1:{port}").replace("http://localhost:7000", backend)
    block = block.replace("location / {", f"location / {{\n    {timeout}")
    folder.mkdir(exist_ok=True)
    (folder / "nginx.conf").write_text(
        f"daemon off;\npid {folder}/pid;\nerror_log {folder}/error.log;\nevents {{}}\nhttp {{\naccess_log off;\n"
        f"client_body_temp_path {folder}/body;\nproxy_temp_path {folder}/proxy;\n{block}}}\n"
    )
    process = subprocess.Popen(["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf")])

    def is_up():
        assert process.poll() is None, (folder / "error.log").read_text()
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"http://127.0.0.1:{port}/health")

    try:
        until(is_up)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


def lines(url, path, fields):
    """The time and text of each line of a stream."""
    with httpx.stream(
        "POST", f"{url}{path}", json=fields, headers={"Accept": "text/event-stream"}, timeout=300
    ) as answer:
        assert answer.status_code == 200, answer.read()
        for line in answer.iter_lines():
            if line:
                yield time.monotonic(), line


@pytest.mark.parametrize("path", ["/generate", "/v1/images/generations"])
def test_events_arrive_as_they_happen(tmp_path, path):
    with serving() as (backend, service):
        pipeline = service.start().result()
        done = []

        def slow_step(*_):
            done.append(time.monotonic())
            time.sleep(STEP)

        pipeline._pipe.transformer.register_forward_pre_hook(slow_step)
        with nginx(tmp_path / "nginx", backend) as url:
            fields = {"prompt": "a red circle", **({"stream": True, "partial_images": 3} if "v1" in path else {})}
            seen = [at for at, line in lines(url, path, fields) if line.startswith(("event: step", "event: image_gen"))]
        assert len(seen) >= 4
        # A step's event comes before the next one's begin: had nginx kept it, it would come with the last.
        assert all(seen[i] < done[i + 1] + STEP for i in range(len(done) - 1))


def test_a_job_that_waits_keeps_its_connection(tmp_path):
    with serving() as (backend, service):
        pipeline = service.start().result()
        first = iter([True])
        pipeline._pipe.transformer.register_forward_pre_hook(
            lambda *_: time.sleep(WAIT) if next(first, False) else None
        )
        with nginx(tmp_path / "nginx", backend, f"proxy_read_timeout {TIMEOUT}s;") as url:
            seen = list(lines(url, "/generate", {"prompt": "a red circle"}))
            assert seen[-2][1] == "event: done"
            assert sum(line.startswith(":") for _, line in seen) >= WAIT // TIMEOUT
            events = openai.OpenAI(base_url=f"{url}/v1", api_key="any").images.generate(prompt="a star", stream=True)
            assert [event.type for event in events] == ["image_generation.completed"]
