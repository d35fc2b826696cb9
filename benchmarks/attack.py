"""Attacks a server of its own over HTTP, and measures what others notice of it.

    python -m benchmarks.attack                       every attack, about four minutes (`make attack`)
    python -m benchmarks.attack --seconds 5 half-a-header
    python -m benchmarks.attack --server HOST:PORT    a server that runs already, with the key of KEY

Each attack runs in a process of its own, from one address, against a server that may open 1,024 files, as is usual.
Meanwhile `GET /health` is asked four times a second, each time by a new connection, and one job is sent with the key.
Printed as a Markdown table. Everything stays on loopback, and ends after `--seconds` for each attack.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import encodings
import multiprocessing
import os
import pkgutil
import resource
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parents[1]
KEY = "the-key-of-the-attacked-server"
CONNECTIONS = 1100
#: Connections that an attacker opens in 0.2 s: until it has had all of them once, and then where some were closed.
OPENED, REOPENED = 200, 20
HEAD = "{} HTTP/1.1\r\nHost: localhost\r\n"
UPGRADE = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"


# ---- Attacks: each is a function of (host, port, seconds)


def hold(first: str, drip: str = "") -> Callable[[str, int, float], None]:
    """An attack that holds connections: each sends `first`, then `drip` every three seconds, and reads nothing."""

    async def attack(host: str, port: int, seconds: float) -> None:
        end = time.monotonic() + seconds
        clients: list[socket.socket] = []
        dripped, opened = time.monotonic(), 0
        while time.monotonic() < end:
            for _ in range(min(OPENED if opened < CONNECTIONS else REOPENED, CONNECTIONS - len(clients))):
                opened += 1
                client = socket.socket()
                client.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    client.connect((host, port))
                clients.append(client)
            await asyncio.sleep(0.2)
            alive = []
            for client in clients:
                try:
                    if client not in started:
                        client.send(first.encode())
                        started.add(client)
                    elif drip and time.monotonic() - dripped > 3:
                        client.send(drip.encode())
                    if client.recv(1, socket.MSG_PEEK) != b"" or first.count("GET") > 1:
                        alive.append(client)
                        continue
                except BlockingIOError:
                    alive.append(client)
                    continue
                except OSError:
                    pass
                started.discard(client)
                client.close()
            if time.monotonic() - dripped > 3:
                dripped = time.monotonic()
            clients = alive

    started: set[socket.socket] = set()
    return lambda host, port, seconds: asyncio.run(attack(host, port, seconds))


def flood(head: str, body: bytes) -> Callable[[str, int, float], None]:
    """An attack that sends a body without end, as fast as it is taken, on four connections."""

    def attack(host: str, port: int, seconds: float) -> None:
        end = time.monotonic() + seconds
        clients: list[socket.socket] = []
        while time.monotonic() < end:
            while len(clients) < 4:
                client = socket.create_connection((host, port), timeout=5)
                client.sendall(head.encode())
                client.setblocking(False)
                clients.append(client)
            for client in list(clients):
                try:
                    client.send(body)
                except BlockingIOError:
                    time.sleep(0.001)
                except OSError:
                    clients.remove(client)
                    client.close()

    return attack


def post_each(requests: Callable[[], Iterator[tuple[str, bytes]]]) -> Callable[[str, int, float], None]:
    """An attack that posts (content type, body), one after the other, with the key."""

    def attack(host: str, port: int, seconds: float) -> None:
        end = time.monotonic() + seconds
        with httpx.Client(timeout=seconds, headers={"X-API-Key": KEY}) as client:
            for kind, body in requests():
                if time.monotonic() > end:
                    return
                with contextlib.suppress(httpx.HTTPError):
                    client.post(f"http://{host}:{port}/generate", content=body, headers={"Content-Type": kind})

    return attack


def codec_forms() -> Iterator[tuple[str, bytes]]:
    """A form in every codec of Python's, punycode first, whose decoder takes quadratic time."""
    text = b"aaaaaaaaaa-" + b"ba" * 300_000
    part = b'--B\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n' + text + b"\r\n--B--\r\n"
    codecs = sorted((module.name for module in pkgutil.iter_modules(encodings.__path__)), key="punycode".__ne__)
    for codec in codecs:
        yield f"multipart/form-data; boundary=B; charset={codec}", part


def hostile_json() -> Iterator[tuple[str, bytes]]:
    """JSON that is slow to read."""
    for inside in (b'"' + b"\\n" * 50_000_000 + b'"', b"[" * 30_000_000, b'"a",' * 20_000_000, b" " * 100_000_000):
        yield "application/json", b'{"prompt": ' + inside + b"}"


