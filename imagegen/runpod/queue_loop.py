"""The SDK's loop over RunPod's queue, so that the GPU never waits and no job that was taken is lost.

The loop is the SDK's (runpod 1.12, `rp_scale.JobScaler`); what it does not do is added here:

- Full, it sleeps for a second before it asks for jobs again; and a change of its concurrency first drains the worker.
  Here its concurrency is a bound that is never reached, and a job is asked for as soon as the GPU is about to need it:
  one runs, and behind it half a second of work is ready, and more where jobs take long to prepare (references). No
  more is taken from other workers.
- A job that arrives while SIGTERM ends the worker would be taken, never run and never answered. Here the open request
  for jobs ends first, and what it brought is run.
- A stop that comes before its job has begun would be forgotten.
- An error of the queue would be answered by asking again at once, without end.
- After the GPU has died it would go on taking jobs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from aiohttp import ClientSession
from runpod.serverless.modules import rp_scale

from imagegen.engine.service import Service
from imagegen.runpod.adapter import RunPodAdapter

T = TypeVar("T")

#: How long the open request for jobs may still bring some after SIGTERM: RunPod may have sent one before it knew.
_LAST_JOBS_SECONDS = 2.0
#: The SDK's own bound for one request.
_TAKE_SECONDS = 90.0
#: Between two looks whether this worker must be replaced, where no job ends.
_WATCH_SECONDS = 1.0
#: Before the queue is asked again after an error.
_RETRY_SECONDS = 1.0


class QueueLoop(rp_scale.JobScaler):
    """The SDK's loop, with what the module says."""

    jobs_fetcher: Callable[[ClientSession, int], Awaitable[list[dict[str, Any]] | None]]
    stop_signals_fetcher: Callable[[ClientSession], Awaitable[list[str]]]

    def __init__(self, service: Service, adapter: RunPodAdapter, config: dict[str, Any]) -> None:
        super().__init__(config)
        self._service, self._adapter, self._backlog = service, adapter, adapter.backlog
        self._take, self._stops = self.jobs_fetcher, self.stop_signals_fetcher
        self.jobs_fetcher, self.stop_signals_fetcher = self._take_wanted, self._stops_until_shutdown
        self.jobs_fetcher_timeout = None  # it would bound the wait for the GPU; a request has a bound of its own
        self._all_taken = asyncio.Event()
        self._stopping: set[asyncio.Task[bool]] = set()

    async def get_jobs(self, session: ClientSession) -> None:
        """Takes jobs until shutdown."""
        self._adapter.session = session
        watching = asyncio.create_task(self._end_if_fatal())
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
            if self._service.fatal is not None:
                self.kill_worker()

    async def stop_job(self, job_id: str) -> bool:
        """Stops a job, one that has been taken and not begun too; does not wait for it, so that stops of other jobs
        are not kept waiting."""
        stopping = asyncio.create_task(self._stop_when_begun(job_id))
        self._stopping.add(stopping)
        stopping.add_done_callback(self._stopping.discard)
        return True

    async def _stop_when_begun(self, job_id: str) -> bool:
        while job_id not in self.jobs_tasks and self.job_progress.get(job_id) is not None:  # noqa: ASYNC110 - the SDK's
            await asyncio.sleep(0.02)
        await asyncio.sleep(0)  # a task that is cancelled before its first step never answers, and is never forgotten
        if (streamed := self._adapter.streamed.get(job_id)) is not None:
            # The SDK may be sending a part of the stream: a cancelled task of its own would not reach the job.
            return streamed.cancel()
        stopped: bool = await super().stop_job(job_id)
        return stopped

    async def _end_if_fatal(self) -> None:
        """Ends the worker once it must be replaced, also where no job is left to see it."""
        while self._service.fatal is None:  # noqa: ASYNC110 - another thread finds it
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
            jobs = await self._until_shutdown(self._take_in_time(session, min(count, most)), _LAST_JOBS_SECONDS)
        except Exception:
            await self._until_shutdown(asyncio.sleep(_RETRY_SECONDS))
            raise
        self._backlog.add([job["id"] for job in jobs or []])
        return jobs

    async def _take_in_time(self, session: ClientSession, count: int) -> list[dict[str, Any]] | None:
        async with asyncio.timeout(_TAKE_SECONDS):
            return await self._take(session, count)

    async def _stops_until_shutdown(self, session: ClientSession) -> list[str]:
        return await self._until_shutdown(self._stops(session)) or []

    async def _until_shutdown(self, work: Awaitable[T], grace: float = 0) -> T | None:
        """The result of `work`; None where the worker is to end and there is none `grace` seconds later."""
        task, shutdown = asyncio.ensure_future(work), asyncio.ensure_future(self._shutdown_event.wait())
        try:
            await asyncio.wait({task, shutdown}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                await asyncio.wait({task}, timeout=grace)
            return task.result() if task.done() else None
        finally:
            task.cancel()
            shutdown.cancel()
