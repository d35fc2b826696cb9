"""A queue whose workers come and go, simulated: when each job begins, and when each worker is on."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from heapq import heappop, heappush

import numpy as np
from numpy.typing import NDArray

Seconds = NDArray[np.float64]


@dataclass(frozen=True)
class Fleet:
    """How the platform scales.

    Args:
        min_workers: always on ("active workers" at RunPod).
        scale_after: seconds that a job waits before a worker is started for it ("queue delay" at RunPod).
        cold_start: seconds from the start of a worker until it takes a job; they are paid.
        idle_timeout: seconds without a job after which a worker ends; they are paid.
        price: of a worker, a second.
    """

    min_workers: int = 0
    max_workers: int = 10
    scale_after: float = 4.0
    cold_start: float = 20.0
    idle_timeout: float = 30.0
    price: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """What happened.

    `waits[i]` is how long job i waited. `starts` and `stops` are when a worker started and ended, whichever it was,
    each in the order of time. `cold_starts` leaves out the workers that are always on. All in seconds.
    """

    waits: Seconds
    starts: Seconds
    stops: Seconds
    cold_starts: int
    busy: float

    @property
    def worker_seconds(self) -> float:
        """Seconds that are paid."""
        return float(self.stops.sum() - self.starts.sum())

    @property
    def most(self) -> int:
        """The most workers that were on at a time."""
        changes = np.concatenate([self.stops, self.starts])  # at the same moment, one ends before another starts
        steps = np.repeat([-1, 1], [len(self.stops), len(self.starts)])
        return int(np.cumsum(steps[np.argsort(changes, kind="stable")]).max())


def simulate(arrivals: Seconds, seconds: Seconds, fleet: Fleet) -> Outcome:
    """Runs the trace: job i comes at `arrivals[i]` (ascending) and takes `seconds[i]` of a worker.

    Jobs are taken in their order, by the worker that was idle for the shortest time, so that the others can end. A job
    that has waited `scale_after` starts a worker, unless as many are starting as wait before it and with it. Takes time
    in proportion to the jobs and the logarithm of the workers that are busy at once.
    """
    jobs, waits = len(arrivals), np.empty(len(arrivals))
    # As memory, not as arrays: reading one number is three times as fast.
    come, take, wait = (memory.data.cast("B").cast("d") for memory in (arrivals, seconds, waits))
    never, delay, cold, timeout = math.inf, fleet.scale_after, fleet.cold_start, fleet.idle_timeout
    idle = deque([0.0] * fleet.min_workers)  # since when, the longest first
    busy: list[float] = []  # a heap: until when
    starting: deque[float] = deque()  # until when; all take equally long, so the first is the first
    starts, stops = [0.0] * fleet.min_workers, []
    alive = fleet.min_workers
    # Jobs are taken in their order, so those that wait are a range: [head, tail); [head, asked) have waited `delay`.
    head = tail = asked = 0
    while head < jobs:
        arrival = come[tail] if tail < jobs else never
        patience = come[asked] + delay if asked < tail else never
        freed = busy[0] if busy else never
        started = starting[0] if starting else never
        now = min(freed, started, arrival, patience)
        if now in (freed, started):
            if now == freed:
                heappop(busy)
            else:
                starting.popleft()
            if head < tail:
                wait[head] = now - come[head]
                heappush(busy, now + take[head])
                head += 1
                asked = max(asked, head)
            else:
                idle.append(now)
        elif now == arrival:
            while idle and idle[0] + timeout <= now and alive > fleet.min_workers:
                stops.append(idle.popleft() + timeout)
                alive -= 1
            tail += 1
            if idle:
                idle.pop()
                wait[head] = 0.0
                heappush(busy, now + take[head])
                head = asked = tail
        else:
            asked += 1
            if len(starting) < asked - head and alive < fleet.max_workers:
                starting.append(now + cold)
                starts.append(now)
                alive += 1
    # Those that are on now end once they were idle for long enough; those that are always on, with the last job.
    last = sorted(since + timeout for since in (*idle, *busy, *starting))
    stops += last[: alive - fleet.min_workers] + [max(busy)] * fleet.min_workers
    starts_at, stops_at = np.array(starts), np.sort(np.array(stops))
    return Outcome(waits, starts_at, stops_at, len(starts) - fleet.min_workers, float(seconds.sum()))


def steady(rate: float, duration: float, noise: np.random.Generator) -> Seconds:
    """Jobs that come independently of each other, `rate` a second."""
    return np.sort(noise.uniform(0, duration, noise.poisson(rate * duration)))


def bursty(rate: float, duration: float, noise: np.random.Generator) -> Seconds:
    """Nine tenths of the jobs in bursts of a minute on average, which are a tenth of the time."""
    pieces, now = [steady(rate / 10, duration, noise)], 0.0
    while now < duration:
        now += noise.exponential(540)
        length = noise.exponential(60)
        pieces.append(now + steady(9 * rate, length, noise))
        now += length
    arrivals = np.sort(np.concatenate(pieces))
    return arrivals[arrivals < duration]


def daily(rate: float, duration: float, noise: np.random.Generator) -> Seconds:
    """A sine with a period of a day, from 0.1 of the rate at its start to 1.9 of it twelve hours later."""
    candidates = steady(1.9 * rate, duration, noise)
    level = 1 - 0.9 * np.cos(2 * np.pi * candidates / 86400)
    return candidates[noise.uniform(0, 1.9, len(candidates)) < level]
