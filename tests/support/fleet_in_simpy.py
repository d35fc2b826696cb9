"""The rules of scripts/plan_fleet.py written once more, in simpy: what its results are checked against."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from typing import Any

import numpy as np
import simpy

from scripts.fleet_simulation import Fleet, Seconds

Process = Generator[simpy.Event, Any, None]


class InSimpy:
    """A run of `simulate`'s arguments, with a process for each worker and for each job's patience."""

    def __init__(self, arrivals: Seconds, seconds: Seconds, fleet: Fleet) -> None:
        self.env, self.fleet, self.arrivals, self.seconds = simpy.Environment(), fleet, arrivals, seconds
        self.queue: deque[int] = deque()
        self.idle: list[simpy.Event] = []
        self.starting, self.alive = 0, fleet.min_workers
        self.waits, self.paid, self.started, self.changed = np.zeros(len(arrivals)), 0.0, 0, 0.0
        for _ in range(fleet.min_workers):
            self.env.process(self.work())
        self.env.process(self.come())
        self.env.run()
        self.paid += fleet.min_workers * self.end

    def come(self) -> Process:
        for job, moment in enumerate(self.arrivals):
            yield self.env.timeout(moment - self.env.now)
            if self.idle:
                self.idle.pop().succeed(job)
            else:
                self.queue.append(job)
                self.env.process(self.lose_patience(job))

    def lose_patience(self, job: int) -> Process:
        yield self.env.timeout(self.fleet.scale_after)
        if job in self.queue and self.starting <= self.queue.index(job) and self.alive < self.fleet.max_workers:
            self.started += 1
            self.change(+1)
            self.env.process(self.start())

    def change(self, by: int) -> None:
        self.paid += (self.alive - self.fleet.min_workers) * (self.env.now - self.changed)
        self.alive, self.changed = self.alive + by, self.env.now

    def start(self) -> Process:
        self.starting += 1
        yield self.env.timeout(self.fleet.cold_start)
        self.starting -= 1
        self.env.process(self.work())

    def work(self) -> Process:
        while True:
            if self.queue:
                job = self.queue.popleft()
            else:
                called = self.env.event()
                self.idle.append(called)
                yield called | self.env.timeout(self.fleet.idle_timeout)
                if not called.triggered and self.alive > self.fleet.min_workers:
                    self.idle.remove(called)
                    self.change(-1)
                    return
                job = yield called
            self.waits[job] = self.env.now - self.arrivals[job]
            yield self.env.timeout(self.seconds[job])
            self.end = self.env.now
