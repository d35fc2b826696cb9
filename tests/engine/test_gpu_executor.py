"""The GPU's thread: how it measures, whom it leaves out, and when it is dead."""

import asyncio
import threading
import time

import pytest
import torch

from imagegen.contract.requests import parse_job, plan
from imagegen.engine.gpu_executor import GpuExecutor
from imagegen.engine.job import Job
from imagegen.engine.service import Service
from imagegen.errors import GpuFailed
from imagegen.telemetry.metrics import Metrics
from tests.support import settings, until

REQUEST = parse_job({"prompt": "a red circle on a blue background"})


@pytest.fixture
def executor():
    running = GpuExecutor(60, Metrics())
    yield running
    running.close(None)


def run(executor, pipeline, stop=False):
    """Runs one job; gives the job and its images."""

    async def work():
        job, images = Job("a", REQUEST, 1), []
        if stop:
            job.stop.set()
        resolved = plan(REQUEST, pipeline.config.spec, None, 1)
        await executor.run(job, resolved, pipeline, lambda seed, image: images.append(image))
        return job, images

    return asyncio.run(work())


def test_the_first_job_is_the_mean_and_later_ones_move_it(executor, pipeline):
    begun = time.monotonic()
    job, images = run(executor, pipeline)
    mean, passed = executor.mean_gpu_seconds, time.monotonic() - begun
    assert len(images) == 1
    assert job.timings.denoise + job.timings.decode < mean < passed
    executor.mean_gpu_seconds = 1000.0
    run(executor, pipeline)
    assert 700 < executor.mean_gpu_seconds < 700 + 0.3 * 100


def test_a_job_that_nobody_waits_for_any_more_is_not_generated(executor, pipeline):
    assert run(executor, pipeline, stop=True)[1] == []
    assert executor.mean_gpu_seconds == 0


def test_a_gpu_that_hangs_is_seen_by_those_who_wait_and_the_service_still_ends(monkeypatch):
    service = Service(settings(stall_timeout=3))
    wakes = threading.Event()
    monkeypatch.setattr(
        service.start().result()._pipe.transformer, "forward", lambda *_, **__: wakes.wait(300), raising=True
    )
    try:
        begun = time.monotonic()
        with pytest.raises(GpuFailed, match="the GPU made no step for 3 s; this worker must be replaced"):
            asyncio.run(service.run(REQUEST))
        assert time.monotonic() - begun < 40  # looked at each second, on a busy machine too
        assert service.health().status == "failed"
        assert service.fatal == service.executor.dead is not None
        service.close()  # does not wait for the thread that hangs
        assert not wakes.is_set()
    finally:
        wakes.set()


def test_closing_waits_for_a_hanging_gpu_as_long_as_it_may_still_move(monkeypatch):
    service = Service(settings(stall_timeout=2))
    wakes = threading.Event()
    monkeypatch.setattr(service.start().result()._pipe.transformer, "forward", lambda *_, **__: wakes.wait(300))

    async def leave():
        task = asyncio.create_task(service.run(REQUEST))
        while service.executor._moved is None:
            await asyncio.sleep(0.01)
        task.cancel()

    try:
        asyncio.run(leave())
        service.close()
        assert service.executor.dead
    finally:
        wakes.set()


def test_a_load_that_ends_after_the_service_was_closed_leaves_nothing_in_memory(monkeypatch):
    service = Service(settings())
    loads, goes_on = threading.Event(), threading.Event()
    unloaded = []

    def slow(*arguments, **options):
        loads.set()
        goes_on.wait(60)
        return Model()

    class Model:
        device = None

        def unload(self):
            unloaded.append(self)

    monkeypatch.setattr("imagegen.engine.runner.load", slow)
    loading = service.start()
    assert loads.wait(60)
    service.close()
    assert not unloaded
    goes_on.set()
    until(lambda: unloaded)
    assert loading.exception().code == "not_ready"


def test_torch_s_own_error_of_a_dead_context_is_for_good(monkeypatch):
    service = Service(settings())

    def fail(*_, **__):
        raise torch.AcceleratorError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(service.start().result()._pipe.transformer, "forward", fail)
    with pytest.raises(GpuFailed) as caught:
        asyncio.run(service.run(REQUEST))
    assert caught.value.body()["retryable"] is True
    assert service.fatal
    service.close()
