"""Attacks by connections and bodies: held, flooded, and made to be slow to read. Part of `benchmarks.attack`.

Each runs in a process of its own, from one address. Meanwhile `GET /health` is asked four times a second, each time by
a new connection, and another caller sends one job.
"""

from __future__ import annotations

import asyncio
import contextlib
import encodings
import multiprocessing
import pkgutil
import resource
import socket
import time
from collections.abc import Callable, Iterator

import httpx

from benchmarks.attacked import KEYS, Attacked, Row, in_time

CONNECTIONS = 1100
#: Connections that an attacker opens in 0.2 s: until it has had all of them once, and then where some were closed.
OPENED, REOPENED = 200, 20
HEAD = "{} HTTP/1.1\r\nHost: localhost\r\n"
UPGRADE = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
CHUNKED = "Transfer-Encoding: chunked\r\n\r\n"
#: Seconds in which /health must always be answered.
HEALTH_SECONDS = 1.0


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
        with httpx.Client(timeout=seconds, headers={"X-API-Key": KEYS["attacker"]}) as client:
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
    "1,100 upgrades": hold(HEAD.format("POST /") + UPGRADE + "Sec-WebSocket-Version: 13\r\nContent-Length: 5\r\n\r\n"),
    "1,100 dripping bodies": hold(HEAD.format("POST /generate") + "Content-Length: 100000000\r\n\r\n", "a"),
    "1,100 unread answers": hold((HEAD.format("GET /") + "Accept: text/html\r\n\r\n") * 400),
    "1,100 halves of a header": hold(HEAD.format("GET /health"), "X"),
    "1,100 silent ones": hold(""),
    "chunks of one byte": flood(HEAD.format("POST /generate") + CHUNKED, b"1\r\na\r\n" * 10_000),
    "Content-Length with chunks": flood(
        HEAD.format("POST /generate") + "Content-Length: 5\r\n" + CHUNKED, b"1\r\na\r\n" * 10_000
    ),
    "forms in every codec": post_each(codec_forms),
    "JSON": post_each(hostile_json),
}


def measure(name: str, attacked: Attacked, seconds: float) -> tuple[list[float], str, float]:
    """Runs one attack, or none where it has no name: seconds of each /health, and another caller's job."""
    health, job = [], ("", 0.0)
    attack = ATTACKS.get(name, lambda *_: None)
    attacker = multiprocessing.Process(target=attack, args=(attacked.host, attacked.port, seconds))
    attacker.start()
    try:
        end = time.monotonic() + seconds
        time.sleep(min(2, seconds / 3))
        while time.monotonic() < end or not job[0]:
            health.append(attacked.health())
            if not job[0] and time.monotonic() > end - seconds / 2:
                job = attacked.generate()
            time.sleep(0.25)
    finally:
        attacker.terminate()
        attacker.join()
    return health, *job


def rows(attacked: Attacked, short: bool) -> Iterator[Row]:
    """Each attack for fifteen seconds; short: every second one, for four."""
    seconds = 4.0 if short else 15.0
    files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(files[1], 4096), files[1]))
    for name in ["", *list(ATTACKS)[:: 2 if short else 1]]:
        health, outcome, took = measure(name, attacked, seconds if name else 3)
        median = sorted(health)[len(health) // 2]
        yield Row(
            name or "none",
            f"`/health` {max(health):.2f} s at most, {median:.3f} s in the median; a job: {outcome} after {took:.1f} s",
            f"`/health` within {HEALTH_SECONDS:g} s always; the job passes",
            in_time(max(health), HEALTH_SECONDS) and outcome == "image",
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, files)
