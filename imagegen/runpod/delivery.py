"""An answer on its way to RunPod: tried again where the queue fails for a while, and given up after a bounded time."""

from __future__ import annotations

import asyncio

from aiohttp import ClientConnectionError, ClientError, ClientSession, ClientTimeout
from aiohttp_retry import ExponentialRetry, RetryClient

#: Seconds for one try, which may be 20 MB, and for all of them. The SDK's session would wait for 600 s a try.
TRY_SECONDS, TOTAL_SECONDS = 30.0, 120.0
#: A queue that is not there, or fails, may be back soon: the second try comes after 0.2 s, the next after 0.4 s and so
#: on to 30 s. What it refuses for good (413) is not tried again.
_RETRIES = ExponentialRetry(attempts=11, exceptions={ClientConnectionError, TimeoutError}, statuses={429})


async def deliver(session: ClientSession, url: str, data: str) -> None:
    """Posts an answer, a part of a stream or a message of progress to RunPod.

    Raises:
        ClientError: it was refused, or not taken within `TOTAL_SECONDS`. The SDK catches no other error: it would end
            the job's task, and with it a stream whose job then runs on for nobody.
    """
    client = RetryClient(client_session=session, retry_options=_RETRIES, raise_for_status=True)
    headers = {"charset": "utf-8", "Content-Type": "application/x-www-form-urlencoded"}  # as the SDK sends it
    try:
        async with asyncio.timeout(TOTAL_SECONDS):
            async with client.post(url, data=data, headers=headers, timeout=ClientTimeout(total=TRY_SECONDS)):
                pass  # its status is the answer
    except TimeoutError:
        raise ClientError(f"RunPod did not take it within {TOTAL_SECONDS:g} s") from None
