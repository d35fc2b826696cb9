"""A real uvicorn on loopback, with a service of its own, driven by real clients."""

from __future__ import annotations

import contextlib
import json
import socket
import threading

import pytest

from imagegen.builder.micro.measure import background_colour, shape_colour
from imagegen.server.main import create_app
from imagegen.server.serve import Server, uvicorn_config
from tests.support import settings, until
from tests.support.images import from_base64


def events(response):
    """(name, data) of each event of a stream."""
    name = None
    for line in response.iter_lines():
        if line.startswith("event: "):
            name = line[7:]
        elif line.startswith("data: "):
            yield name, json.loads(line[6:])


def shows(text):
    """The background's and the shape's colour of an image in base64."""
    picture = from_base64(text)
    return background_colour(picture), shape_colour(picture)


@contextlib.contextmanager
def running(app, **options):
    """Serves an app, with uvicorn's `options`; gives its base URL."""
    config = uvicorn_config(app, settings(), **{"host": "127.0.0.1", "port": 0, "log_level": "warning", **options})
    server = Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started or not thread.is_alive())
        assert server.started
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(300)  # closing collects garbage, which in a process of many tests takes its time
        assert not thread.is_alive()


@contextlib.contextmanager
def serving(listen=0, **changes):
    """Serves the worker with these settings, on a port of the system's choice; gives (base URL, the app's service)."""
    app = create_app(settings(**changes))
    with running(app, port=listen) as url:
        yield url, app.state.service


@pytest.fixture
def unused_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
