"""A real uvicorn on loopback, with a service of its own, driven by real clients."""

from __future__ import annotations

import contextlib
import threading
import time

import httpx
import pytest
import uvicorn

from imagegen.server.main import create_app
from tests.conftest import settings


@contextlib.contextmanager
def running(app):
    """Serves an app; gives its base URL."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


@contextlib.contextmanager
def serving(**changes):
    """Serves the worker with these settings; gives (base URL, the app's service)."""
    app = create_app(settings(**changes))
    with running(app) as url:
        yield url, app.state.service


@pytest.fixture(scope="module")
def ready():
    """(base URL, service) of a server that has loaded its model."""
    with serving(max_body_mb=3) as (url, service):
        service.start().result()
        yield url, service


@pytest.fixture(scope="module")
def client(ready):
    with httpx.Client(base_url=ready[0], timeout=60) as open_client:
        yield open_client
