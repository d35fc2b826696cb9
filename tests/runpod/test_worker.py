import asyncio

import pytest

from imagegen.runpod.backlog import Backlog, jobs_to_request
from imagegen.runpod.stream_parts import CHUNK, previews_of_each, split


@pytest.mark.parametrize(
    ("pace", "ready"),
    [(0.0, 1), (10.0, 1), (0.6, 1), (0.5, 1), (0.3, 2), (0.1, 5), (0.05, 10)],
)
def test_half_a_second_of_work_is_ready_behind_the_job_that_runs(pace, ready):
    assert jobs_to_request(0, pace, 0) == 1 + ready
    assert jobs_to_request(1 + ready, pace, 0) == 0


@pytest.mark.parametrize(
    ("pace", "preparing", "ready"), [(0.6, 0.1, 1), (0.6, 0.2, 2), (0.6, 3.0, 6), (1.0, 60.0, 6), (0.0, 3.0, 1)]
)
def test_jobs_that_take_long_to_get_ready_are_taken_earlier(pace, preparing, ready):
    assert jobs_to_request(0, pace, preparing) == 1 + ready


def test_jobs_are_wanted_when_one_leaves_the_gpu():
    async def take():
        backlog = Backlog()
        assert await backlog.wanted(lambda: (1.0, 0.0)) == 2
        backlog.add(["a", "b"])
        waiting = asyncio.create_task(backlog.wanted(lambda: (1.0, 0.0)))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        backlog.release("a")
        backlog.release("a")  # told again when it is answered
        assert await waiting == 1
        backlog.release("b")
        return await backlog.wanted(lambda: (0.1, 0.0))

    assert asyncio.run(take()) == 6


def test_images_over_a_message_come_in_parts_that_join():
    images = ["a" * (2 * CHUNK + 5), "b" * 10]
    output = {"images": list(images), "seeds": [1, 2]}
    parts = split(output)
    assert output["images"] == []
    assert max(len(part["data"]) for part in parts) == CHUNK
    joined = ["".join(part["data"] for part in parts if part["index"] == i) for i in range(2)]
    assert joined == images
    theirs = {"data": [{"b64_json": image} for image in images], "created": 1}
    assert split(theirs) == parts
    assert theirs == {"data": [{"b64_json": ""}] * 2, "created": 1}
    small = {"images": ["x"]}
    assert split(small) == []
    assert small["images"] == ["x"]


@pytest.mark.parametrize(
    ("job_input", "each"),
    [
        ({"prompt": "x"}, 8),
        ({"num_images": 3}, 2),
        ({"num_images": 8}, 1),
        ({"num_images": 99}, 1),
        ({"num_images": "x"}, 1),
        ({"openai_route": "/v1/images/generations", "openai_input": {"n": 4}}, 2),
        (None, 8),
    ],
)
def test_a_stream_shows_eight_previews_whatever_the_number_of_images(job_input, each):
    assert previews_of_each(job_input) == each
