"""A receiver of webhooks on loopback, which verifies them with the specification's own package."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from standardwebhooks import Webhook

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYq="


class Receiver:
    """Answers each delivery by `answer`, which may be replaced, and keeps what came: (id, content), verified."""

    def __init__(self) -> None:
        self.came: list[tuple[str, dict]] = []
        self.wrong: list[str] = []
        self.requests = 0
        self.answer = lambda handler, number: handler.send_answer(204)


@contextlib.contextmanager
def receiving(secret=SECRET, port=0):
    """Gives (URL, Receiver)."""
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            receiver.requests += 1
            number = receiver.requests
            try:
                Webhook(secret).verify(body, dict(self.headers))
            except Exception as error:  # noqa: BLE001 - whatever is wrong with it
                receiver.wrong.append(repr(error))
            receiver.came.append((self.headers["webhook-id"], json.loads(body)))
            with contextlib.suppress(OSError):
                receiver.answer(self, number)

        def send_answer(self, status, body=b"", **headers):
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def hang(self, seconds=60):
            time.sleep(seconds)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/hook", receiver
    finally:
        server.shutdown()
        server.server_close()
        thread.join(300)
