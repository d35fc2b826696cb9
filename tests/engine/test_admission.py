"""Which jobs are taken, and what one caller may have of the worker."""

import asyncio
import threading
from concurrent.futures import Future
from contextlib import AsyncExitStack

import httpx
import pytest

from imagegen.contract.events import Generated
from imagegen.contract.requests import parse_job
from imagegen.engine import admission
from imagegen.engine.service import Service
from imagegen.errors import NotReady, Overloaded
from tests.server.conftest import serving
from tests.support import settings, until
from tests.support.images import scene, to_base64
from tests.support.slow_store import slow_store

PROMPT = "a red circle on a blue background"
LONG = {"prompt": "x", "num_inference_steps": 50, "num_images": 8, "width": 512, "height": 512}


@pytest.fixture
def idle():
    """A service that never loads anything, of four places: three for one caller."""
    service = Service(settings(max_queue=3, max_body_mb=1))
    yield service
    service.close()


def test_one_caller_cannot_take_every_place(idle):
    mine = [idle.upload("a") for _ in range(3)]
    with pytest.raises(Overloaded, match="queue: this caller has 3 jobs here already, and 3 are allowed"):
        idle.upload("a")
    other = idle.upload("b")
    with pytest.raises(Overloaded, match="queue: 0 jobs wait already; try again in 1 s") as caught:
        idle.upload("c")
    assert caught.value.retry_after == 1
    for upload in (*mine, other):
        upload.release()
        upload.release()
    assert idle.admission._places.taken == 0
    outcomes = idle.metrics.text().decode()
    assert 'imagegen_jobs_total{mode="unknown",outcome="overloaded"} 2.0' in outcomes


def test_bodies_of_one_caller_are_bounded_in_bytes_and_leave_room_for_others(idle):
    half = idle.upload("a", 2_000_000)
    with pytest.raises(Overloaded, match="body: more than 2 MB of this caller would be on their way"):
        idle.upload("a", 1)
    other = idle.upload("b", 1_000_000)
    other.received(1_000_000)  # what was announced costs nothing more
    other.received(1_000_000)
    with pytest.raises(Overloaded, match="2 MB of this caller"):
        other.received(1)
    with pytest.raises(Overloaded, match="4 MB in all"):
        idle.upload("c", 1)
    half.done()  # read, and not decoded yet: its bytes are here
    with pytest.raises(Overloaded):
        idle.upload("a", 1)
    half.release()
    other.release()
    idle.upload("c", 2_000_000).release()
    assert idle.admission._upload_bytes.taken == idle.admission._places.taken == 0


def test_a_worker_that_ends_takes_no_job(idle):
    idle.drain()
    with pytest.raises(NotReady, match="the worker is ending"):
        idle.upload("a")
    with pytest.raises(NotReady, match="the worker is ending"):
        asyncio.run(idle.run(parse_job({"prompt": PROMPT})))


def test_a_worker_that_ends_waits_a_moment_for_references(idle, monkeypatch):
    """So that an image that is made to be slow, or a server that drips, does not hold the end."""
    monkeypatch.setattr(admission, "_LAST_READING_SECONDS", 0.5)

    async def read(seconds):
        async with idle.admission.reading():
            await asyncio.sleep(seconds)

    async def end():
        before = asyncio.create_task(read(600))
        quick = asyncio.create_task(read(0.001))
        await asyncio.sleep(0)
        idle.drain()
        return await asyncio.gather(before, quick, read(600), return_exceptions=True)

    outcomes = asyncio.run(asyncio.wait_for(end(), 300))
    assert [type(outcome) for outcome in outcomes] == [NotReady, type(None), NotReady]


def test_a_decoder_whose_job_was_given_up_counts_until_it_ends(idle):
    """Else a caller that goes away at once would have all of them."""

    async def use():
        slow, slots = Future(), idle.admission._decoders
        slow.set_running_or_notify_cancel()
        waiting = asyncio.create_task(idle.admission.decode("a", lambda: slow))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert slots.taken == 1
        slow.set_result(None)
        for _ in range(3):
            await asyncio.sleep(0)
        assert slots.taken == 0

    asyncio.run(use())


def test_a_decoder_that_cannot_be_started_takes_none(idle):
    def start():
        raise RuntimeError("can't start new thread")

    with pytest.raises(RuntimeError, match="new thread"):
        asyncio.run(idle.admission.decode("a", start))
    assert idle.admission._decoders.taken == 0


