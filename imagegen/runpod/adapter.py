"""The handlers that RunPod's SDK calls: a job's answer, or its stream, while the queue loop learns what it needs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from functools import partial
from typing import Any

from aiohttp import ClientSession

from imagegen.contract.events import Event, Generated, Listener
from imagegen.engine.event_queue import EventQueue, event_fields
from imagegen.engine.service import Service
from imagegen.errors import Cancelled
from imagegen.runpod.backlog import Backlog
from imagegen.runpod.progress import Progress
from imagegen.runpod.stream_parts import previews_of_each, split

#: Runs a job of RunPod for a listener, with this many previews of each image; returns its output and never raises.
Answer = Callable[[dict[str, Any], Listener, int], Coroutine[Any, Any, dict[str, Any]]]


class RunPodAdapter:
    """The SDK's handlers: a job's answer, its progress, and its place in the backlog.

    Args:
        answer: runs a job and never raises.
    """

    def __init__(self, service: Service, answer: Answer) -> None:
        self._service, self._answer = service, answer
        self.backlog = Backlog()
        #: The jobs behind the streams that are sent.
        self.streamed: dict[str, asyncio.Future[dict[str, Any]]] = {}
        #: What the SDK is started with.
        self.config: dict[str, Any] = {
            "handler": self.stream if service.settings.stream else self.handler,
            "return_aggregate_stream": True,
            # A bound that is not meant to be reached: jobs whose answers are being sent count too. Set while idle.
            "concurrency_modifier": lambda _: service.settings.max_queue + 1,
        }
        #: The SDK's, once it runs. Its API on this machine has none, and nobody to send progress to.
        self.session: ClientSession | None = None

    async def handler(self, job: dict[str, Any]) -> dict[str, Any]:
        """One job's output."""
        if self.session is None or not self._service.settings.progress:
            return await self._answer(job, partial(self._note, job), 0)
        progress = Progress(self.session, job)

        def listen(event: Event) -> None:
            self._note(job, event)
            progress.notify(event)

        try:
            return await self._answer(job, listen, 0)
        finally:
            await progress.end()

    async def stream(self, job: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """One job's events, with previews; the last is `done` and holds the output. None is over RunPod's megabyte:
        larger images come before it in parts, to be joined by those who read them. The job ends with its stream."""
        queue = EventQueue()

        def listen(event: Event) -> None:
            self._note(job, event)
            queue.listen(event)

        task = asyncio.ensure_future(self._answer(job, listen, previews_of_each(job.get("input"))))
        self.streamed[job["id"]] = task
        try:
            async for event in queue.follow(task):
                name, fields = await event_fields(event, job["id"])
                yield {"event": name, **fields}
        except asyncio.CancelledError:
            task.cancel()  # its output says so
        except BaseException:  # whoever sends the stream has given up
            task.cancel()
            raise
        finally:
            del self.streamed[job["id"]]
        await asyncio.wait({task})
        # It never began where it was stopped before its first step.
        output = Cancelled("the job was cancelled").output() if task.cancelled() else task.result()
        if "error" not in output:
            for part in split(output):
                yield part
            output = {"event": "done", **output}
        elif output.get("refresh_worker"):
            self.config["refresh_worker"] = True  # of a stream's error the SDK sends the message alone
        yield output

    def _note(self, job: dict[str, Any], event: Event) -> None:
        if isinstance(event, Generated):
            self.backlog.release(job["id"])
        else:
            self.backlog.wake()
