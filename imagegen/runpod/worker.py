"""RunPod's queue, worked off through the SDK so that the GPU never waits and no job that was taken is lost.

The loop is the SDK's (runpod 1.12, `rp_scale.JobScaler`); what it does not do is added here:

- Full, it sleeps for a second before it asks for jobs again; and a change of its concurrency first drains the worker.
  Here its concurrency is a bound that is never reached, and a job is asked for as soon as the GPU is about to need it:
  one runs, and behind it half a second of work is ready, and more where jobs take long to get ready (references). No
  more is taken from other workers.
- It hands an answer in three times within three seconds, and then drops it. Here it is tried for two minutes.
- A job that arrives while SIGTERM ends the worker would be taken, never run and never answered. Here the open request
  for jobs ends first, and what it brought is run.
- A stop that comes before its job has begun would be forgotten.
- An error of the queue would be answered by asking again at once, without end.
- After a dead card it would go on taking jobs.
"""

from __future__ import annotations

import asyncio
import logging
import math
import multiprocessing
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

import runpod
from aiohttp import ClientConnectionError, ClientSession
from aiohttp_retry import ExponentialRetry, RetryClient
from runpod.serverless.modules import rp_http, rp_scale
from runpod.serverless.modules.rp_http import send_result

from imagegen.contract.events import Drawn, Event, Listener, Queued, References, Step
from imagegen.engine.event_queue import EventQueue, event_fields
from imagegen.engine.service import Service
from imagegen.errors import ConfigurationError

T = TypeVar("T")
#: Runs a job of RunPod for a listener, with this many previews of each picture; returns its output and never raises.
Answer = Callable[[dict[str, Any], Listener, int], Coroutine[Any, Any, dict[str, Any]]]

log = logging.getLogger(__name__)

#: Seconds of the GPU's work that are kept ready: a request for jobs, and what is done to one before the GPU, take less.
_READY_SECONDS = 0.5
#: References may take longer than this to arrive; for more, no jobs are taken ahead.
_MOST_PREPARING_SECONDS = 5.0
#: How long the open request for jobs may still bring some after SIGTERM: RunPod may have sent one before it knew.
_LAST_JOBS_SECONDS = 2.0
#: The SDK's own bound for one request.
_TAKE_SECONDS = 90.0
#: A queue that is not there, or fails, may be back in two minutes: 11 times, after 0.2 s, 0.4 s and so on to 30 s. What
#: it refuses for good (413) is not tried again.
_PATIENCE = ExponentialRetry(attempts=11, exceptions={ClientConnectionError, TimeoutError}, statuses={429})
#: How often the card is looked at where no job waits for it.
_WATCH_SECONDS = 1.0
#: Before the queue is asked again after an error.
_RETRY_SECONDS = 1.0
#: Between two messages of a job's progress; a job that takes less sends none.
_PROGRESS_SECONDS = 1.0
_STAGES: dict[type, str] = {Queued: "queue", References: "references", Drawn: "deliver"}
#: Previews of a job in its stream.
_PREVIEWS = 8
#: Characters of a picture in one message of a stream, of which RunPod takes a megabyte.
_CHUNK = 900_000


class Backlog:
    """The jobs that were taken and have not left the GPU."""

    def __init__(self) -> None:
        self._jobs: set[str] = set()
        self._changed = asyncio.Event()

    def add(self, job_ids: list[str]) -> None:
        """These were taken."""
        self._jobs.update(job_ids)

    def release(self, job_id: str) -> None:
        """This one does not need the GPU any more; told twice of a job does no harm."""
        self._jobs.discard(job_id)
        self._changed.set()

    async def wanted(self, measured: Callable[[], tuple[float, float]]) -> int:
        """Waits until the GPU is about to need jobs, and says how many.

        Args:
            measured: seconds that a job takes lately on the GPU, 0 before the first, and until it is ready for it.
        """
        while (count := jobs_to_request(len(self._jobs), *measured())) <= 0:
            self._changed.clear()
            await self._changed.wait()
        return count


def jobs_to_request(taken: int, gpu_seconds: float, prepare_seconds: float) -> int:
    """Jobs to ask for, `taken` not having left the GPU: one runs, half a second of work waits for it, and behind that
    are those that are getting ready meanwhile.

    Args:
        gpu_seconds: seconds of a job on the GPU, 0 where that is not known.
        prepare_seconds: seconds that pass before a job is ready for the GPU: its references are fetched and decoded.
    """
    ahead = _READY_SECONDS + min(prepare_seconds, _MOST_PREPARING_SECONDS)
    return 1 + (math.ceil(ahead / gpu_seconds) if gpu_seconds else 1) - taken