ATTACKS: dict[str, Callable[[str, int, float], None]] = {
    "upgrade": hold(HEAD.format("POST /") + UPGRADE + "Sec-WebSocket-Version: 13\r\nContent-Length: 5\r\n\r\n"),
    "dripping-body": hold(HEAD.format("POST /generate") + "Content-Length: 100000000\r\n\r\n", "a"),
    "unread-answers": hold((HEAD.format("GET /") + "Accept: text/html\r\n\r\n") * 400),
    "half-a-header": hold(HEAD.format("GET /health"), "X"),
    "silent": hold(""),
    "one-byte-chunks": flood(
        HEAD.format("POST /generate") + "Transfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n" * 10_000
    ),
    "codecs": post_each(codec_forms),
    "json": post_each(hostile_json),
}


# ---- What others notice


@dataclass
class Noticed:
    """What was measured while an attack ran."""

    health: list[float] = field(default_factory=list)
    failed: int = 0
    job: str = ""

    @property
    def slowest(self) -> float:
        """The longest that an answer of /health took; infinite where one never came."""
        return float("inf") if self.failed else max(self.health, default=float("inf"))


def ask_health(host: str, port: int, noticed: Noticed) -> None:
    """One GET /health by a connection of its own."""
    begun = time.monotonic()
    try:
        with socket.create_connection((host, port), timeout=10) as client:
            client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            if not client.recv(1000).startswith(b"HTTP/1.1 200"):
                noticed.failed += 1
    except OSError:
        noticed.failed += 1
    noticed.health.append(time.monotonic() - begun)


def send_job(host: str, port: int) -> str:
    """One small job with the key: its status and seconds."""
    job = {"prompt": "a red circle on a blue background", "num_inference_steps": 1}
    begun = time.monotonic()
    try:
        answer = httpx.post(f"http://{host}:{port}/generate", json=job, headers={"X-API-Key": KEY}, timeout=60)
    except httpx.HTTPError as error:
        return type(error).__name__
    return f"{answer.status_code} after {time.monotonic() - begun:.1f} s"


def measure(name: str, host: str, port: int, seconds: float) -> Noticed:
    """Runs one attack, or none where it has no name, and what others do meanwhile."""
    noticed = Noticed()
    attacker = multiprocessing.Process(target=ATTACKS.get(name, lambda *_: None), args=(host, port, seconds))
    attacker.start()
    try:
        end = time.monotonic() + seconds
        time.sleep(min(2, seconds / 3))
        while time.monotonic() < end:
            ask_health(host, port, noticed)
            if not noticed.job and time.monotonic() > end - seconds / 2:
                noticed.job = send_job(host, port)
            time.sleep(0.25)
    finally:
        attacker.terminate()
        attacker.join()
    return noticed


# ---- The server


@contextlib.contextmanager
def server(**environment: str) -> Iterator[tuple[str, int]]:
    """A server of micro in a process of its own that may open 1,024 files; its address, once it is ready."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = {"IMAGEGEN_MODEL": "micro", "IMAGEGEN_SERVE": "http", "IMAGEGEN_API_KEY": KEY, "PORT": str(port)}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "imagegen"],
            env={**os.environ, **settings, **environment},
            stdout=log,
            stderr=log,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024)),
        )
        try:
            noticed = Noticed(failed=1)
            begun = time.monotonic()
            while noticed.failed:
                if process.poll() is not None or time.monotonic() - begun > 240:
                    log.seek(0)
                    raise RuntimeError(f"the server did not start: {log.read()[-1000:].decode()}")
                time.sleep(0.5)
                noticed = Noticed()
                ask_health("127.0.0.1", port, noticed)
            yield "127.0.0.1", port
        finally:
            process.kill()
            process.wait()


def main() -> int:
    """Measures and prints the table; the status is 1 where an attack kept /health or the job from being answered."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("attacks", nargs="*", choices=[*ATTACKS, []], help="some of them; default: all")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each attack")
    parser.add_argument("--server", metavar="HOST:PORT", help="attack this one")
    args = parser.parse_args()
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(files, 4096), files))
    bad = 0
    print("| attack | `GET /health`: slowest, median | not answered | a job with the key |\n|---|---|---|---|")
    with contextlib.ExitStack() as stack:
        if args.server:
            host, port = args.server.split(":")
            address = host, int(port)
        else:
            address = stack.enter_context(server())
        for name in ["", *(args.attacks or ATTACKS)]:
            seen = measure(name, *address, args.seconds if name else 5)
            middle = sorted(seen.health)[len(seen.health) // 2]
            times = f"{max(seen.health):.2f} s, {middle:.3f} s"
            print(f"| {name or 'none'} | {times} | {seen.failed} of {len(seen.health)} | {seen.job} |", flush=True)
            bad += seen.failed > 0 or not seen.job.startswith("200")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
