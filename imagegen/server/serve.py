"""How uvicorn serves the application: every server of the project is made from this configuration."""

from __future__ import annotations

import ipaddress
import logging
from typing import Any

import uvicorn
from fastapi import FastAPI

from imagegen.server.protocol import Protocol
from imagegen.settings import Settings

log = logging.getLogger(__name__)

#: Connections that asyncio accepts before it looks at any of them: with the cap and what else is open they stay below
#: the 1,024 files that a process may have by default.
_BACKLOG = 100


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
        "backlog": _BACKLOG,
        "proxy_headers": False,  # the application's own, for IMAGEGEN_TRUSTED_PROXIES
        "server_header": False,
        "access_log": False,
        "log_config": None,
        "timeout_graceful_shutdown": int(settings.timeout),
    }
    return uvicorn.Config(app, **{**defaults, **options})


def warn_if_open(settings: Settings) -> None:
    """Logs a warning if everyone who reaches the port may use the GPU."""
    if settings.api_key is None and not _is_loopback(settings.listen_host):
        log.warning(
            "no IMAGEGEN_API_KEY is set, and the server listens on %s: everyone who reaches its port may use it",
            settings.listen_host,
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
