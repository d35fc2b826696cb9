"""`python -m imagegen`, the container's entry: RunPod's queue where there is one, else HTTP on PORT.

    python -m imagegen --plan                                    what would be on this machine's card, in one line
    python -m imagegen --plan --card-gb 24 --capability 8.9      on another card; nothing is loaded

SIGTERM drains: what runs is finished, what comes is refused, and the process ends with status 0. After the GPU has
died, or where the model can never be loaded, it ends with status 1, so that whoever watches over it starts another.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from types import FrameType
from typing import NoReturn

from imagegen import logs
from imagegen.errors import ConfigurationError
from imagegen.models import get_model
from imagegen.settings import Settings, get_settings
from imagegen.weights.sources import find_weights

log = logging.getLogger(__name__)


def serve_http(settings: Settings) -> NoReturn:
    """Serves HTTP until SIGTERM or SIGINT, and ends the process: with status 0, or another where it could not start."""
    import uvicorn

    from imagegen.engine.ending import end_process
    from imagegen.server.main import create_app
    from imagegen.server.protocol import Protocol

    app = create_app(settings)

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            app.state.service.drain()
            super().handle_exit(sig, frame)

    async def end_if_fatal() -> None:
        server.should_exit = app.state.service.fatal is not None or server.should_exit

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
            callback_notify=end_if_fatal,
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
    end_process(app.state.service, status)


def show_plan(settings: Settings, gigabytes: float | None, capability: tuple[int, int]) -> int:
    """Prints where the model's parts would live on a card, this machine's unless named; returns the exit status.

    nf4 is planned where this installation has bitsandbytes.

    Raises:
        ConfigurationError: nothing that the settings ask for fits.
    """
    from imagegen.memory.plan import Card, read_card
    from imagegen.model import loading
    from imagegen.model.acceleration import is_installed

    if gigabytes is None:
        spec = loading.choose_model(settings)
        card = read_card(settings.device or loading.default_device())
    else:
        spec, card = get_model(settings.model or "klein-9b"), Card.of(gigabytes, capability)
    print(loading.plan(spec, settings, find_weights(spec, settings), card, is_installed("bitsandbytes")))
    return 0


def _capability(text: str) -> tuple[int, int]:
    major, minor = text.split(".")
    return int(major), int(minor)


def main() -> int:
    """Chooses the transport; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", action="store_true", help="print the plan of the card's memory, and load nothing")
    parser.add_argument("--card-gb", type=float, metavar="N", help="of a card of N GB; without it, of this machine's")
    parser.add_argument(
        "--capability",
        type=_capability,
        default=(8, 9),
        metavar="X.Y",
        help="of that card; 8.9 where it is left out",
    )
    args = parser.parse_args()
    try:
        settings = get_settings()
        logs.configure(settings)
        if args.plan:
            return show_plan(settings, args.card_gb, args.capability)
        if settings.serves_queue:
            from handler import serve

            return serve(settings)
        serve_http(settings)
    except ConfigurationError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