def test_an_answer_that_is_sent_is_given_back_once(idle):
    async def send():
        sent, other = await idle.admission.answer("a"), await idle.admission.answer("b")
        sent()
        sent()
        assert idle.admission._answers.taken == 1
        other()

    asyncio.run(send())


def test_downloads_of_one_caller_leave_room_for_others(idle):
    async def use():
        async with AsyncExitStack() as held:
            for _ in range(8):
                await held.enter_async_context(idle.admission.download("a"))
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(held.enter_async_context(idle.admission.download("a")), 0.01)
            await held.enter_async_context(idle.admission.download("b"))

    asyncio.run(use())


def test_the_references_of_a_job_are_let_go_of_once_they_are_decoded(service):
    request = parse_job({"prompt": "x", "images": [to_base64(scene("circle", "red", "blue"))] * 2})
    upload = service.upload("a", 1000)
    seen = []

    def listen(event):
        seen.append((type(event).__name__, service.admission._upload_bytes.taken))

    assert asyncio.run(service.run(request, caller="a", upload=upload, listener=listen)).images
    assert request.images == ["", ""]
    assert seen[0] == ("Queued", 1000)
    assert seen[-1] == ("Generated", 0)


def test_a_body_that_is_no_job_leaves_nothing_behind():
    with serving(max_queue=1, max_body_mb=1) as (url, service):
        service.start().result()
        for body in (b"{", b"[]", b'{"prompt": ""}', b'{"prompt": "x", "image": "!"}'):
            assert httpx.post(f"{url}/generate", content=body, headers={"Content-Type": "application/json"}).is_error
        answer = httpx.post(f"{url}/generate", json={"prompt": "x"}, headers={"Accept": "image/gif"})
        assert answer.status_code == 422  # after the body was read
        until(lambda: service.admission._places.taken == service.admission._upload_bytes.taken == 0)
        assert httpx.post(f"{url}/generate", json={"prompt": PROMPT}, timeout=60).status_code == 200


def test_a_caller_with_everything_delays_another_by_what_is_running(service):
    async def both():
        order = []

        async def job(caller, i):
            fields = {"prompt": "x", "num_inference_steps": 20, "seed": i, "width": 64, "height": 64}

            def listen(event):
                if isinstance(event, Generated):
                    order.append(caller)

            await service.run(parse_job(fields), caller=caller, listener=listen)

        greedy = [asyncio.create_task(job("a", i)) for i in range(8)]
        while service.executor._moved is None:
            await asyncio.sleep(0.005)
        other = asyncio.create_task(job("b", 0))
        while "b" not in service.executor._ready._items:
            await asyncio.sleep(0.005)
        come.set()
        await asyncio.gather(*greedy, other)
        return order

    come = threading.Event()  # the first job goes on once b's is there
    hook = service.start().result()._pipe.transformer.register_forward_pre_hook(lambda *_: come.wait(60) and None)
    try:
        assert asyncio.run(both()).index("b") == 1
    finally:
        hook.remove()


def test_a_delivery_that_is_slow_keeps_no_job_from_the_gpu(monkeypatch):
    for name in ("_SECONDS", "_CONNECT_SECONDS", "_READ_SECONDS"):  # a busy machine is no fault of the store
        monkeypatch.setattr(f"imagegen.outputs.upload.{name}", 500)
    with slow_store() as (store, arrived, release):
        service = Service(settings(max_queue=1, **store))
        service.start().result()

        async def jobs():
            stored = [asyncio.create_task(service.run(parse_job({"prompt": "x", "delivery": "url"}))) for _ in range(2)]
            while len(arrived) < 2:
                await asyncio.sleep(0.01)
            assert service.health().status == "ready"
            answer = await service.run(parse_job({"prompt": PROMPT}))
            assert not any(task.done() for task in stored)
            release.set()
            await asyncio.gather(*stored)
            return answer

        try:
            assert asyncio.run(jobs()).images
        finally:
            release.set()
            service.close()


def test_what_waits_for_delivery_is_bounded_for_one_caller():
    service = Service(settings())
    largest = service.admission._delivery.total / 4
    held = threading.Event()

    async def hold():
        async with service.admission.delivery("a", int(largest * 2e6)):
            waiting = asyncio.create_task(enter("a"))
            await enter("b")
            await asyncio.sleep(0)
            assert not held.is_set()
        await waiting
        assert held.is_set()

    async def enter(caller):
        async with service.admission.delivery(caller, int(largest * 1e6)):
            if caller == "a":
                held.set()

    asyncio.run(hold())
    service.close()