class QueueLoop(rp_scale.JobScaler):
    """The SDK's loop over RunPod's queue."""

    jobs_fetcher: Callable[[ClientSession, int], Awaitable[list[dict[str, Any]] | None]]
    stop_signals_fetcher: Callable[[ClientSession], Awaitable[list[str]]]

    def __init__(self, service: Service, adapter: RunPodAdapter, config: dict[str, Any]) -> None:
        super().__init__(config)
        self._service, self._adapter, self._backlog = service, adapter, adapter.backlog
        self._take, self._stops = self.jobs_fetcher, self.stop_signals_fetcher
        self.jobs_fetcher, self.stop_signals_fetcher = self._take_wanted, self._stops_until_shutdown
        self.jobs_fetcher_timeout = None  # of the waiting for the GPU; a request has a bound of its own
        self._all_taken = asyncio.Event()

    async def get_jobs(self, session: ClientSession) -> None:
        """Takes jobs until shutdown."""
        self._adapter.session = session
        watching = asyncio.create_task(self._end_if_dead())
        try:
            await super().get_jobs(session)
        finally:
            watching.cancel()
            self._all_taken.set()

    async def run_jobs(self, session: ClientSession) -> None:
        """Runs jobs until shutdown, and then those that the last request still brought."""
        await super().run_jobs(session)
        await self._all_taken.wait()
        await super().run_jobs(session)

    async def handle_job(self, session: ClientSession, job: dict[str, Any]) -> None:
        """Runs one job and answers it."""
        try:
            await super().handle_job(session, job)
        finally:
            self._backlog.release(job["id"])
            if self._service.executor.dead is not None:
                self.kill_worker()

    async def stop_job(self, job_id: str) -> bool:
        """Stops a job, one that has been taken and not begun too."""
        while job_id not in self.jobs_tasks and self.job_progress.get(job_id) is not None:  # noqa: ASYNC110 - the SDK's
            await asyncio.sleep(0.02)
        await asyncio.sleep(0)  # a task that is cancelled before its first step never answers, and is never forgotten
        if (streamed := self._adapter.streamed.get(job_id)) is not None:
            # The SDK may be sending a part of the stream: what it is told then never reaches the job.
            return streamed.cancel()
        stopped: bool = await super().stop_job(job_id)
        return stopped

    async def _end_if_dead(self) -> None:
        """Ends the worker once its card is dead, also where no job is left to see it."""
        while self._service.executor.dead is None:  # noqa: ASYNC110 - another thread finds it dead
            await asyncio.sleep(_WATCH_SECONDS)
        self.kill_worker()

    async def _take_wanted(self, session: ClientSession, most: int) -> list[dict[str, Any]] | None:
        service = self._service
        count = await self._until_shutdown(
            self._backlog.wanted(lambda: (service.executor.mean_gpu_seconds, service.runner.mean_prepare_seconds))
        )
        if count is None or not self.is_alive():
            return None
        try:
            take = asyncio.wait_for(self._take(session, min(count, most)), _TAKE_SECONDS)
            jobs = await self._until_shutdown(take, _LAST_JOBS_SECONDS)
        except Exception:
            await self._until_shutdown(asyncio.sleep(_RETRY_SECONDS))
            raise
        self._backlog.add([job["id"] for job in jobs or []])
        return jobs

    async def _stops_until_shutdown(self, session: ClientSession) -> list[str]:
        return await self._until_shutdown(self._stops(session)) or []

    async def _until_shutdown(self, work: Awaitable[T], grace: float = 0) -> T | None:
        """What `work` gives; None where the worker is to end and `grace` seconds later nothing has come."""
        task, shutdown = asyncio.ensure_future(work), asyncio.ensure_future(self._shutdown_event.wait())
        try:
            await asyncio.wait({task, shutdown}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                await asyncio.wait({task}, timeout=grace)
            return task.result() if task.done() else None
        finally:
            task.cancel()
            shutdown.cancel()


class Progress:
    """Tells RunPod once a second how far a job is, one message at a time and none after the answer.

    The SDK's own `progress_update` starts a thread for each message, which can arrive after the result.
    """

    def __init__(self, session: ClientSession, job: dict[str, Any]) -> None:
        self._session, self._job = session, job
        self._news: dict[str, Any] | None = None
        self._sending = asyncio.Lock()
        self._task = asyncio.create_task(self._run())

    def tell(self, event: Event) -> None:
        """The newest of what happens."""
        if isinstance(event, Step):
            self._news = {"stage": "denoise", "step": event.step, "total": event.total}
            self._news["seconds_left"] = event.seconds_left
        else:
            self._news = {"stage": _STAGES[type(event)]}

    async def end(self) -> None:
        """No more messages; one that is under way has a second to arrive."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._sending.acquire(), _PROGRESS_SECONDS)
        self._task.cancel()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(_PROGRESS_SECONDS)
            async with self._sending:
                if self._news is not None:
                    message, self._news = self._news, None
                    try:
                        await send_result(self._session, {"status": "IN_PROGRESS", "output": message}, self._job)
                    except Exception as error:  # noqa: BLE001 - an answer does not depend on it
                        log.warning(
                            "job %s: its progress could not be sent (%s)", self._job["id"], type(error).__name__
                        )


class RunPodAdapter:
    """The SDK's handlers: a job's answer, its progress, and its place in the backlog.

    Args:
        answer: runs a job and never raises; told of a listener and of how many previews it wants.
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
        #: The SDK's, once it runs; its API on this machine has none, and nobody to tell of progress.
        self.session: ClientSession | None = None

    async def handler(self, job: dict[str, Any]) -> dict[str, Any]:
        """One job's output."""
        if self.session is None or not self._service.settings.progress:
            return await self._answer(job, partial(self._note, job), 0)
        progress = Progress(self.session, job)

        def listen(event: Event) -> None:
            self._note(job, event)
            progress.tell(event)

        try:
            return await self._answer(job, listen, 0)
        finally:
            await progress.end()

    async def stream(self, job: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """One job's events, with previews; the last is `done` and holds the output. None is over RunPod's megabyte:
        larger pictures come before it in parts, to be joined by those who read them."""
        queue = EventQueue()

        def listen(event: Event) -> None:
            self._note(job, event)
            queue.listen(event)

        task = asyncio.ensure_future(self._answer(job, listen, _previews(job.get("input"))))
        self.streamed[job["id"]] = task
        try:
            async for event in queue.follow(task):
                name, fields = await event_fields(event, job["id"])
                yield {"event": name, **fields}
        except asyncio.CancelledError:
            task.cancel()  # its output says so
        finally:
            del self.streamed[job["id"]]
        output = await task
        if "error" not in output:
            for part in split(output):
                yield part
            output = {"event": "done", **output}
        elif output.get("refresh_worker"):
            self.config["refresh_worker"] = True  # of a stream's error the SDK sends the words alone
        yield output

    def _note(self, job: dict[str, Any], event: Event) -> None:
        if isinstance(event, Drawn):
            self.backlog.release(job["id"])


def _previews(job_input: Any) -> int:
    """How often a stream shows each picture of a job, for `_PREVIEWS` of them in all."""
    fields = job_input if isinstance(job_input, dict) else {}
    fields = theirs if isinstance(theirs := fields.get("openai_input"), dict) else fields
    count = fields.get("n") or fields.get("num_images") or 1
    return max(1, _PREVIEWS // count) if isinstance(count, int) and count > 0 else 1


def split(output: dict[str, Any]) -> list[dict[str, Any]]:
    """Takes the pictures out of an output, OpenAI's too, where they are too large for one message, and returns them in
    parts."""
    theirs = [picture for picture in output.get("data", []) if "b64_json" in picture]
    images = [picture["b64_json"] for picture in theirs] or output.get("images", [])
    if sum(map(len, images)) <= _CHUNK:
        return []
    for picture in theirs:
        picture["b64_json"] = ""
    if "images" in output:
        output["images"] = []
    return [
        {"event": "image", "index": i, "part": start // _CHUNK, "data": image[start : start + _CHUNK]}
        for i, image in enumerate(images)
        for start in range(0, len(image), _CHUNK)
    ]


async def deliver(session: ClientSession, url: str, data: str) -> None:
    """Posts an answer, a part of a stream or a message of progress to RunPod, with patience.

    Raises:
        ClientError: it was refused, or could not be handed in.
    """
    client = RetryClient(client_session=session, retry_options=_PATIENCE, raise_for_status=True)
    headers = {"charset": "utf-8", "Content-Type": "application/x-www-form-urlencoded"}  # as the SDK sends it
    async with client.post(url, data=data, headers=headers) as response:
        await response.text()


def run(service: Service, answer: Answer) -> int:
    """Works off RunPod's queue, or serves its API on this machine (`--rp_serve_api`), until the process is to end.

    Returns:
        The exit status. (Where the model cannot be loaded, the SDK ends the process with status 1.)
    """
    settings = service.settings
    adapter = RunPodAdapter(service, answer)
    rp_scale.JobScaler = partial(QueueLoop, service, adapter)
    rp_http._transmit = deliver
    if settings.preload_models and settings.queue_url is not None:

        async def model() -> None:
            await asyncio.wrap_future(service.start())

        runpod.serverless.register_fitness_check(model)
    elif settings.preload_models:
        try:
            service.start().result()
        except ConfigurationError as error:
            log.error("%s", error)
            return 1
    runpod.serverless.start(adapter.config)
    if service.executor.dead is None:
        return 0
    log.error("%s", service.executor.dead)
    # Its thread may hang in the card for good, and the heartbeat, a process of its own, would go on.
    for process in multiprocessing.active_children():
        process.terminate()
    logging.shutdown()
    os._exit(1)
