"""Webhooks: the end of a job is told to its caller's URL, signed as the Standard Webhooks specification has it
(https://github.com/standard-webhooks/standard-webhooks, November 2026).

A delivery is tried until the receiver answers 2xx, for most of a day; what is due is in the store, so that a restart
loses no try. It may come twice, always with the same `webhook-id`. The URL is untrusted: its address is checked at each
try when the socket is opened, redirects are not followed, and nothing is read of an answer but its head.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from ipaddress import ip_address
from types import ModuleType
from typing import Any

from imagegen.errors import InvalidInput, StoreFailed
from imagegen.inputs import addresses, urls
from imagegen.job_settings import is_secret
from imagegen.jobs.archive import Archive
from imagegen.jobs.rows import Row
from imagegen.jobs.state import JobState
from imagegen.settings import Settings
from imagegen.telemetry import tracing
from imagegen.telemetry.metrics import Metrics

log = logging.getLogger(__name__)

#: Seconds from one try to the next, as the specification proposes them; after the last one it is given up: 17.6 hours.
DELAYS = (5.0, 60.0, 300.0, 1800.0, 7200.0, 18_000.0, 36_000.0)
#: Seconds for one try, names and connection included (the specification: 15 to 30).
_SECONDS = 15.0
#: Tries at one time, and of one caller's webhooks.
_AT_ONCE, _OF_AN_OWNER = 32, 4
#: Seconds between two looks for webhooks that are due.
_LOOK = 1.0


def check_url(url: Any, settings: Settings) -> str:
    """A webhook's URL.

    Raises:
        InvalidInput: it is none, or leads to an address that is not public.
    """
    field = "webhook_url"
    if not isinstance(url, str):
        raise InvalidInput(f"{field}: must be a string with a URL", field)
    parsed = urls.check(url, field, settings.private_hosts, InvalidInput)
    host = str(parsed.raw_host)
    try:
        ip_address(host)
    except ValueError:
        return url  # a name's addresses are checked at each try
    if not addresses.is_public(host) and not addresses.named(host, parsed.port, settings.private_hosts):
        raise InvalidInput(f"{field}: must have a public address", field)
    return url


def check_secret(secret: Any, settings: Settings) -> str:
    """A webhook's secret: the job's, else the operator's.

    Raises:
        InvalidInput: there is none, or it is not written as the specification has it.
    """
    field = "webhook_secret"
    if secret is None:
        if settings.webhook_secret is None:
            raise InvalidInput(f"{field}: is missing, and this server has none of its own", field)
        return settings.webhook_secret.get_secret_value()
    if not isinstance(secret, str) or not is_secret(secret):
        raise InvalidInput(f"{field}: must be whsec_ and 24 to 64 bytes in base64", field)
    return secret


class Webhooks:
    """Delivers the webhooks of an archive's jobs.

    Args:
        state: tells a job as its caller is told of it.
    """

    def __init__(
        self, archive: Archive, settings: Settings, metrics: Metrics, state: Callable[[Row], Awaitable[JobState]]
    ) -> None:
        self._archive, self._settings, self._metrics, self._state = archive, settings, metrics, state
        self._tries: dict[str, tuple[str, asyncio.Task[None]]] = {}

    async def run(self) -> None:
        """Delivers what is due; until it is cancelled."""
        try:
            while True:
                try:
                    await self._begin_due()
                except StoreFailed:
                    await asyncio.sleep(_LOOK)
                await asyncio.sleep(_LOOK)
        finally:
            for _, task in self._tries.values():
                task.cancel()

    async def _begin_due(self) -> None:
        lease = 2 * _SECONDS if self._archive.shared else 0.0
        due = await self._archive.rows(self._archive.deliveries.due, 2 * _OF_AN_OWNER, 2 * _AT_ONCE, lease)
        for row in due:
            mine = sum(owner == row.owner for owner, _ in self._tries.values())
            if row.id not in self._tries and mine < _OF_AN_OWNER and len(self._tries) < _AT_ONCE:
                task = asyncio.create_task(self._try(row))
                self._tries[row.id] = (row.owner, task)
                task.add_done_callback(lambda _, job=row.id: self._tries.pop(job))  # type: ignore[misc]

    async def _try(self, row: Row) -> None:
        sending = await asyncio.to_thread(_import_sending)
        state = await self._state(row)
        kind = f"job.{row.state}"
        now = datetime.now(UTC)
        content = state.model_dump(mode="json", exclude={"webhook"})
        body = json.dumps({"type": kind, "timestamp": now.isoformat(), "data": content})
        headers = sending.sign(row.webhook_secret, f"msg_{row.id}", now, body)
        with tracing.request("webhook", tracing.carrier(row.trace), "client") as span:
            headers |= span.headers
            error = await sending.send(str(row.webhook_url), headers, body, _SECONDS, self._settings.private_hosts)
            if error is not None:
                span.fail("not delivered")
        last = row.webhook_tries >= len(DELAYS)
        self._metrics.webhooks.labels("delivered" if error is None else "given_up" if last else "failed").inc()
        if error is None:
            await self._note(row, "delivered")
        elif not last:
            await self._note(row, "pending", error, DELAYS[row.webhook_tries])
        else:
            log.warning("the webhook of job %s was given up after %d tries", row.id, row.webhook_tries + 1)
            await self._note(row, "failed", error)

    async def _note(self, row: Row, state: str, error: str | None = None, delay: float | None = None) -> None:
        """Stores what came of a try, however long the store fails: the receiver is not asked again for that."""
        while True:
            try:
                await self._archive.rows(self._archive.deliveries.note, row.id, state, error, delay)
                return
            except StoreFailed:  # it is logged
                await asyncio.sleep(_LOOK)


def _import_sending() -> ModuleType:
    """In a thread, and with the first webhook: aiohttp takes half a second that no start has to wait for."""
    from imagegen.jobs import sending

    return sending
