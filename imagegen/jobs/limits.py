"""What one key may have of the server in a time: requests a minute, megapixels a day. Kept with the jobs, so that a
restart does not give it anew."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from imagegen.contract.requests import Request, plan
from imagegen.contract.responses import GenerateResponse
from imagegen.engine.service import Service
from imagegen.errors import ImageGenError, LimitExceeded, StoreFailed
from imagegen.jobs.archive import Archive, megapixels_of
from imagegen.jobs.keys import Keys
from imagegen.jobs.store import DAY, DAYS_MEGAPIXELS

log = logging.getLogger(__name__)

#: Seconds of each limit's window, which begins at a multiple of it since 1970, in UTC.
_WINDOWS = {"requests_per_minute": 60, DAYS_MEGAPIXELS: DAY}


@dataclass(frozen=True)
class Reserved:
    """Megapixels that were counted before they were made, and when the day began for which they were."""

    megapixels: float = 0.0
    day: int = 0


class KeyLimits:
    """The limits of the keys."""

    def __init__(self, archive: Archive, keys: Keys, service: Service) -> None:
        self._archive, self.keys, self._service = archive, keys, service
        #: Corrections of what was counted that are under way.
        self.settling: set[asyncio.Task[None]] = set()

    async def count_request(self, name: str) -> None:
        """One more request that asks for images.

        Raises:
            LimitExceeded: the key has had as many as it may in this minute.
        """
        key = self.keys.get(name)
        if key is not None and key.requests_per_minute is not None:
            await self._take(name, "requests_per_minute", 1, key.requests_per_minute)

    async def reserve(self, name: str, request: Request) -> Reserved:
        """Takes the megapixels that a job will have, as far as that is known before its references are read; an edit
        counts as one of the model's own size. What comes of it is known to `settle`.

        Raises:
            LimitExceeded: they are more than the key has left today.
        """
        key = self.keys.get(name)
        if key is None or key.megapixels_per_day is None or self._service.spec is None:
            return Reserved()
        planned = plan(request, self._service.spec, None, 0)
        megapixels = planned.width * planned.height * len(planned.seeds) / 1e6
        return Reserved(megapixels, await self._take(name, DAYS_MEGAPIXELS, megapixels, key.megapixels_per_day))

    async def settle(self, name: str, reserved: Reserved, answer: GenerateResponse | None) -> None:
        """Counts the megapixels that a job of a connection has had in place of those that were reserved; none where it
        failed. Where the store fails, those that were reserved stay counted: no image is worth less than its count."""
        if not reserved.megapixels:
            return
        had = 0.0 if answer is None else megapixels_of(answer)
        change = had - reserved.megapixels
        try:
            await self._archive.rows(self._archive.store.use, name, DAYS_MEGAPIXELS, reserved.day, change, None)
        except StoreFailed:
            log.warning("%.6g megapixels of the key %s stay counted that were reserved", reserved.megapixels, name)

    async def counted(
        self, name: str, request: Request, work: Coroutine[Any, Any, GenerateResponse]
    ) -> GenerateResponse:
        """Runs a job of a connection within its key's limits; what was reserved is settled whenever a client leaves."""
        reserving, answer = asyncio.create_task(self.reserve(name, request)), None
        try:
            await asyncio.shield(reserving)
            answer = await work
            return answer
        finally:
            work.close()  # where it has not begun
            settling = asyncio.create_task(self._settle(name, reserving, answer))
            self.settling.add(settling)
            settling.add_done_callback(self.settling.discard)
            await asyncio.shield(settling)

    async def _settle(self, name: str, reserving: asyncio.Task[Reserved], answer: GenerateResponse | None) -> None:
        with suppress(ImageGenError):  # nothing was reserved
            await self.settle(name, await reserving, answer)

    async def _take(self, name: str, limit: str, amount: float, most: float) -> int:
        """Counts an amount; returns when the window began in which it was counted."""
        window = _WINDOWS[limit]
        now = await self._archive.rows(self._archive.store.now)  # of all servers that share the counts
        start = int(now) // window * window
        had = await self._archive.rows(self._archive.store.use, name, limit, start, amount, most)
        if had is not None:
            seconds = max(1, math.ceil(start + window - now))
            raise LimitExceeded(
                f"{limit}: this key has had {had:.6g} of the {most:g} that are allowed; try again in {seconds} s",
                limit,
                retry_after=seconds,
            )
        return start
