"""Messages to RunPod about how far a job is."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import Any

from aiohttp import ClientSession
from runpod.serverless.modules.rp_http import send_result

from imagegen.contract.events import Event, Generated, Queued, References, Step

log = logging.getLogger(__name__)

#: Between two messages of a job; one that takes less sends none.
_SECONDS = 1.0
_STAGES: dict[type, str] = {Queued: "queue", References: "references", Generated: "deliver"}


class Progress:
    """Sends RunPod the newest event of a job once a second, one message at a time and none after the answer.

    The SDK's own `progress_update` starts a thread for each message, which can arrive after the result.
    """

    def __init__(self, session: ClientSession, job: dict[str, Any]) -> None:
        self._session, self._job = session, job
        self._newest: dict[str, Any] | None = None
        self._sending = asyncio.Lock()
        self._task = asyncio.create_task(self._run())

    def notify(self, event: Event) -> None:
        """The newest event."""
        if isinstance(event, Step):
            self._newest = {"stage": "denoise", "step": event.step, "total": event.total}
            self._newest["seconds_left"] = event.seconds_left
        else:
            self._newest = {"stage": _STAGES[type(event)]}

    async def end(self) -> None:
        """No more messages; one that is under way has a second to arrive."""
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(_SECONDS):
                    await self._sending.acquire()
        finally:
            self._task.cancel()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(_SECONDS)
            async with self._sending:
                if self._newest is not None:
                    message, self._newest = self._newest, None
                    try:
                        await send_result(self._session, {"status": "IN_PROGRESS", "output": message}, self._job)
                    except Exception as error:  # noqa: BLE001 - an answer does not depend on it
                        job_id = self._job["id"]
                        log.warning("job %s: its progress could not be sent (%s)", job_id, type(error).__name__)
