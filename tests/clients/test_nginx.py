"""The server behind Debian's nginx with its defaults, and with a timeout that is shorter than a job's wait."""

import time

import openai
import pytest

from tests.server.conftest import serving
from tests.support import until
from tests.support.nginx import lines, nginx

pytestmark = pytest.mark.slow  # nginx is installed by `make slow`

#: Seconds that the first step takes in the second test, and the proxy's timeout: a comment comes every 10 seconds, and
#: may be 20 late on a machine that does much else. `benchmarks.proxy` has the longer ones.
WAIT, TIMEOUT = 40, 30


@pytest.mark.parametrize("path", ["/generate", "/v1/images/generations"])
def test_events_arrive_as_they_happen(tmp_path, path):
    with serving() as (backend, service):
        pipeline = service.start().result()
        steps, seen = [], []

        def wait_for_the_events_before(*_):
            until(lambda: len(seen) >= len(steps))  # had nginx kept a step's event, it would never come
            steps.append(True)

        pipeline._pipe.transformer.register_forward_pre_hook(wait_for_the_events_before)
        with nginx(tmp_path / "nginx", backend) as url:
            partial = {"stream": True, "partial_images": 3} if "v1" in path else {}
            kinds = ("event: step", "event: image_generation")
            for _, line in lines(url, path, {"prompt": "a red circle", **partial}):
                if line.startswith(kinds):
                    seen.append(line)
        assert len(seen) == len(steps) == 4


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
            assert sum(line.startswith(":") for line in seen) >= 3
            client = openai.OpenAI(base_url=f"{url}/v1", api_key="any")
            events = client.images.generate(prompt="a star", stream=True)
            assert [event.type for event in events] == ["image_generation.completed"]
