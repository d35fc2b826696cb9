"""A job that is watched, and its end when nobody does."""

import asyncio
import time

import httpx
import pytest

from imagegen.contract.events import Step
from imagegen.contract.responses import EditResponse
from imagegen.engine.event_queue import EventQueue
from imagegen.jobs.events import Signal
from imagegen.server import streams
from tests.server.conftest import events, shows
from tests.support import until
from tests.support.images import scene, to_base64

PROMPT = {"prompt": "a red circle on a blue background", "seed": 42}
#: Steps until a worker has noticed that its client is gone, on a machine that is busy: far fewer than the 400 of LONG.
FEW = 50
LONG = {"prompt": "x", "num_inference_steps": 50, "num_images": 8, "width": 512, "height": 512}
RED_ON_BLUE = scene("circle", "red", "blue")


def test_the_stream_tells_what_happens(client):
    body = {"prompt": "make the background green", "image": to_base64(RED_ON_BLUE), "seed": 1}
    with client.stream("POST", "/edit", json=body, headers={"Accept": "text/event-stream"}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        seen = list(events(answer))
    assert [name for name, _ in seen] == ["queued", "references", *["step"] * 4, "drawn", "done"]
    assert seen[0][1] == {"id": answer.headers["x-request-id"], "place": 0}
    assert [(data["step"], data["total"]) for name, data in seen if name == "step"] == [(i, 4) for i in range(1, 5)]
    assert all("preview" not in data and data["seconds_left"] >= 0 for name, data in seen if name == "step")
    assert EditResponse.model_validate(seen[-1][1]).images == client.post("/edit", json=body).json()["images"]


def test_previews_show_the_image_forming(client):
    with client.stream(
        "POST", "/generate", json=PROMPT, params={"previews": "true"}, headers={"Accept": "text/event-stream"}
    ) as answer:
        previews = [data["preview"] for name, data in events(answer) if name == "step" and "preview" in data]
    assert len(previews) == 3  # the last step is the picture
    assert shows(previews[-1]) == ("blue", "red")


def test_an_error_in_a_stream(client):
    stream = {"Accept": "text/event-stream"}
    with client.stream("POST", "/edit", json={**PROMPT, "image": "rubbish!"}, headers=stream) as answer:
        name, error = list(events(answer))[-1]
    assert (name, error["code"], error["field"]) == ("error", "bad_reference", "images[0]")
    assert client.post("/generate", json={}, headers=stream).status_code == 422  # before the stream has begun


@pytest.fixture
def steps(ready):
    """Counts the calls of the transformer: one for each step."""
    calls = []
    hook = ready[1].start().result()._pipe.transformer.register_forward_pre_hook(lambda *_: calls.append(1))
    yield calls
    hook.remove()


def settled(steps):
    """The number of steps, once there are no more."""
    before = -1
    while before != len(steps):
        before = len(steps)
        time.sleep(0.5)
    return before


def test_delete_cancels_a_job(client, steps):
    with client.stream("POST", "/generate", json=LONG, headers={"Accept": "text/event-stream"}) as answer:
        stream = events(answer)
        _, queued = next(stream)
        while len(steps) < 2:
            next(stream)
        assert client.delete(f"/jobs/{queued['id']}").json() == {"id": queued["id"], "status": "cancelled"}
        ran = len(steps)
        name, error = list(stream)[-1]
    assert (name, error["code"]) == ("error", "cancelled")
    assert settled(steps) <= ran + 1
    assert client.delete(f"/jobs/{queued['id']}").status_code == 404


def test_a_client_that_goes_away_stops_its_stream(client, steps):
    with client.stream("POST", "/generate", json=LONG, headers={"Accept": "text/event-stream"}) as answer:
        stream = events(answer)
        while len(steps) < 3:
            next(stream)
    ran = len(steps)
    assert settled(steps) < ran + FEW
    assert client.post("/generate", json=PROMPT).status_code == 200


def test_a_client_that_goes_away_stops_its_previews(client, steps):
    headers, params = {"Accept": "text/event-stream"}, {"previews": "true"}
    for _ in range(8):
        before = len(steps)
        job = {**LONG, "num_images": 1, "width": 256, "height": 256}
        with client.stream("POST", "/generate", json=job, params=params, headers=headers) as answer:
            stream = events(answer)
            while len(steps) < before + 3:
                next(stream)
        ran = len(steps)
        assert settled(steps) < ran + FEW // 2  # of 50


@pytest.mark.parametrize("rounds", range(8))
def test_nothing_goes_on_after_a_stream_whose_client_leaves_just_as_something_happens(rounds):
    """What went on took the permit for a stored answer when its job ended, and nobody was left to give it back."""

    async def leave():
        moved, gone, told = Signal(), asyncio.Event(), asyncio.Event()

        async def body():
            while True:
                await moved.wait(60)
                yield ": it moved\n\n"

        async def receive():
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            told.set()

        before = asyncio.all_tasks()
        answer = streams.EventStream(body())({"type": "http"}, receive, send)
        answering = asyncio.create_task(answer)
        await told.wait()
        await asyncio.sleep(0.01)  # by then it waits for what happens
        gone.set()
        for _ in range(rounds):  # of the event loop, until the disconnect has come as far
            await asyncio.sleep(0)
        moved.fire()
        await answering
        return asyncio.all_tasks() - before

    assert asyncio.run(leave()) == set()


def test_an_answer_that_is_the_connections_is_given_back_though_the_client_does_not_read_it():
    """Its client may take hours, and two of them would keep everybody from stored answers."""

    async def read_slowly():
        written, given_back, reads = [], [], asyncio.Event()

        async def body():
            yield "the answer"

        async def receive():
            await asyncio.sleep(60)

        async def send(message):  # as uvicorn, which waits for what was written before
            if written and written[-1].get("body"):
                await reads.wait()
            written.append(message)

        scope = {"type": "http", "state": {"answer_sent": lambda: given_back.append(len(written))}}
        answering = asyncio.create_task(streams.EventStream(body())(scope, receive, send))
        await asyncio.sleep(0.05)
        assert (answering.done(), given_back) == (False, [2])  # the head and the answer
        reads.set()
        await answering

    asyncio.run(read_slowly())


def test_all_images_of_openais_stream_are_the_connections_at_once(client, monkeypatch):
    sent, events = [], streams.EventStream._events

    async def recorded(self):
        async for event in events(self):
            sent.append(event)
            yield event

    monkeypatch.setattr(streams.EventStream, "_events", recorded)
    client.post("/v1/images/generations", json={**PROMPT, "n": 3, "size": "64x64", "stream": True})
    assert [event.count("event: image_generation.completed") for event in sent if "completed" in event] == [3]


def test_a_client_that_stops_reading_keeps_few_previews():
    async def pile():
        queue = EventQueue()
        for step in range(50):
            queue.listen(Step(step + 1, 50, 0.0, scene("circle", "red", "blue")))
        task = asyncio.create_task(asyncio.sleep(0))
        return [event async for event in queue.follow(task)]

    seen = asyncio.run(pile())
    assert [event.step for event in seen] == list(range(1, 51))  # every step is told
    assert [event.step for event in seen if event.preview] == list(range(43, 51))  # the last eight are shown


def test_a_client_that_goes_away_stops_its_job(client, steps):
    with pytest.raises(httpx.ReadTimeout):
        client.post("/generate", json=LONG, timeout=1)
    ran = len(steps)
    assert settled(steps) < ran + FEW
    assert client.post("/generate", json=PROMPT).status_code == 200


@pytest.mark.parametrize("path", ["/generate", "/v1/images/generations"])
def test_a_stream_is_never_silent_for_long_and_never_buffered(client, ready, monkeypatch, path):
    monkeypatch.setattr(streams, "COMMENT_SECONDS", 0.02)
    lines = []

    def comments():
        return sum(line.startswith(":") for line in lines)

    def hold(*_):
        """Each step lasts until a comment has arrived during it."""
        before = comments()
        until(lambda: comments() > before)

    hook = ready[1].start().result()._pipe.transformer.register_forward_pre_hook(hold)
    try:
        body = {**PROMPT, **({"stream": True} if "v1" in path else {})}
        with client.stream("POST", path, json=body, headers={"Accept": "text/event-stream"}) as answer:
            assert answer.headers["x-accel-buffering"] == "no"
            for line in answer.iter_lines():
                lines.append(line)
    finally:
        hook.remove()
    assert comments() >= 4
    assert any(line.startswith("data: ") for line in lines)
