"""How the GPU's time passes once the model is loaded: at work, or idle and why."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

#: Why the GPU is idle: there is no job; the jobs that are here wait for reference images, or for memory for their
#: images; a job is ready, and this process has not begun it.
IDLE_REASONS = ("no_job", "preparing", "host")


class GpuTime:
    """Divides time between work and the reasons for idleness. Of any thread.

    Args:
        spend: called with "busy" or one of IDLE_REASONS, and the seconds.
        clock: seconds, as time.monotonic.
    """

    def __init__(self, spend: Callable[[str, float], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._spend, self._clock = spend, clock
        self._lock = threading.Lock()
        self._since: float | None = None
        self._jobs = self._ready = 0
        self._busy = False

    def begin(self) -> None:
        """The model is loaded: from now on time is counted."""
        with self._lock:
            self._since = self._clock()

    def change(self, jobs: int = 0, ready: int = 0, busy: bool | None = None) -> None:
        """What is here changes.

        Args:
            jobs: so many more that the GPU is not done with.
            ready: so many more of them that wait for the GPU alone.
            busy: whether the GPU works now; None: as before.
        """
        with self._lock:
            self._settle()
            self._jobs += jobs
            self._ready += ready
            self._busy = self._busy if busy is None else busy

    def settle(self) -> None:
        """Counts the time until now."""
        with self._lock:
            self._settle()

    def _settle(self) -> None:
        if self._since is None:
            return
        now = self._clock()
        self._spend(self._state, now - self._since)
        self._since = now

    @property
    def _state(self) -> str:
        if self._busy:
            return "busy"
        if self._ready:
            return "host"
        return "preparing" if self._jobs else "no_job"
