"""Serves HTTP until SIGTERM or Ctrl-C: the API, OpenAI's API and a page for the browser.

SIGTERM drains: running jobs are finished, new ones are refused, and the process ends with status 0. When the GPU fails
for good, or the model can never be loaded, it ends with status 1, so that a supervisor starts another.
"""

from __future__ import annotations

import argparse
import errno
import logging
import signal
import socket
from types import FrameType
from typing import NoReturn

from imagegen import logs
from imagegen.errors import ConfigurationError
from imagegen.models import get_model
from imagegen.settings import Settings, get_settings

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument(
        "--host", metavar="ADDRESS", help="to listen on; default: IMAGEGEN_HOST, else 127.0.0.1 without a key"
    )
    parser.add_argument("--port", type=port_number, metavar="N", help="default: PORT (7000)")
    parser.add_argument("--model", help="the model to serve; default: IMAGEGEN_MODEL, else by the GPU")


def port_number(text: str) -> int:
    """A port of the command line.

    Raises:
        ArgumentTypeError: it is none.
    """
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port; allowed are 1 to 65535")
    return int(text)


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    settings = get_settings()
    changes = {"host": args.host, "port": args.port, "model": args.model}
    settings = settings.model_copy(update={name: value for name, value in changes.items() if value is not None})
    logs.configure(settings)
    if settings.model is not None and not settings.keep_failed:
        get_model(settings.model)  # a name that no model has is said before anything starts
    serve_http(settings)


def serve_http(settings: Settings) -> NoReturn:
    """Serves HTTP, and ends the process: with status 0, or 1 where it could not start, the GPU failed or the model can
    never be loaded.

    Raises:
        ConfigurationError: a port cannot be listened at, or a setting is wrong beside another.
    """
    # Before the model begins to load: a port in use is said at once, and by itself. A load balancer's /ping and the
    # metrics may have ports of their own.
    sockets = [listen(settings.listen_host, port) for port in settings.ports]
    from imagegen.engine.ending import end_process
    from imagegen.server.main import create_app
    from imagegen.server.serve import Server, uvicorn_config, warn_if_open

    app = create_app(settings)

    class DrainingServer(Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            app.state.service.drain()
            super().handle_exit(sig, frame)

    async def end_if_fatal() -> None:
        server.should_exit = app.state.service.fatal is not None or server.should_exit

    # uvicorn raises the signal again once it has ended; by then there is nothing left to do for it.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    config = uvicorn_config(app, settings, callback_notify=end_if_fatal, timeout_notify=1)
    server, status = DrainingServer(config), 0
    for each in sockets:
        log.info("listening at http://%s:%d", *each.getsockname()[:2])
    warn_if_open(settings)
    try:
        server.run(sockets=sockets)
    except SystemExit as error:  # it could not start, and has said why
        status = int(error.code or 0)
    end_process(app.state.service, status)


def listen(host: str, port: int, setting: str = "PORT or --port") -> socket.socket:
    """A socket that listens.

    Args:
        setting: what the user changes to get another port.

    Raises:
        ConfigurationError: the port is in use, or there is no such host.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        why = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be listened at ({error.strerror})"
        raise ConfigurationError(f"port {port} of {host} {why}; choose another with {setting}") from None
