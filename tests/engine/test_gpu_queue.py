"""The order in which jobs are asked of the GPU and taken from it."""

import asyncio
import threading
from types import SimpleNamespace

import pytest

from imagegen.contract.requests import parse_job, plan
from imagegen.engine.gpu_executor import GpuExecutor
from imagegen.engine.job import Job
from imagegen.errors import GpuFailed
from imagegen.models import get_model
from imagegen.telemetry.metrics import Metrics

REQUEST = parse_job({"prompt": "x", "num_images": 2, "num_inference_steps": 2})


class Pipeline:
    """A GPU that has done nothing until `release` is set: it says when an image is queued."""

    config = SimpleNamespace(plan=None)
    device = "cuda:0"

    def __init__(self, failure=None):
        self.order, self.release, self.failure = [], threading.Event(), failure

    @property
    def preparation(self):
        return self

    def inputs(self, references, *, seeds, **_):
        self.order.append("prepared by the GPU's thread" if "gpu" in threading.current_thread().name else "prepared")

    def tokens(self, _): ...

    def gpu_memory(self): ...

    def encode_prompt(self, _):
        return SimpleNamespace(cached=False, warnings=[], seconds=0.25)

    def generate_prepared(self, _, __, seed, on_step, ___=()):
        for step in (1, 2):
            on_step(step, 2, lambda: None)
        self.order.append(f"{seed} queued")
        return Generated(self, seed)


class Generated:
    decode = 0.5

    def __init__(self, pipeline, seed):
        self._pipeline, self._seed = pipeline, seed

    @property
    def denoise(self):
        assert self._pipeline.release.wait(300)
        if self._pipeline.failure is not None:
            raise self._pipeline.failure
        return 0.5

    @property
    def image(self):
        return self._seed


@pytest.fixture
def executor():
    running = GpuExecutor(60, Metrics())
    yield running
    running.close(None)


def start(executor, pipeline, seed):
    """A job of two images in its own task, and where its images go."""
    job, images = Job(str(seed), REQUEST, seed), []
    resolved = plan(REQUEST, get_model("micro"), None, seed)
    run = executor.run(job, resolved, pipeline, lambda seed, image: images.append((seed, image)))
    return job, images, asyncio.create_task(run)


async def until_queued(pipeline, name):
    while name not in pipeline.order:
        await asyncio.sleep(0.005)


def test_the_next_job_is_queued_before_the_last_one_is_done(executor):
    pipeline = Pipeline()

    async def two():
        one = start(executor, pipeline, 1)
        await until_queued(pipeline, "2 queued")
        other = start(executor, pipeline, 3)
        await until_queued(pipeline, "4 queued")
        assert not one[1] and not one[2].done()  # and yet the GPU has done nothing
        pipeline.release.set()
        await asyncio.gather(one[2], other[2])
        return one, other

    (job, images, _), (_, others, _) = asyncio.run(two())
    assert pipeline.order == ["prepared", "1 queued", "2 queued", "prepared", "3 queued", "4 queued"]
    assert (images, others) == ([(1, 1), (2, 2)], [(3, 3), (4, 4)])
    assert (job.timings.encode_prompt, job.timings.denoise, job.timings.decode) == (0.25, 1.0, 1.0)


def test_a_gpu_that_fails_behind_the_thread_that_feeds_it_is_dead(executor):
    pipeline = Pipeline(GpuFailed("the GPU failed; this worker must be replaced"))

    async def one():
        _, images, task = start(executor, pipeline, 1)
        await until_queued(pipeline, "2 queued")
        pipeline.release.set()
        with pytest.raises(GpuFailed):
            await task
        return images

    assert asyncio.run(one()) == []
    assert executor.dead == "the GPU failed; this worker must be replaced"


def test_a_gpu_that_hangs_after_all_its_work_is_queued_is_dead():
    executor, pipeline = GpuExecutor(1, Metrics()), Pipeline()

    async def one():
        with pytest.raises(GpuFailed, match="made no step for 1 s"):
            await start(executor, pipeline, 1)[2]

    try:
        asyncio.run(one())
    finally:
        pipeline.release.set()
        executor.close(None)
