"""Jobs that are cancelled, or whose deadline passes: the GPU is free within a step."""

import asyncio
import threading
import time

import pytest

from imagegen.contract.requests import parse_job
from imagegen.errors import (
    DeadlineExceeded,
)
from imagegen.inputs.decoding import Reference
from tests.support.images import scene
from tests.support.jobs import run

LONG = {"prompt": "x", "num_inference_steps": 50, "num_images": 8, "width": 512, "height": 512}


@pytest.fixture
def steps(service):
    """Counts the calls of the transformer: one for each step."""
    calls = []
    transformer = service.start().result()._pipe.transformer
    hook = transformer.register_forward_pre_hook(lambda *_: calls.append(time.monotonic()))
    yield calls
    hook.remove()


def test_a_cancelled_job_leaves_the_gpu_within_a_step(service, steps):
    leave = threading.Event()

    def hold(*_):
        """The third step lasts until the job is cancelled."""
        if len(steps) == 3:
            leave.wait(300)

    async def cancel():
        long = asyncio.create_task(service.run(parse_job(LONG)))
        while len(steps) < 3:
            await asyncio.sleep(0.005)
        waiting = asyncio.create_task(service.run(parse_job({"prompt": "x"})))
        never = asyncio.create_task(service.run(parse_job({"prompt": "x"})))
        await asyncio.sleep(0)
        before = len(steps)
        never.cancel()
        long.cancel()
        await asyncio.wait({never, long})
        leave.set()
        answer = await waiting
        for task in (long, never):
            with pytest.raises(asyncio.CancelledError):
                await task
        return len(steps) - before, answer

    hook = service.start().result()._pipe.transformer.register_forward_pre_hook(hold)
    try:
        ran, answer = asyncio.run(cancel())
    finally:
        leave.set()
        hook.remove()
    assert answer.images
    assert ran <= 1 + 4  # the step that it was in, and those of the job behind it


def test_a_deadline_ends_a_job_wherever_it_is(service):
    long = {**LONG, "timeout": 1}
    with pytest.raises(DeadlineExceeded, match=r"^timeout: the job did not end within 1\.0 s") as caught:
        run(service, **long)
    assert caught.value.field == "timeout"

    inside, leave = threading.Event(), threading.Event()

    def hold(*_):
        inside.set()
        leave.wait(300)

    async def wait_behind_another():
        first = asyncio.create_task(service.run(parse_job(LONG)))
        while not inside.is_set():
            await asyncio.sleep(0.005)
        with pytest.raises(DeadlineExceeded):
            await service.run(parse_job({"prompt": "x", "timeout": 1}))
        first.cancel()
        leave.set()
        with pytest.raises(asyncio.CancelledError):
            await first

    hook = service.start().result()._pipe.transformer.register_forward_pre_hook(hold)
    try:
        asyncio.run(wait_behind_another())
    finally:
        leave.set()
        hook.remove()
    assert run(service).images  # the GPU's queue is free


def test_a_deadline_ends_the_generation_within_a_step(service, steps):
    leave = threading.Event()

    def hold(*_):
        """The third step lasts until the deadline has passed."""
        if len(steps) == 3:
            leave.wait(300)

    async def late():
        for seconds in (1, 10, 100):  # a busy machine may not come to a step within the shorter ones
            with pytest.raises(DeadlineExceeded):
                await service.run(parse_job({**LONG, "timeout": seconds}))
            if steps:
                break
        ended = len(steps)
        leave.set()
        await service.run(parse_job({"prompt": "x"}))
        return len(steps) - ended

    hook = service.start().result()._pipe.transformer.register_forward_pre_hook(hold)
    try:
        assert asyncio.run(late()) <= 1 + 4  # the step that it was in, and those of the job behind it
    finally:
        leave.set()
        hook.remove()
    assert steps


def test_a_deadline_or_a_stop_ends_a_job_whose_references_are_on_their_way(service, monkeypatch, steps):
    arrives = threading.Event()

    def slow(*arguments):
        arrives.wait(60)
        return Reference(scene("circle", "red", "blue"), [])

    async def wait_for_references():
        edit = parse_job({"prompt": "x", "images": ["x", "x"]})  # never decoded, so that it can be asked for again
        with pytest.raises(DeadlineExceeded):
            await service.run(edit.model_copy(update={"timeout": 1}))
        stopped = asyncio.create_task(service.run(edit))
        await asyncio.sleep(0.05)
        stopped.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stopped
        assert not steps
        arrives.set()
        return await service.run(parse_job({"prompt": "x"}))

    monkeypatch.setattr("imagegen.inputs.decoders.Decoders._load", slow)
    try:
        assert asyncio.run(wait_for_references()).images
    finally:
        arrives.set()
    assert len(steps) == 4  # the last job's alone
