"""Asks the HTTP server on this machine for its health: status 0 where it could take a job now, else 1.

A worker of RunPod's queue has no port to ask, and RunPod watches it itself: that is status 0. The container's
HEALTHCHECK runs this.
"""

from __future__ import annotations

import argparse
import urllib.error
import urllib.request

from imagegen.cli.serve import port_number
from imagegen.settings import get_settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--port", type=port_number, metavar="N", help="default: PORT (7000)")


def run(args: argparse.Namespace) -> int:
    """Asks GET /health; returns the exit status."""
    settings = get_settings()
    if settings.serves_queue and args.port is None:
        return 0
    port = args.port or settings.port
    straight = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # HTTP_PROXY is for what is elsewhere
    try:
        with straight.open(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            print(answer.read().decode())
            return 0
    except urllib.error.HTTPError as error:  # 503: it is loading, or has failed, and says which
        print(error.read().decode())
    except OSError as error:
        print(f"nothing answers on port {port} ({type(error).__name__})")
    return 1
