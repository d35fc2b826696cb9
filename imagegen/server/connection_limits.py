"""How many connections the HTTP server may have."""

from __future__ import annotations

import ipaddress
import resource

from imagegen.settings import Settings


class Limits:
    """How many connections there may be at one time.

    Args:
        settings: of the process; each waiting job needs a connection.
    """

    def __init__(self, settings: Settings) -> None:
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        wanted = max(512, 2 * settings.max_queue)
        self.total = wanted if files == resource.RLIM_INFINITY else max(16, min(wanted, files // 2))
        #: Those at work for one caller, from however many addresses.
        self.per_caller = self.total - self.total // 4
        #: A trusted proxy brings many clients from one address, and is limited by the total alone.
        self.per_address = self.total // 2
        self._proxies = [ipaddress.ip_network(proxy) for proxy in settings.proxies]

    def of(self, address: str) -> int:
        """The most connections from this peer."""
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            return self.total  # a Unix socket
        return self.total if any(parsed in proxy for proxy in self._proxies) else self.per_address
