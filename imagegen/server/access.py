"""Who may call the HTTP server: keys, hosts, origins of web pages, and what a wrong key costs."""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections import OrderedDict

from starlette.datastructures import Headers

from imagegen.errors import Forbidden, Overloaded, Unauthorized
from imagegen.jobs.keys import Keys
from imagegen.server.page import FILES_PATH
from imagegen.settings import Settings

#: What a load balancer asks for: answered without a key, and where there is room for no other connection.
HEALTH_PATHS = ("/health", "/ping")
#: Answered without a key, as are the page's files: the page asks for it itself.
OPEN_PATHS = ("/", *HEALTH_PATHS)
#: Answered to a signature in the URL.
SIGNED_PATH = "/v1/samples/"
#: Headers that hold a key, beside Authorization; the last one is BFL's.
_KEY_HEADERS = ("x-api-key", "x-key")
#: The delay of the answer to the first wrong key of an address, doubled with each further one, and its bound: seconds.
FIRST_DELAY, MAX_DELAY = 0.1, 5.0
#: Seconds without a wrong key after which an address begins anew.
_FORGET_SECONDS = 60.0
#: Answers that are delayed at one time for one address, and addresses that are remembered.
_MAX_DELAYED, _MAX_ADDRESSES = 8, 4096


def network_of(address: str) -> str:
    """An address as one caller: IPv4 as it is, IPv6 by its /64, which one customer of a provider has at least."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address or "unknown"
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, 64), strict=False))


class Access:
    """The rules of this server.

    Args:
        settings: of the process.
        keys: of the callers.
    """

    def __init__(self, settings: Settings, keys: Keys) -> None:
        self._keys = keys
        self._origins = _listed(settings.cors_origins)
        # DNS rebinding makes a browser call this server under the name of a foreign page. Where a key is needed the
        # page has none to send, and RunPod's load balancer asks for its own.
        protected = self._keys or settings.runpod_id
        self._hosts = _listed(settings.allowed_hosts) or (["*"] if protected else [])
        self._wrong: OrderedDict[str, _Wrong] = OrderedDict()

    def check_page(self, headers: Headers, method: str) -> None:
        """Refuses what a web page of somebody else makes a browser send.

        Raises:
            Forbidden: the Host header is not this server's, or the page's origin is not allowed.
        """
        hosts = headers.getlist("host")
        host = hosts[0].lower() if hosts else ""
        if len(hosts) > 1 or not self._is_ours(_name(host)):
            raise Forbidden(
                f"Host: {host[:100]!r} was received; IMAGEGEN_ALLOWED_HOSTS names the hosts that are allowed"
            )
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none").lower()
        if origin is None:
            # Following a link to the page is no call: the page that has the link learns nothing.
            link = method == "GET" and headers.get("sec-fetch-mode") == "navigate"
            foreign = site not in ("none", "same-origin") and not link
        else:
            foreign = origin.lower().partition("://")[2] != host  # it has no path (RFC 6454, 6.2)
        if foreign and "*" not in self._origins and (origin or "").lower() not in self._origins:
            received = f"Origin: {origin[:100]!r}" if origin else f"Sec-Fetch-Site: {site[:20]!r}"
            raise Forbidden(f"{received} was received; IMAGEGEN_CORS_ORIGINS names the origins that are allowed")

    async def authorize(self, headers: Headers, path: str, method: str, address: str) -> str | None:
        """The name of the key that was sent; None where none was needed.

        The answer to a wrong key waits, longer with each of this address. No key is no guess. A right key never waits,
        so that nobody can lock out others behind the same address: what protects a key is its length, and this keeps
        guesses from being cheap.

        Raises:
            Unauthorized: no key was sent, or a wrong one.
            Overloaded: many wrong keys of this address wait already.
        """
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = [token.strip() if scheme.lower() == "bearer" else "", *map(headers.get, _KEY_HEADERS)]
        if not self._keys:
            return None
        for one in filter(None, given):
            if (name := self._keys.name_of(one)) is not None:
                return name
        is_open = path in OPEN_PATHS or path.startswith((f"{FILES_PATH}/", SIGNED_PATH)) or method == "OPTIONS"
        if any(given) and (not is_open or path == "/health"):  # which says more to those who have a key
            await self._delay(address)
        if is_open:
            return None
        received = "a wrong key was received" if any(given) else "no key was received"
        raise Unauthorized(f"{received}; send the header Authorization: Bearer KEY, or X-API-Key: KEY")

    @property
    def needs_key(self) -> bool:
        """Whether there are keys."""
        return bool(self._keys)

    async def _delay(self, address: str) -> None:
        wrong = self._wrong.setdefault(address, _Wrong())
        self._wrong.move_to_end(address)
        while len(self._wrong) > _MAX_ADDRESSES:
            self._wrong.popitem(last=False)
        await wrong.delay()

    def _is_ours(self, name: str) -> bool:
        """Whether a request for this host is for us. Rebinding needs a name: an address cannot be given another."""
        if "*" in self._hosts or name in self._hosts or name == "localhost" or name.endswith(".localhost"):
            return True
        if any(host.startswith("*.") and name.endswith(host[1:]) for host in self._hosts):
            return True
        try:
            ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return not name  # HTTP/1.0 has none, and no browser speaks that
        return True


class _Wrong:
    """The wrong keys of one address."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._delayed = 0
        self._last = 0.0

    async def delay(self) -> None:
        now = time.monotonic()
        if now - self._last > _FORGET_SECONDS:
            self._seconds = 0.0
        self._last = now
        self._seconds = min(MAX_DELAY, self._seconds * 2 or FIRST_DELAY)
        if self._delayed >= _MAX_DELAYED:
            raise Overloaded("too many wrong keys were received from this address", retry_after=int(MAX_DELAY))
        self._delayed += 1
        try:
            await asyncio.sleep(self._seconds)
        finally:
            self._delayed -= 1


def _listed(text: str) -> list[str]:
    return [part.strip().lower() for part in text.split(",") if part.strip()]


def _name(host: str) -> str:
    """A Host header without its port."""
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdigit() else host
