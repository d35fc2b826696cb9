"""A reference's http(s) URL -> its bytes, for the event loop: beside the GPU, and without a thread that could hang.

The URL is a stranger's. Each hop is checked anew: its scheme, its host against the operator's list, and each address in
the moment in which a socket is opened for it, so that no answer of a name server can lead inside
(`imagegen.inputs.addresses`). One deadline covers names, connections, redirects and every byte; the cap counts bytes as
they come out of gzip. Proxies, cookies and .netrc of the environment are not used.

What the server says of its content is not believed: the bytes go the same way as base64. An error says what was refused
and repeats nothing of the URL, which may hold a signature. Whether a name is unknown, leads inside, or does not answer
is one and the same error: it must not be a map of the network.

RunPod's SDK has `rp_ssrf` for this. It is not used, since it takes no address check but its own, which lets embedded
addresses pass; since its timeout is for one read, so that a server that drips holds a thread for ever; since a variable
of the environment switches it off; and since importing it costs a second.
"""

from __future__ import annotations

import asyncio
import re
import socket
from functools import partial
from typing import Any
from urllib.parse import urljoin

import aiohttp
from yarl import URL

from imagegen import __version__
from imagegen.errors import BadReference, PayloadTooLarge
from imagegen.inputs import addresses
from imagegen.settings import Settings

#: Redirects that are followed.
_REDIRECTS = 5
#: A presigned URL has about a thousand.
_MAX_URL = 8192
_CHUNK = 65_536
#: What RFC 3986 allows, and letters of other scripts; a space or a control character could end a line of a request.
_TEXT = re.compile(r"[!-~\u00a1-\U0010ffff]*")
#: A name, or an address without a zone.
_HOST = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*\.?|(?=[0-9a-f.]*:)[0-9a-f:.]+", re.IGNORECASE)
_HEADERS = {
    "User-Agent": f"image-gen/{__version__}",
    "Accept": "image/png, image/jpeg, image/webp",
    "Accept-Encoding": "identity",
}


async def fetch(url: str, field: str, settings: Settings) -> bytes:
    """The bytes behind a URL.

    Args:
        url: as it came.
        field: its name in errors, such as "images[0]".
        settings: whether and from where, how long, how many bytes.

    Raises:
        PayloadTooLarge: it has more bytes than a reference may.
        BadReference: it is refused, cannot be reached, or is not there in time.
    """
    if not settings.fetch_urls:
        raise BadReference(f"{field}: URLs are not fetched here; send base64 or a data: URI", field)
    try:
        async with asyncio.timeout(settings.url_timeout):
            for _ in range(_REDIRECTS + 1):
                answer = await _get(_check(url, field, settings), field, settings)
                if isinstance(answer, bytes):
                    return answer
                url = answer
        raise BadReference(f"{field}: is redirected too often; {_REDIRECTS} redirects are allowed", field)
    except TimeoutError:
        raise BadReference(f"{field}: did not arrive within {settings.url_timeout:g} s", field) from None
    except (aiohttp.ClientSSLError, aiohttp.ServerFingerprintMismatch):
        raise BadReference(f"{field}: no secure connection could be made to its host", field) from None
    except (aiohttp.ClientPayloadError, aiohttp.ClientResponseError):
        raise BadReference(f"{field}: its host did not send a whole answer", field) from None
    except (aiohttp.ClientError, OSError, ValueError):
        raise BadReference(f"{field}: its host has no public address, or does not answer", field) from None


def _check(text: str, field: str, settings: Settings) -> URL:
    """A URL that may be asked for, its addresses aside. It is not written anew: signatures cover how it is written."""
    try:
        if len(text) > _MAX_URL or not _TEXT.fullmatch(text):
            raise ValueError
        url = URL(text, encoded=text.isascii())
        if url.scheme not in ("http", "https"):
            raise BadReference(f"{field}: leads to another scheme; http and https are allowed", field)
        host, port = url.raw_host or "", url.port
        if not _HOST.fullmatch(host) or port is None:
            raise ValueError
    except (ValueError, TypeError):
        raise BadReference(f"{field}: is not a URL that can be fetched", field) from None
    if url.raw_user is not None or url.raw_password is not None:
        raise BadReference(f"{field}: a URL with a user's name or password is not fetched", field)
    if settings.url_hosts and not addresses.named(host, port, settings.url_hosts):
        raise BadReference(f"{field}: references are not fetched from this host; the operator has a list", field)
    return url


async def _get(url: URL, field: str, settings: Settings) -> bytes | str:
    """What one URL answers: bytes, or where else to look."""
    limit = int(settings.max_reference_mb * 1e6)
    trusted = addresses.named(str(url.raw_host), url.port, settings.private_hosts)
    connector = aiohttp.TCPConnector(
        socket_factory=partial(_open, trusted), resolver=resolver(), use_dns_cache=False, force_close=True
    )
    async with (
        aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None),  # `fetch` has one for all
            headers=_HEADERS,
        ) as session,
        session.get(url, allow_redirects=False) as response,
    ):
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


def resolver() -> aiohttp.abc.AbstractResolver:
    """Who is asked for a name's addresses: c-ares, whose questions can be given up, unlike the system's."""
    return aiohttp.resolver.DefaultResolver()


def _open(trusted: bool, info: tuple[Any, ...]) -> socket.socket:
    """A socket for an address that may be connected to; no other way leads to one."""
    family, kind, protocol, _, address = info
    addresses.check(address[0], trusted)
    return socket.socket(family, kind, protocol)
