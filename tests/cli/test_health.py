import contextlib
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from imagegen.cli.main import main
from imagegen.settings import get_settings


@pytest.fixture
def check(monkeypatch):
    def run(**environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        get_settings.cache_clear()
        return main(["health"])

    return run


@contextlib.contextmanager
def serving(server):
    """Serves in a thread of its own, for as long as the block runs."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()


#: The command waits five seconds for an answer: on a busy machine, after that time alone, it is asked again.
TRIES = 20


@pytest.mark.parametrize(("status", "expected"), [(200, 0), (503, 1)])
def test_it_says_what_the_server_says(check, capsys, status, expected):
    class Server(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status if self.path == "/health" else 404)
            self.end_headers()
            self.wfile.write(b'{"stage": "loading the weights"}')

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server, serving(server):
        for _ in range(TRIES):
            found, said = check(PORT=str(server.server_port)), capsys.readouterr().out
            if "(TimeoutError)" not in said:
                break
    assert found == expected
    assert "loading the weights" in said


def test_a_proxy_is_not_asked():
    """In a process of its own: urllib reads the proxies once."""

    class Server(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"the server" if self.path == "/health" else b"a proxy")

        def log_message(self, *_):
            pass

    proxy, server = (ThreadingHTTPServer(("127.0.0.1", 0), Server) for _ in range(2))
    with proxy, server, serving(proxy), serving(server):
        environment = {name: value for name, value in os.environ.items() if name.lower() != "no_proxy"}
        environment |= {"PORT": str(server.server_port), "http_proxy": f"http://127.0.0.1:{proxy.server_port}"}
        command = [sys.executable, "-m", "imagegen", "health"]
        for _ in range(TRIES):
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
            if "(TimeoutError)" not in done.stdout:
                break
    assert (done.returncode, done.stdout) == (0, "the server\n")


def test_nobody_there_is_not_healthy(check, capsys):
    assert check(PORT="9") == 1
    assert "nothing answers on port 9" in capsys.readouterr().out


def test_a_worker_of_the_queue_has_no_port(check):
    assert check(PORT="9", RUNPOD_WEBHOOK_GET_JOB="http://queue") == 0
