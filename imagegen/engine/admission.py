"""Which jobs are taken: one runs, `max_queue` wait, and a body that is being read counts as the job that it will be."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from imagegen.errors import NotReady, Overloaded
from imagegen.metrics import Metrics


class Admission:
    """The places of one worker. For the event loop's thread alone.

    Args:
        max_queue: jobs that may wait behind the one that runs.
        seconds_per_job: the mean time of a job on the GPU, for Retry-After.
    """

    def __init__(self, max_queue: int, metrics: Metrics, seconds_per_job: Callable[[], float]) -> None:
        self.max_queue = max_queue
        self._metrics, self._seconds_per_job = metrics, seconds_per_job
        #: Set once: jobs that come are refused, those that are here are finished.
        self.draining = False
        self._reading = self._admitted = 0

    @property
    def running(self) -> int:
        """Jobs that run: 0 or 1."""
        return min(self._admitted, 1)

    @property
    def waiting(self) -> int:
        """Jobs behind the one that runs."""
        return max(0, self._admitted - 1)

    @contextmanager
    def reading(self, caller: str | None) -> Iterator[None]:
        """A body is being read.

        Raises:
            NotReady: the worker is ending.
            Overloaded: the queue is full.
        """
        self._check(self._reading)
        self._reading += 1
        try:
            yield
        finally:
            self._reading -= 1

    @contextmanager
    def place(self, caller: str | None) -> Iterator[int]:
        """A job's place; gives the number of jobs before it.

        Raises:
            NotReady: the worker is ending.
            Overloaded: the queue is full.
        """
        self._check(0)
        self._admitted += 1
        self._metrics.waiting.set(self.waiting)
        try:
            yield self._admitted - 1
        finally:
            self._admitted -= 1
            self._metrics.waiting.set(self.waiting)

    def _check(self, reading: int) -> None:
        if self.draining:
            raise NotReady("the worker is ending; another will answer", retry_after=1)
        if self._admitted + reading > self.max_queue:
            wait = max(1, math.ceil(self._seconds_per_job()))
            raise Overloaded(f"{self.waiting} jobs wait already; try again in {wait} s", retry_after=wait)
