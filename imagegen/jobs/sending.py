"""One try to deliver a webhook."""

from __future__ import annotations

import asyncio
from datetime import datetime

import aiohttp
from standardwebhooks import Webhook
from yarl import URL

from imagegen.inputs import addresses, connections


def sign(secret: str, identity: str, moment: datetime, body: str) -> dict[str, str]:
    """The headers of a webhook, with its signature.

    Args:
        secret: whsec_ and base64.
        identity: the same at each try.
        moment: of this try, in UTC.
    """
    return {
        "Content-Type": "application/json",
        "webhook-id": identity,
        "webhook-timestamp": str(int(moment.timestamp())),
        "webhook-signature": Webhook(secret).sign(identity, moment, body),
    }


async def send(url: str, headers: dict[str, str], body: str, seconds: float, private_hosts: str) -> str | None:
    """Sends a webhook; None where it was taken, else why not.

    Args:
        seconds: for all of it.
        private_hosts: the operator's list of hosts that may have any address.
    """
    parsed = URL(url, encoded=url.isascii())
    host = str(parsed.raw_host)
    trusted = addresses.named(host, parsed.port, private_hosts)
    try:
        async with (
            asyncio.timeout(seconds),
            connections.turn(host, trusted),
            connections.open_session(trusted, aiohttp.ClientTimeout(total=None), headers) as session,
            session.post(parsed, data=body.encode(), allow_redirects=False) as response,
        ):
            status = response.status
            response.close()  # nothing of its body is wanted
    except aiohttp.ClientConnectorCertificateError:
        return "no secure connection could be made to its host"
    except (TimeoutError, aiohttp.ClientError, OSError, ValueError):
        return f"its host has no public address, or no web server that answers within {seconds:g} s"
    if 200 <= status < 300:
        return None
    if 300 <= status < 400:
        return f"its host answered {status}; redirects are not followed"
    return f"its host answered {status}, and not 2xx"
