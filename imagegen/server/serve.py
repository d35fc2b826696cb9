"""How uvicorn serves the application: every server of the project is made from this configuration."""

from __future__ import annotations

import ipaddress
import logging
import socket
from typing import Any

import uvicorn
from fastapi import FastAPI

from imagegen.server.protocol import Protocol
from imagegen.settings import Settings

log = logging.getLogger(__name__)

#: Connections that asyncio accepts at one time. It reads from them two rounds later, so three times as many must be
#: fewer than an address may have: else new ones take the places of those whose request has come and was not read yet.
_ACCEPTED = 64
#: Connections that the kernel keeps until they are accepted; a client that finds no place there tries again after 1 s.
_BACKLOG = 1024


class Server(uvicorn.Server):
    """uvicorn's server, where few connections are accepted at one time and many may wait for it."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listens. asyncio takes one number for both, so the kernel is told of the larger one afterwards."""
        await super().startup(sockets)
        for server in self.servers:
            for listening in server.sockets:
                with listening.dup() as same:
                    same.listen(_BACKLOG)


def uvicorn_config(app: FastAPI, settings: Settings, **options: Any) -> uvicorn.Config:
    """uvicorn's configuration for the application.

    Args:
        settings: of the process; says where to listen.
        options: uvicorn's, instead of these or beside them.
    """
    defaults: dict[str, Any] = {
        "host": settings.listen_host,
        "port": settings.port,
        "http": Protocol,
        "ws": "none",  # a WebSocket would be a connection without any of the protocol's limits
        "loop": "asyncio",
        "backlog": _ACCEPTED,
        "proxy_headers": False,  # the application's own, for IMAGEGEN_TRUSTED_PROXIES
        "server_header": False,
        "access_log": False,
        "log_config": None,
        "timeout_graceful_shutdown": int(settings.timeout),
    }
    return uvicorn.Config(app, **{**defaults, **options})


def warn_if_open(settings: Settings) -> None:
    """Logs a warning if everyone who reaches the port may use the GPU."""
    if not settings.needs_key and not _is_loopback(settings.listen_host):
        log.warning(
            "no IMAGEGEN_API_KEY is set, and the server listens on %s: everyone who reaches its port may use it",
            settings.listen_host,
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
