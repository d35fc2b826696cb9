"""A reference's http(s) URL -> its bytes, for the event loop: beside the GPU, and without a thread that could hang.

The URL is untrusted. Each hop is checked anew: its scheme, its port, its host against the operator's list, and each
address when a socket is opened for it (`imagegen.inputs.connections`). One deadline covers names, connections,
redirects and every byte; the cap counts bytes as they come out of gzip.

What the server says of its content is not believed: the bytes go the same way as base64. An error says what was refused
and repeats nothing of the URL, which may hold a signature. Until a host has answered with HTTP there is one error for
all that may be wrong: an unknown or a private name, a closed, a silent or another protocol's port. It must not be a map
of anybody's network.

RunPod's SDK has `rp_ssrf` for this. It is not used, since it takes no address check but its own, which lets embedded
addresses pass; since its timeout is for one read, so that a server that drips holds a thread for ever; since a variable
of the environment switches it off; and since importing it costs a second.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from urllib.parse import urljoin

import aiohttp
from yarl import URL

from imagegen.errors import BadReference, PayloadTooLarge
from imagegen.inputs import addresses, connections, urls
from imagegen.settings import Settings

#: Redirects that are followed.
_REDIRECTS = 5
_CHUNK = 65_536
_HEADERS = {"Accept": "image/png, image/jpeg, image/webp, */*;q=0.5", "Accept-Encoding": "identity"}


async def fetch(url: str, field: str, settings: Settings, schemes: Collection[str] = urls.SCHEMES) -> bytes:
    """The bytes behind a URL.

    Args:
        url: as it came.
        field: its name in errors, such as "images[0]".
        settings: whether and from where, how long, how many bytes.
        schemes: those that it and its redirects may have.

    Raises:
        PayloadTooLarge: it has more bytes than a reference may.
        BadReference: it is refused, cannot be reached, or is not there in time.
    """
    if not settings.fetch_urls:
        raise BadReference(f"{field}: URLs are not fetched here; send base64 or a data: URI", field)
    hop = _Hop()
    try:
        async with asyncio.timeout(settings.url_timeout):
            for _ in range(_REDIRECTS + 1):
                hop = _Hop()
                answer = await hop.get(_check(url, field, settings, schemes), field, settings)
                if isinstance(answer, bytes):
                    return answer
                url = answer
        raise BadReference(f"{field}: is redirected too often; {_REDIRECTS} redirects are allowed", field)
    except aiohttp.ClientConnectorCertificateError:
        raise BadReference(f"{field}: no secure connection could be made to its host", field) from None
    except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
        if not hop.answered:
            cause = f"its host has no public address, or no web server that answers within {settings.url_timeout:g} s"
        elif isinstance(error, TimeoutError):
            cause = f"did not arrive within {settings.url_timeout:g} s"
        else:
            cause = "its host did not send a whole answer"
        raise BadReference(f"{field}: {cause}", field) from None


def _check(text: str, field: str, settings: Settings, schemes: Collection[str]) -> URL:
    """A URL that a reference may have, its addresses aside."""
    url = urls.check(text, field, settings.private_hosts, BadReference, schemes)
    if settings.url_hosts and not addresses.named(str(url.raw_host), url.port, settings.url_hosts):
        raise BadReference(f"{field}: nothing is fetched from this host; the operator has a list", field)
    return url


class _Hop:
    """One URL of a chain of redirects."""

    def __init__(self) -> None:
        #: Whether its host has begun to answer with HTTP.
        self.answered = False

    async def get(self, url: URL, field: str, settings: Settings) -> bytes | str:
        """What the URL answers: bytes, or where else to look."""
        limit = int(settings.max_reference_mb * 1e6)
        trusted = addresses.named(str(url.raw_host), url.port, settings.private_hosts)
        patience = aiohttp.ClientTimeout(total=None)  # `fetch` has one for all hops
        async with (
            connections.turn(str(url.raw_host), trusted),
            connections.open_session(trusted, patience, _HEADERS, decompress=True) as session,
            session.get(url, allow_redirects=False) as response,
        ):
            self.answered = True
            if response.status in (301, 302, 303, 307, 308):
                return urljoin(str(url), response.headers.get("Location", ""))
            if response.status != 200:
                raise BadReference(f"{field}: its host answered {response.status}, and not 200", field)
            data = bytearray()
            if (response.content_length or 0) <= limit:
                async for chunk in response.content.iter_chunked(_CHUNK):
                    data += chunk
                    if len(data) > limit:
                        break
                else:
                    return bytes(data)
            response.close()
            raise PayloadTooLarge(f"{field}: is over {limit / 1e6:g} MB, which are allowed", field)
