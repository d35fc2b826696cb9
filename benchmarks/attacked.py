"""What is attacked: a server of micro in a process of its own, what others notice of it, and one row of a table."""

from __future__ import annotations

import base64
import contextlib
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx

ROOT = Path(__file__).resolve().parents[1]
#: Two callers of the attacked server.
KEYS = {"attacker": "the-key-of-the-attacker", "other": "the-key-of-somebody-else"}
SMALL = {"num_inference_steps": 1, "width": 64, "height": 64}


class Row(NamedTuple):
    """One attack: what came of it, what is wanted, and whether that is so."""

    attack: str
    seen: str
    target: str
    met: bool


#: By which the seconds of targets are multiplied: more than 1 on a machine that others use.
patience = 1.0


def in_time(seconds: float, most: float) -> bool:
    """Whether it took at most so long."""
    return seconds <= most * patience


class Attacked:
    """A server's process.

    Args:
        process: that runs it.
        port: on 127.0.0.1.
    """

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process, self.port = process, port
        self.host, self.url = "127.0.0.1", f"http://127.0.0.1:{port}"

    def post(
        self, path: str, body: dict[str, object], caller: str = "other", timeout: float = 120
    ) -> tuple[str, float]:
        """A job of a caller: its outcome, "image" or the code of an error, and seconds until it came."""
        begun = time.monotonic()
        try:
            headers = {"X-API-Key": KEYS[caller]}
            answer = httpx.post(f"{self.url}{path}", json=body, headers=headers, timeout=120)
            outcome = "image" if answer.is_success else f"{answer.status_code} {answer.json()['error']['code']}"
        except httpx.HTTPError as error:
            outcome = type(error).__name__
        return outcome, time.monotonic() - begun

    def generate(self, caller: str = "other", **fields: object) -> tuple[str, float]:
        """A generation, of 64x64 in one step where the fields do not say otherwise."""
        return self.post("/generate", {"prompt": "a red circle on a blue background", **SMALL, **fields}, caller)

    def edit(self, *images: bytes, caller: str = "other", **fields: object) -> tuple[str, float]:
        """An edit, as `generate`."""
        encoded = [base64.b64encode(image).decode() for image in images]
        return self.post("/edit", {"prompt": "make it green", "images": encoded, **SMALL, **fields}, caller)

    def health(self) -> float:
        """Seconds of GET /health by a connection of its own; infinite where it is not answered with 200."""
        begun = time.monotonic()
        with contextlib.suppress(OSError), socket.create_connection((self.host, self.port), timeout=10) as client:
            client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            if client.recv(1000).startswith(b"HTTP/1.1 200"):
                return time.monotonic() - begun
        return float("inf")


@contextlib.contextmanager
def server(keys: bool = True, **environment: str) -> Iterator[Attacked]:
    """A server of micro, with two keys or none, in a process that may open 1,024 files, once it is ready."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = {"IMAGEGEN_MODEL": "micro", "IMAGEGEN_DEVICE": "cpu", "IMAGEGEN_SERVE": "http", "PORT": str(port)}
    if keys:
        settings["IMAGEGEN_API_KEY"] = ",".join(f"{name}:{key}" for name, key in KEYS.items())
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "imagegen"],
            cwd=ROOT,
            env={**os.environ, **settings, **environment},
            stdout=log,
            stderr=log,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024)),
        )
        try:
            attacked, begun = Attacked(process, port), time.monotonic()
            while attacked.health() > 60:
                if process.poll() is not None or time.monotonic() - begun > 240:
                    log.seek(0)
                    raise RuntimeError(f"the server did not start: {log.read()[-1000:].decode()}")
                time.sleep(0.5)
            yield attacked
        finally:
            process.kill()
            process.wait()


def terminate(attacked: Attacked) -> tuple[int, float, int]:
    """SIGTERM: the status with which the server ended, seconds until then, processes of it that are left."""
    processes, begun = children(attacked.process.pid), time.monotonic()
    attacked.process.send_signal(signal.SIGTERM)
    status = attacked.process.wait(timeout=300)
    return status, time.monotonic() - begun, sum(Path(f"/proc/{pid}/exe").exists() for pid in processes)


def children(pid: int) -> list[int]:
    """The processes that a process started, and theirs. Linux alone."""
    found: list[int] = []
    with contextlib.suppress(OSError):  # it has ended
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                found += map(int, (thread / "children").read_text().split())
    return [*found, *(below for child in found for below in children(child))]


def memory(pid: int) -> float:
    """Megabytes of a process and all that it started; shared pages count once (PSS)."""
    total = 0.0
    for number in (pid, *children(pid)):
        with contextlib.suppress(OSError):  # it has ended
            text = Path(f"/proc/{number}/smaps_rollup").read_text()
            found = re.search(r"^Pss:\s+(\d+)", text, re.MULTILINE)
            total += int(found[1]) * 1024 / 1e6 if found else 0
    return total


class Peak:
    """The most memory of a process and all that it started, while it is open."""

    def __init__(self, pid: int) -> None:
        self._pid, self._ended = pid, threading.Event()
        self.before = self.most = memory(pid)

    def __enter__(self) -> Peak:
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.05):
            self.most = max(self.most, memory(self._pid))

    @property
    def grown(self) -> float:
        """Megabytes more than at the beginning."""
        return self.most - self.before
