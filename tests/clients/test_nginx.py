"""The server behind Debian's nginx with its defaults, and with a timeout that is shorter than a job's wait."""

import time

import openai
import pytest

from tests.server.conftest import serving
from tests.support.nginx import lines, nginx

pytestmark = pytest.mark.slow  # nginx is installed by `make slow`

#: Seconds that each step takes in the first test, and the first step in the second: three times the proxy's timeout,
#: the smallest that leaves room for a comment. `benchmarks.proxy` has the longer ones.
STEP, WAIT, TIMEOUT = 1.0, 36, 12


@pytest.mark.parametrize("path", ["/generate", "/v1/images/generations"])
def test_events_arrive_as_they_happen(tmp_path, path):
    with serving() as (backend, service):
        pipeline = service.start().result()
        begun = []

        def slow_step(*_):
            begun.append(time.monotonic())
            time.sleep(STEP)

        pipeline._pipe.transformer.register_forward_pre_hook(slow_step)
        with nginx(tmp_path / "nginx", backend) as url:
            partial = {"stream": True, "partial_images": 3} if "v1" in path else {}
            kinds = ("event: step", "event: image_generation")
            seen = [
                at for at, line in lines(url, path, {"prompt": "a red circle", **partial}) if line.startswith(kinds)
            ]
        assert len(seen) == len(begun) == 4
        # Had nginx kept a step's event, it would have come with the last.
        assert all(at < next_begun + STEP for at, next_begun in zip(seen, begun[1:], strict=False))


def test_a_job_that_waits_keeps_its_connection(tmp_path):
    with serving() as (backend, service):
        pipeline = service.start().result()
        first = iter([True])

        def wait_once(*_):
            if next(first, False):
                time.sleep(WAIT)

        pipeline._pipe.transformer.register_forward_pre_hook(wait_once)
        with nginx(tmp_path / "nginx", backend, f"proxy_read_timeout {TIMEOUT}s;") as url:
            seen = [line for _, line in lines(url, "/generate", {"prompt": "a red circle"})]
            assert seen[-2] == "event: done"
            assert sum(line.startswith(":") for line in seen) >= WAIT // TIMEOUT
            client = openai.OpenAI(base_url=f"{url}/v1", api_key="any")
            events = client.images.generate(prompt="a star", stream=True)
            assert [event.type for event in events] == ["image_generation.completed"]
