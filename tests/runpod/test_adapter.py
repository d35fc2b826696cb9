"""A job between RunPod's SDK and the service: its stream, its progress, its stop."""

import asyncio
import json
from collections.abc import AsyncGenerator

import pytest
from aiohttp import ClientSession, web
from runpod.serverless.modules import rp_http

from imagegen.contract.events import Generated, Queued, Step
from imagegen.engine.service import Service
from imagegen.runpod.adapter import RunPodAdapter
from imagegen.runpod.progress import Progress
from imagegen.runpod.queue_loop import QueueLoop
from tests.support import settings


@pytest.fixture
def service():
    """One that never loads anything."""
    idle = Service(settings())
    yield idle
    idle.close()


def test_a_stream_that_nobody_reads_any_more_ends_its_job(service):
    ended = []

    async def answer(job, listener, previews):
        try:
            listener(Queued(0))
            await asyncio.sleep(3600)
        finally:
            ended.append(job["id"])

    async def leave():
        adapter = RunPodAdapter(service, answer)
        stream = adapter.stream({"id": "a", "input": {}})
        assert (await anext(stream))["event"] == "queued"
        assert isinstance(stream, AsyncGenerator)
        await stream.aclose()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert adapter.streamed == {}

    asyncio.run(leave())
    assert ended == ["a"]


def test_a_stream_whose_job_is_stopped_before_its_first_step_says_so(service):
    async def stop():
        adapter = RunPodAdapter(service, lambda *_: asyncio.sleep(3600))
        stream = adapter.stream({"id": "a", "input": {}})
        first = asyncio.create_task(anext(stream))
        await asyncio.sleep(0)
        adapter.streamed["a"].cancel()
        assert (await first)["code"] == "cancelled"

    asyncio.run(stop())


def test_jobs_are_asked_for_again_when_a_job_shows_how_long_it_takes_to_prepare(service):
    async def take():
        adapter = RunPodAdapter(service, None)
        measured = (1.0, 0.0)
        adapter.backlog.add(["a", "b"])
        waiting = asyncio.create_task(adapter.backlog.wanted(lambda: measured))
        await asyncio.sleep(0)
        measured = (1.0, 3.0)
        adapter._note({"id": "a"}, Step(1, 4, 1.0))
        assert await asyncio.wait_for(waiting, 10) == 3
        adapter._note({"id": "a"}, Generated())
        assert await adapter.backlog.wanted(lambda: (1.0, 0.0)) == 1

    asyncio.run(take())


def test_a_job_that_has_not_begun_is_stopped_and_keeps_no_other_stop_waiting(service):
    async def stop():
        loop = QueueLoop(service, RunPodAdapter(service, None), {})
        job = {"id": "taken", "input": {}}
        loop.job_progress.add(job)
        await asyncio.wait_for(loop.stop_job("taken"), 10)  # comes back before the job begins
        task = loop.jobs_tasks["taken"] = asyncio.create_task(asyncio.sleep(3600))
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, 10)
        loop.job_progress.remove(job)

    asyncio.run(stop())


def test_progress_ends_with_the_job_also_where_a_message_is_slow(monkeypatch):
    messages = []

    async def handle(request):
        messages.append(json.loads(await request.text()))
        await asyncio.sleep(1.5)  # longer than the end waits for it
        return web.Response()

    async def run():
        app = web.Application()
        app.router.add_post("/{job}", handle)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        monkeypatch.setattr(rp_http, "JOB_DONE_URL", f"http://127.0.0.1:{runner.addresses[0][1]}/$ID?gpu=none")
        async with ClientSession() as session:
            progress = Progress(session, {"id": "a"})
            progress.notify(Queued(0))
            while not messages:
                await asyncio.sleep(0.01)
            progress.notify(Step(1, 4, 1.0))
            await progress.end()
            await asyncio.sleep(2)  # the message has come through, and the one after it would have
        await runner.cleanup()

    asyncio.run(run())
    assert [message["output"]["stage"] for message in messages] == ["queue"]


def test_progress_ends_though_it_is_stopped_while_a_message_is_slow():
    async def stop():
        progress = Progress(None, {"id": "a"})
        await progress._sending.acquire()
        ending = asyncio.create_task(progress.end())
        await asyncio.sleep(0)
        ending.cancel()
        await asyncio.gather(ending, progress._task, return_exceptions=True)
        assert progress._task.cancelled()

    asyncio.run(asyncio.wait_for(stop(), 10))
