"""`python -m imagegen.cli.healthcheck`, the container's: status 0 where the HTTP server could take a job now, else 1.

A worker of RunPod's queue has no port to ask, and RunPod watches it itself: that is status 0.
"""

from __future__ import annotations

import sys
import urllib.error
import urllib.request

from imagegen.settings import get_settings


def main() -> int:
    """Asks GET /health; returns the exit status."""
    settings = get_settings()
    if settings.serves_queue:
        return 0
    straight = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # HTTP_PROXY is for what is elsewhere
    try:
        with straight.open(f"http://127.0.0.1:{settings.port}/health", timeout=5) as answer:
            print(answer.read().decode())
            return 0
    except urllib.error.HTTPError as error:  # 503: it is loading, or has failed, and says which
        print(error.read().decode())
    except OSError as error:
        print(f"nothing answers on port {settings.port} ({type(error).__name__})")
    return 1


if __name__ == "__main__":
    sys.exit(main())
