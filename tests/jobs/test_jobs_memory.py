"""What is kept of jobs is not in memory many times over, however many connections ask for it."""

from __future__ import annotations

import asyncio
import io
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import anyio
import httpx
from starlette.datastructures import State

from imagegen.engine.service import Service
from imagegen.jobs.jobs import Jobs
from imagegen.server import stored
from imagegen.server.stored import FileAnswer
from tests.server.conftest import serving
from tests.support import settings, until

JOB = {"prompt": "a red circle on a blue background", "num_inference_steps": 1, "width": 64, "height": 64}


def test_few_answers_are_read_for_one_caller_at_one_moment(monkeypatch):
    seen = []
    with serving(preload_models=False) as (url, service):
        answers, read = service.admission._answers, Jobs.answer

        async def counting(self, row):
            seen.append(answers.taken)
            return await read(self, row)

        monkeypatch.setattr(Jobs, "answer", counting)
        service.start().result()
        with httpx.Client(base_url=url, timeout=60) as client, ThreadPoolExecutor(12) as threads:
            job = client.post("/jobs", json=JOB).json()["id"]
            streams = list(threads.map(lambda _: client.get(f"/jobs/{job}/events").text, range(12)))
            again = client.post("/generate", json=JOB, headers={"Idempotency-Key": "a"}).json()
        assert all("event: done" in stream for stream in streams) and again["images"]
        assert len(seen) == 13 and max(seen) <= 2
        until(lambda: answers.taken == 0)


def test_a_client_that_has_not_read_what_was_sent_before_holds_nothing(monkeypatch):
    """Its previews may be unread for hours, and two of such clients would keep everybody from stored answers."""
    service = Service(settings())

    async def read_at_last():
        paused, row = True, object()
        jobs = SimpleNamespace(answer=lambda row: asyncio.sleep(0, row))
        state = State({"caller": "a", "is_paused": lambda: paused})
        app = SimpleNamespace(state=SimpleNamespace(service=service, jobs=jobs))
        waiting = asyncio.create_task(stored.answer(SimpleNamespace(state=state, app=app), row))
        await asyncio.sleep(0.05)
        assert (waiting.done(), service.admission._answers.taken) == (False, 0)
        paused = False
        assert await waiting is row
        assert service.admission._answers.taken == 1
        state.answer_sent()
        assert service.admission._answers.taken == 0

    monkeypatch.setattr(stored, "_LOOK", 0.01)
    try:
        asyncio.run(read_at_last())
    finally:
        service.close()


def test_a_file_is_sent_in_parts_of_which_the_last_says_that_it_is():
    async def messages():
        sent = []

        async def send(message):
            sent.append(message)

        answer = FileAnswer(io.BytesIO(bytes(1_000_000)), "image/png")
        assert answer.headers["content-length"] == "1000000"
        await answer({}, None, send)
        return sent[1:]

    parts = anyio.run(messages)
    sizes = [len(part["body"]) for part in parts]
    assert sum(sizes) == 1_000_000 and max(sizes) < 300_000
    assert [part["more_body"] for part in parts] == [True] * (len(parts) - 1) + [False]
