"""The jobs of a server: what its routes may do with them."""

from __future__ import annotations

import asyncio
import json
import math
import re
import secrets
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any, BinaryIO

from imagegen.contract.events import Event, Queued
from imagegen.contract.given import is_given
from imagegen.contract.requests import Request, check, renamed
from imagegen.contract.responses import GenerateResponse
from imagegen.engine.service import Service
from imagegen.errors import Cancelled, Conflict, Expired, InvalidInput, NotFound, NotReady, StoreFailed
from imagegen.jobs import webhooks
from imagegen.jobs.archive import Archive
from imagegen.jobs.events import EVENTS_OF_A_START, Signal, from_json
from imagegen.jobs.keys import Keys
from imagegen.jobs.limits import KeyLimits
from imagegen.jobs.rows import OPEN, NewJob, Room, Row
from imagegen.jobs.runner import Runner
from imagegen.jobs.state import JobState, error_of, state_of
from imagegen.settings import Settings
from imagegen.telemetry import tracing

_ID = re.compile(r"[0-9a-f]{32}")
_KEY = re.compile(r"[!-~]([ -~]{0,253}[!-~])?")
_CANCELLED = json.dumps(Cancelled("the job was cancelled").body())
#: Seconds between two looks at a job that somebody waits for, where nothing tells of it.
_LOOK = 1.0
#: How often a job is looked at that was claimed and has not begun, and the seconds between: it begins in milliseconds.
_CLAIMED, _MOMENT = 100, 0.02
#: Seconds between two looks for jobs that have been kept long enough.
_HOUSEKEEPING = 60.0


