"""Attacks by one caller on others of the same server, and by a web page on a server without a key. Part of
`benchmarks.attack`."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx

from benchmarks.attacked import KEYS, Attacked, Row, in_time

#: A job that takes seconds of the GPU.
LONG: dict[str, object] = {"width": 256, "height": 256, "num_inference_steps": 20, "num_images": 4}
MANY = 20
FOREIGN = {
    "a form": {"Origin": "https://page.example", "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"},
    "a form of an old browser": {"Origin": "null"},
    "DNS rebinding": {"Host": "page.example", "Origin": "http://page.example", "Sec-Fetch-Site": "same-origin"},
}


def shares(attacked: Attacked, short: bool) -> Iterator[Row]:
    """One caller sends as much as it is allowed; another one sends one job."""
    attacked.generate("attacker")
    _, mine = attacked.generate("other")
    _, long = attacked.generate("attacker", **LONG)
    most = 2 * long + mine + 1  # one runs, and the next may begin in the moment in which the other's job comes
    count = MANY // 4 if short else MANY
    with ThreadPoolExecutor(count) as threads:
        jobs = [threads.submit(attacked.generate, "attacker", **LONG) for _ in range(count)]
        time.sleep(1)
        outcome, seconds = attacked.generate("other")
        outcomes = [job.result()[0] for job in jobs]
    yield Row(
        f"{count} jobs of {long:.1f} s of one caller",
        f"another's job: {outcome} after {seconds:.1f} s; of theirs {outcomes.count('image')} passed, "
        f"{outcomes.count('429 overloaded')} were refused",
        f"it waits for what is running: {most:.1f} s",
        outcome == "image" and in_time(seconds, most),
    )
    with contextlib.ExitStack() as held:
        for _ in range(MANY):
            client = held.enter_context(socket.create_connection((attacked.host, attacked.port), timeout=10))
            head = f"POST /generate HTTP/1.1\r\nHost: localhost\r\nX-API-Key: {KEYS['attacker']}\r\n"
            client.sendall(f"{head}Content-Type: application/json\r\nContent-Length: 50\r\n\r\n".encode())
        time.sleep(1)
        outcome, seconds = attacked.generate("other")
    yield Row(
        f"{MANY} bodies of one caller that never come",
        f"another's job: {outcome} after {seconds:.1f} s",
        f"it waits for nothing: {most:.1f} s",
        outcome == "image" and in_time(seconds, most),
    )


def foreign_page(attacked: Attacked) -> Iterator[Row]:
    """What a browser sends for a page of somebody else."""
    for name, headers in FOREIGN.items():
        answer = httpx.post(f"{attacked.url}/generate", files={"prompt": (None, "x")}, headers=headers, timeout=60)
        yield Row(f"a foreign web page, no key: {name}", f"{answer.status_code}", "403", answer.status_code == 403)
