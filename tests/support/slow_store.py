"""An object store on loopback that takes what is put there, and answers only when it is told to."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@contextlib.contextmanager
def slow_store() -> Iterator[tuple[dict[str, Any], list[str], threading.Event]]:
    """Gives the settings for it, the paths that were put there, and the event that lets it answer."""
    arrived: list[str] = []
    release = threading.Event()

    class Store(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            arrived.append(self.path)
            release.wait(300)
            self.send_response(200)
            self.send_header("ETag", '"0"')
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Store)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    host = f"127.0.0.1:{server.server_address[1]}"
    options = {"bucket_endpoint_url": f"http://{host}", "bucket_access_key_id": "id", "bucket_name": "pictures"}
    try:
        yield {**options, "bucket_secret_access_key": "secret", "private_hosts": host}, arrived, release
    finally:
        release.set()
        server.shutdown()
        thread.join()
        server.server_close()
