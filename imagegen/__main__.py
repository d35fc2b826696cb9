"""`python -m imagegen`, the container's entry: RunPod's queue where there is one, else HTTP on PORT.

SIGTERM drains: what runs is finished, what comes is refused, and the process ends with status 0.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from types import FrameType
from typing import NoReturn

from imagegen.errors import ConfigurationError
from imagegen.settings import Settings, get_settings


def serve_http(settings: Settings) -> NoReturn:
    """Serves HTTP until SIGTERM or SIGINT, and ends the process: with status 0, or another where it could not start."""
    import uvicorn

    from imagegen.server.main import create_app

    app = create_app(settings)

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            app.state.service.draining = True
            super().handle_exit(sig, frame)

    # uvicorn raises the signal again once it has ended; by then there is nothing left to do for it.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    config = uvicorn.Config(
        app,
        host="0.0.0.0",
        port=settings.port,
        log_level=settings.log_level.lower(),
        http="h11",  # the other parser keeps headers without end
        timeout_graceful_shutdown=int(settings.timeout),
    )
    status = 0
    try:
        Server(config).run()
    except SystemExit as error:  # it could not start, and has said why
        status = int(error.code or 0)
    # Not sys.exit: that waits for every thread, and one may be downloading twenty gigabytes.
    logging.shutdown()
    sys.stdout.flush()
    os._exit(status)


def main() -> int:
    """Chooses the door; returns the exit status."""
    try:
        settings = get_settings()
    except ConfigurationError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    if settings.serve == "queue" or (settings.serve == "auto" and settings.queue_url is not None):
        from handler import serve

        return serve(settings)
    serve_http(settings)


if __name__ == "__main__":
    sys.exit(main())
