"""Takes jobs from the store into the engine, a few at a time, and stores what comes of them."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import Counter
from contextlib import suppress

from imagegen import logs
from imagegen.contract.requests import Request
from imagegen.contract.responses import GenerateResponse
from imagegen.engine.service import Service
from imagegen.errors import Cancelled, GpuFailed, ImageGenError, NotReady, StoreFailed, internal
from imagegen.jobs.archive import Archive
from imagegen.jobs.events import Log, Signal
from imagegen.jobs.rows import Row
from imagegen.telemetry import tracing

log = logging.getLogger(__name__)

#: Owners without a job in the engine may have one there beside the jobs that keep it busy: theirs is next then.
_NEWCOMERS = 2
#: Starts after which a job counts as what ends the process, and is begun no more.
MAX_STARTS = 10
#: Seconds between two looks for a job, and between two tries to store an answer on a full disk.
_PAUSE = 1.0
#: Seconds between two tries to read a job's references: a minute in all.
_READ_AGAIN = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
#: Seconds between two signs of life.
_BEAT = 5.0
#: Turns of owners that are remembered.
_MAX_TURNS = 10_000


class Runner:
    """Runs the jobs of an archive.

    Args:
        moved: fired whenever a job begins or ends.
    """

    def __init__(self, archive: Archive, service: Service, moved: Signal) -> None:
        self._archive, self._service, self._moved = archive, service, moved
        #: Of the jobs that run here, by id.
        self.logs: dict[str, Log] = {}
        self._tasks: dict[str, asyncio.Task[GenerateResponse]] = {}
        self._works: set[asyncio.Task[None]] = set()
        #: Those of them that another process has taken over, or cancelled: they are no longer this one's to end.
        self._gone: set[str] = set()
        self._running: Counter[str] = Counter()
        self._turns: dict[str, int] = {}
        self._turn = 0
        self._more = Signal()
        self._ending = False
        self._not_before = 0.0
        self._loaded = False

    def wake(self) -> None:
        """There may be a job to begin."""
        self._more.fire()

    @property
    def running(self) -> int:
        """How many jobs run here."""
        return self._running.total()

    async def run(self) -> None:
        """Begins jobs as they can be run; until it is cancelled."""
        while True:
            try:
                while self._may_begin() and (row := await self._next()) is not None:
                    self._begin(row)
            except StoreFailed:
                await asyncio.sleep(_PAUSE)
            await self._more.wait(_PAUSE)

    async def beat(self) -> None:
        """For a store that other processes share: says that this one is alive, takes over the jobs of those that are
        not, and stops those that another has cancelled; until it is cancelled."""
        while True:
            with suppress(StoreFailed):  # it is logged, and tried again
                known = set(self._tasks)
                mine = await self._archive.rows(self._archive.store.beat)
                for job in known - mine:
                    if self.cancel(job):
                        self._gone.add(job)
                if await self._archive.rows(self._archive.store.recover, True):
                    self.wake()
            await asyncio.sleep(_BEAT)

    def has_begun(self, job: str) -> bool:
        """Whether a job that the store says is running is known here: for a moment after it was claimed it is not."""
        return job in self.logs

    def cancel(self, job: str) -> bool:
        """Stops a job that runs here; False where it is past that: its images are being stored."""
        task = self._tasks.get(job)
        return task is not None and task.cancel()

    async def close(self, patience: float) -> None:
        """Waits for the jobs that run; those that do not end are begun again by the next process.

        Args:
            patience: seconds.
        """
        if self._works:
            await asyncio.wait(self._works, timeout=patience)
        self._ending = True
        for work in self._works:
            work.cancel()
        await asyncio.gather(*self._works, return_exceptions=True)

    def _may_begin(self) -> bool:
        ready = time.monotonic() >= self._not_before
        return ready and not self._service.admission.draining and self._service.fatal is None

    async def _next(self) -> Row | None:
        if not self._loaded:
            if not await self._archive.rows(self._archive.store.waiting):
                return None
            # A job is begun once the model is there, so that it is no job's fault if the process ends before. One that
            # cannot be loaded is told to the job.
            with suppress(Exception):
                await asyncio.shield(asyncio.wrap_future(self._service.start()))
                self._loaded = True
        most = self._service.runner.jobs_at_once
        if self.running >= most + _NEWCOMERS:
            return None
        newcomers = self.running >= most
        claiming = asyncio.create_task(
            self._archive.rows(self._archive.store.claim, self._running, self._turns, newcomers)
        )
        try:
            return await asyncio.shield(claiming)
        except asyncio.CancelledError:  # the server ends; what is claimed is for the next one
            with suppress(StoreFailed):  # that one finds it where the store fails
                if (row := await claiming) is not None:
                    await self._archive.rows(self._archive.store.put_back, row.id, False)
            raise

    def _begin(self, row: Row) -> None:
        self._turn += 1
        self._turns.pop(row.owner, None)
        self._turns[row.owner] = self._turn
        if len(self._turns) > _MAX_TURNS:
            del self._turns[next(iter(self._turns))]
        self._running[row.owner] += 1
        self.logs[row.id] = Log()
        task = self._tasks[row.id] = asyncio.create_task(self._generate(row))
        work = asyncio.create_task(self._work(row, task))
        self._works.add(work)
        work.add_done_callback(self._works.discard)

    async def _work(self, row: Row, task: asyncio.Task[GenerateResponse]) -> None:
        """One start of a job, from the store to the store."""
        self._moved.fire()
        try:
            await self._run(row, task)
        finally:
            task.cancel()
            self._gone.discard(row.id)
            self._running -= Counter([row.owner])  # which drops zeros
            self.logs.pop(row.id).moved.fire()
            self._moved.fire()
            self._more.fire()

    async def _run(self, row: Row, task: asyncio.Task[GenerateResponse]) -> None:
        try:
            try:
                answer = await task
            finally:
                del self._tasks[row.id]
        except NotReady as error:  # the process is about to end, or the model cannot be loaded for now
            self._not_before = time.monotonic() + (error.retry_after or _PAUSE)
            await self._put_back(row)
        except asyncio.CancelledError:
            if self._ending:
                raise
            if row.id in self._gone:
                return
            await self._fail(row, Cancelled("the job was cancelled"))
        except ImageGenError as error:
            await self._fail(row, error)
        except Exception as error:  # noqa: BLE001 - a bug is told, with an id that is in the log
            await self._fail(row, internal(error))
        else:
            await self._save(row, answer)

    async def _generate(self, row: Row) -> GenerateResponse:
        with (
            logs.request(row.id, path="/jobs", caller=row.owner),
            tracing.request("job", tracing.carrier(row.trace), "consumer"),
        ):
            if row.starts > MAX_STARTS:
                raise GpuFailed(f"the worker ended {MAX_STARTS} times while it ran this job")
            return await self._service.run(
                await self._request_of(row),
                caller=row.owner,
                job_id=row.id,
                default_seed=row.seed,
                stored=True,
                listener=self.logs[row.id].listen,
                previews=row.previews,
            )

    async def _request_of(self, row: Row) -> Request:
        """A job's request. References that cannot be read are tried again: a disk that is away may come back, and where
        servers share it a file may be seen late."""
        for seconds in _READ_AGAIN:
            with suppress(StoreFailed):  # it is logged
                return await self._archive.request_of(row)
            await asyncio.sleep(seconds)
        return await self._archive.request_of(row)

    async def _save(self, row: Row, answer: GenerateResponse) -> None:
        """Stores an answer, however long the disk is full: it is not generated again for that."""
        events = self.logs[row.id].to_json()
        while True:
            try:
                await self._archive.save(row, answer, events)
                return
            except StoreFailed:
                await asyncio.sleep(_PAUSE)
                with suppress(StoreFailed):  # it is logged, and tried again
                    await self._archive.make_room()

    async def _put_back(self, row: Row) -> None:
        """The job waits again; it has not begun."""
        while True:
            try:
                await self._archive.rows(self._archive.store.put_back, row.id, False)
                return
            except StoreFailed:
                await asyncio.sleep(_PAUSE)

    async def _fail(self, row: Row, error: ImageGenError) -> None:
        if self._service.fatal is not None and row.starts <= MAX_STARTS and self._archive.outlives:
            # The process is about to end, and the next one may be able to do the job. Where the store fails too, that
            # one finds a job that was running.
            with suppress(StoreFailed):
                await self._archive.rows(self._archive.store.put_back, row.id, True)
            return
        state = "cancelled" if isinstance(error, Cancelled) else "failed"
        events = self.logs[row.id].to_json()
        while True:
            try:
                await self._archive.end(row, state, error=json.dumps(error.body()), events=events)
                return
            except StoreFailed:
                await asyncio.sleep(_PAUSE)