class Jobs:
    """The jobs of one server. For the event loop's thread, but for its construction.

    Raises:
        ConfigurationError: their folder cannot be used.
    """

    def __init__(self, settings: Settings, service: Service) -> None:
        self._settings, self._service = settings, service
        self._archive = Archive(settings)
        #: Fired whenever a job begins, ends or is cancelled.
        self._moved = Signal()
        keys = Keys(settings)
        self.limits = KeyLimits(self._archive, keys, service)
        service.admission.limit_places(self._places_of)
        self._runner = Runner(self._archive, service, self._moved)
        self._webhooks = webhooks.Webhooks(self._archive, settings, service.metrics, self.state)
        self._tasks: list[asyncio.Task[None]] = []
        self._beat: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begins to run jobs, those that the last process left first."""
        works = [self._runner.run(), self._webhooks.run(), self._keep_house()]
        self._tasks = [asyncio.create_task(work) for work in works]
        if self._archive.shared:
            self._beat = asyncio.create_task(self._runner.beat())

    async def close(self) -> None:
        """Waits for the jobs that run; those that wait are for the next process, if there is a folder."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._runner.close(self._settings.timeout)
        if self._beat is not None:  # until now others would have taken the jobs that still ran here for left behind
            self._beat.cancel()
            await asyncio.gather(self._beat, return_exceptions=True)
        await asyncio.gather(*self.limits.settling, return_exceptions=True)
        await asyncio.to_thread(self._archive.close)

    async def add(
        self,
        request: Request,
        job_id: str,
        owner: str,
        *,
        previews: int = 0,
        hook: tuple[str, str] | None = None,
        key: str | None = None,
    ) -> Row:
        """Accepts a job; once this returns, it is done, whatever happens to this process.

        Args:
            job_id: 32 hexadecimal digits.
            owner: who may see it.
            hook: the URL to which its end is told, and the secret that signs it.
            key: the Idempotency-Key; the job that came with it before is returned.

        Raises:
            InvalidInput: the served model cannot do it; the key is none.
            IdempotencyKeyReuse: the key came with another body.
            NotReady, Overloaded, LimitExceeded, StoreFailed: no job is taken now.
        """
        if self._service.admission.draining:
            raise NotReady("the worker is ending; another will answer", retry_after=1)
        if key is not None and not _KEY.fullmatch(key):
            raise InvalidInput("Idempotency-Key: 1 to 255 printable ASCII characters are allowed", "Idempotency-Key")
        try:
            self._check(request)
        except InvalidInput as error:
            raise renamed(error, request.spoken) from None
        # Not given up halfway where the client goes away: its references would be gone, and its job there.
        return await asyncio.shield(self._accept(request, job_id, owner, previews, hook, key))

    def _check(self, request: Request) -> None:
        if self._service.spec is not None:
            check(request, self._service.spec, self._settings)
        if request.delivery == "url" and self._service.store is None:
            text = "delivery: 'url' needs an object store, and there is none; 'base64' is allowed"
            raise InvalidInput(text, "delivery")

    async def _accept(
        self, request: Request, job_id: str, owner: str, previews: int, hook: tuple[str, str] | None, key: str | None
    ) -> Row:
        named = None if key is None else (key, await self._archive.fingerprint(request, hook))
        if named is not None and (known := await self._archive.rows(self._archive.store.find, owner, *named)):
            return known
        key_of_owner = self.limits.keys.get(owner)
        reserved = await self.limits.reserve(owner, request)
        job = NewJob(
            job_id,
            owner,
            secrets.randbelow(2**32),
            priority=key_of_owner.priority if key_of_owner else 0,
            previews=previews,
            megapixels=reserved.megapixels,
            webhook_url=hook and hook[0],
            webhook_secret=hook and hook[1],
            trace=tracing.current(),
        )
        new = False
        try:
            row, new = await self._archive.add(job, request, self._room(owner), named)
        finally:
            if not new:
                await self.limits.settle(owner, reserved, None)
        self._runner.wake()
        return row

    def hook(self, url: Any, secret: Any, checked: bool = False) -> tuple[str, str] | None:
        """Where a job's end is told, and the secret that signs it; None where nothing is to be told.

        Args:
            checked: the secret is one that need not be as long as the specification asks for.

        Raises:
            InvalidInput: one of the two is not what it must be, or is missing.
        """
        url, secret = (value if is_given(value) else None for value in (url, secret))
        if url is None and secret is not None:
            raise InvalidInput("webhook_secret: needs a webhook_url", "webhook_secret")
        if url is None:
            return None
        url = webhooks.check_url(url, self._settings)
        return url, secret if checked and secret else webhooks.check_secret(secret, self._settings)

    async def get(self, job_id: str, owner: str | None = None) -> Row:
        """A job of this owner; None: of any.

        Raises:
            NotFound: there is none with this id, or it is another owner's.
        """
        row = await self._archive.rows(self._archive.store.get, job_id) if _ID.fullmatch(job_id) else None
        if row is None or owner not in (None, row.owner):
            raise NotFound("there is no such job")
        return row

    async def page(self, owner: str, limit: int, before: str | None) -> list[Row]:
        """An owner's jobs, the newest first.

        Args:
            before: the id of a job; only older ones.
        """
        seq = None if before is None else (await self.get(before, owner)).seq
        return await self._archive.rows(self._archive.store.page, owner, limit, seq)

    async def cancel(self, job_id: str, owner: str) -> Row:
        """Cancels a job that waits or runs, and forgets one that has ended; returns it as it was.

        Raises:
            NotFound: there is no such job.
            Expired: it is gone already.
            Conflict: its images are being stored.
        """
        row = await self.get(job_id, owner)
        for _ in range(_CLAIMED):
            if row.state != "running" or not self._archive.store.is_here(row) or self._runner.has_begun(job_id):
                break
            await asyncio.sleep(_MOMENT)
            row = await self.get(job_id, owner)
        if row.state == "expired":
            raise Expired("the job has expired")
        if row.state == "running" and self._archive.store.is_here(row):
            if not self._runner.cancel(job_id):
                raise Conflict("the job is ending; ask again")
        elif row.state in OPEN:  # one that runs elsewhere is stopped there
            if not await self._archive.end(row, "cancelled", error=_CANCELLED):
                return await self.cancel(job_id, owner)  # it was begun meanwhile
            self._moved.fire()
        else:
            await self._archive.forget(row)
        return row

    async def state(self, row: Row) -> JobState:
        """A job as its caller is told of it."""
        place = await self._place(row) if row.state == "queued" else None
        log = self._runner.logs.get(row.id)
        step = log.step if log is not None else None
        return state_of(row, self._settings.jobs_keep_hours * 3600, place, step, self._seconds_per_job)

    async def measure(self) -> None:
        """Brings the metrics of stored jobs up to date."""
        waiting = await self._archive.rows(self._archive.store.waiting)
        self._service.metrics.stored_waiting.set(sum(waiting.values()))
        self._service.metrics.stored_limit.set(self._settings.jobs_max_waiting)
        self._service.metrics.stored_bytes.set(self._archive.bytes)

    async def secret(self) -> str:
        """A secret of this server's jobs, for URLs that need no key; the same for as long as the jobs are kept."""
        return await self._archive.rows(self._archive.store.secret)

    async def image(self, row: Row, number: int) -> tuple[BinaryIO | str, str]:
        """An image of a job: its file, or the URL where it is; and its type, such as image/png.

        Raises:
            NotFound: the job has no image of this number.
            Conflict: it has none yet.
            Expired: it is gone.
        """
        if row.state == "expired":
            raise Expired("the job has expired")
        if row.state in OPEN:
            raise Conflict("the job has not ended yet")
        if row.state != "succeeded":
            raise NotFound(f"the job was not done ({row.state}); it has no images")
        answer = await self._archive.answer_of(row, images=False)
        kind = f"image/{answer.output_format}"
        if not 0 <= number < (len(answer.urls) or len(row.names)):
            raise NotFound("the job has no such image")
        if answer.urls:
            return answer.urls[number], kind
        return await self._archive.image(row, number), kind

    async def answer(self, row: Row) -> GenerateResponse:
        """The answer of a job that has ended.

        Raises:
            ImageGenError: that of the job, where it failed or was cancelled; Expired where it is gone.
        """
        if row.state == "expired":
            raise Expired("the job has expired")
        if row.result is None:
            raise error_of(row)
        return await self._archive.answer_of(row)

    async def ended(self, job_id: str, owner: str) -> Row:
        """Waits until a job has ended.

        Raises:
            NotReady: the process is about to end, and the next one will do the job.
        """
        while True:
            row = await self.get(job_id, owner)
            if row.state not in OPEN:
                return row
            if row.state == "queued" and self._service.admission.draining:
                raise NotReady("the worker is ending; ask again with the same Idempotency-Key", retry_after=5)
            await self._moved.wait(_LOOK)

    async def watch(self, job_id: str, owner: str, after: int = -1) -> AsyncIterator[tuple[int, Event]]:
        """A job's events with their numbers, from the beginning until it has ended. Those of a job that waits end early
        where the process is about to end.

        Args:
            after: only events with a higher number.
        """
        place: int | None = None
        while True:
            row = await self.get(job_id, owner)
            first = row.starts * EVENTS_OF_A_START + 1
            if (log := self._runner.logs.get(job_id)) is not None:
                sent, ended = max(0, after - first + 1), False
                while not ended:
                    ended = self._runner.logs.get(job_id) is not log
                    for event in log.events[sent:]:
                        sent += 1
                        after = first + sent - 1
                        yield after, event
                    if not ended:
                        await log.moved.wait(_LOOK)
                continue
            if row.state == "queued" and (ahead := await self._place(row)) != place:
                place = ahead
                yield first - 1, Queued(ahead)
            if row.state in OPEN:
                if self._service.admission.draining:
                    return
                await self._moved.wait(_LOOK)
                continue
            for number, event in enumerate(from_json(row.events), first):
                if number > after:
                    yield number, event
            return

    @staticmethod
    def last_event(row: Row) -> int:
        """The number of the event that is the answer of a job that has ended."""
        return (row.starts + 1) * EVENTS_OF_A_START - 1

    async def _place(self, row: Row) -> int:
        return await self._archive.rows(self._archive.store.place, row) + self._runner.running

    @property
    def _seconds_per_job(self) -> float:
        return self._service.executor.mean_gpu_seconds

    def _room(self, owner: str) -> Room:
        most, key = self._settings.jobs_max_waiting, self.limits.keys.get(owner)
        share = max(1, most - max(1, most // 4))
        if key is not None and key.jobs_waiting is not None:
            share = key.jobs_waiting
        return Room(most, share, max(1, math.ceil(self._seconds_per_job)), self._archive.limit * 3 // 4)

    def _places_of(self, caller: str) -> float | None:
        """Places of the engine that a key's jobs of connections may have: one that runs, and those that may wait."""
        key = self.limits.keys.get(caller)
        return None if key is None or key.jobs_waiting is None else key.jobs_waiting + 1

    async def _keep_house(self) -> None:
        """Lets jobs expire that are kept long enough."""
        while True:
            with suppress(StoreFailed):  # it is logged, and tried again
                await self._archive.make_room()
            await asyncio.sleep(_HOUSEKEEPING)
