"""A server of jobs in a process of its own, which can be killed and started again with one folder, port and record."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx

from tests.support import ROOT


class KillableServer:
    """`tests.support.jobs_server`.

    Args:
        folder: for its jobs and its record.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.record = folder / "jobs", folder / "record"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen | None = None

    def start(self, *kill: str, timeout: float = 300) -> None:
        """Starts it, and waits until it answers or is dead.

        Args:
            kill: a moment, and at which time of it the process kills itself.
        """
        words = [sys.executable, "-m", "tests.support.jobs_server", str(self.port), self.folder, self.record, *kill]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        process = self.process = subprocess.Popen(words, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
        end = time.monotonic() + timeout
        while not self.answers() and process.poll() is None:
            assert time.monotonic() < end, "it did not start"
            time.sleep(0.02)

    def answers(self) -> bool:
        """Whether it takes connections."""
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{self.url}/ping").status_code in (200, 204)
        return False

    def kill(self) -> None:
        """Ends it by SIGKILL."""
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait(300)

    def moments(self, name: str) -> list[str]:
        """The jobs of a moment, in order."""
        lines = self.record.read_text().split("\n") if self.record.exists() else []
        return [line.split()[1] for line in lines if line.startswith(f"{name} ")]

    def states(self, jobs: list[str]) -> list[dict]:
        """What it says of jobs."""
        with httpx.Client(base_url=self.url, timeout=60) as client:
            return [client.get(f"/jobs/{job}").json() for job in jobs]
