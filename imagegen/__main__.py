"""`python -m imagegen`, the container's entry: RunPod's queue where there is one, else HTTP on PORT.

SIGTERM drains: what runs is finished, what comes is refused, and the process ends with status 0. After a dead card it
ends with status 1, so that whoever watches over it starts another.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from types import FrameType
from typing import NoReturn

from imagegen import logs
from imagegen.errors import ConfigurationError
from imagegen.settings import Settings, get_settings

log = logging.getLogger(__name__)


def serve_http(settings: Settings) -> NoReturn:
    """Serves HTTP until SIGTERM or SIGINT, and ends the process: with status 0, or another where it could not start."""
    import uvicorn

    from imagegen.server.main import create_app
    from imagegen.server.protocol import Protocol

    app = create_app(settings)

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            app.state.service.draining = True
            super().handle_exit(sig, frame)

    async def end_if_dead() -> None:
        server.should_exit = app.state.service.lane.dead is not None or server.should_exit

    # uvicorn raises the signal again once it has ended; by then there is nothing left to do for it.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    ports = list(dict.fromkeys((settings.port, settings.port_health or settings.port)))
    configs = [
        uvicorn.Config(
            app,
            host="0.0.0.0",
            port=port,
            log_config=None,
            access_log=False,
            http=Protocol,
            timeout_graceful_shutdown=int(settings.timeout),
            callback_notify=end_if_dead,
            timeout_notify=1,
        )
        for port in ports
    ]
    server, status = Server(configs[0]), 0
    try:
        # A load balancer's /ping may have a port of its own; the same routes are there.
        server.run(sockets=[config.bind_socket() for config in configs] if len(configs) > 1 else None)
    except SystemExit as error:  # it could not start, and has said why
        status = int(error.code or 0)
    if app.state.service.lane.dead is not None:
        log.error("%s", app.state.service.lane.dead)
        status = 1
    # Not sys.exit: that waits for every thread, and one may be downloading twenty gigabytes.
    logging.shutdown()
    sys.stdout.flush()
    os._exit(status)


def main() -> int:
    """Chooses the door; returns the exit status."""
    try:
        settings = get_settings()
        logs.configure(settings)
        if settings.serves_queue:
            from handler import serve

            return serve(settings)
        serve_http(settings)
    except ConfigurationError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
