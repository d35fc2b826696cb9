"""The fleet's simulation: against the same rules in simpy, against queueing theory, and its command line."""

import sys
from collections import deque

import numpy as np
import pytest
import simpy
from PIL import Image

from scripts import plan_fleet
from scripts.plan_fleet import Fleet, simulate


class InSimpy:
    """The rules of `simulate`, with a process for each worker and for each job's patience."""

    def __init__(self, arrivals, seconds, fleet):
        self.env, self.fleet, self.arrivals, self.seconds = simpy.Environment(), fleet, arrivals, seconds
        self.queue, self.idle, self.starting, self.alive = deque(), [], 0, fleet.min_workers
        self.waits, self.paid, self.started, self.changed = np.zeros(len(arrivals)), 0.0, 0, 0.0
        for _ in range(fleet.min_workers):
            self.env.process(self.work())
        self.env.process(self.come())
        self.env.run()
        self.paid += fleet.min_workers * self.end

    def come(self):
        for job, moment in enumerate(self.arrivals):
            yield self.env.timeout(moment - self.env.now)
            if self.idle:
                self.idle.pop().succeed(job)
            else:
                self.queue.append(job)
                self.env.process(self.lose_patience(job))

    def lose_patience(self, job):
        yield self.env.timeout(self.fleet.scale_after)
        if job in self.queue and self.starting <= self.queue.index(job) and self.alive < self.fleet.max_workers:
            self.started += 1
            self.change(+1)
            self.env.process(self.start())

    def change(self, by):
        self.paid += (self.alive - self.fleet.min_workers) * (self.env.now - self.changed)
        self.alive, self.changed = self.alive + by, self.env.now

    def start(self):
        self.starting += 1
        yield self.env.timeout(self.fleet.cold_start)
        self.starting -= 1
        self.env.process(self.work())

    def work(self):
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


FLEETS = [
    Fleet(max_workers=1, scale_after=0, cold_start=0),
    Fleet(max_workers=5),
    Fleet(max_workers=50, scale_after=1, cold_start=7, idle_timeout=3),
    Fleet(max_workers=4, cold_start=60, idle_timeout=0),
    Fleet(min_workers=2, max_workers=6, idle_timeout=5),
]


@pytest.mark.parametrize("fleet", FLEETS)
@pytest.mark.parametrize("trace", plan_fleet.TRACES)
def test_it_is_the_same_in_simpy(trace, fleet):
    noise = np.random.default_rng(5)
    arrivals = plan_fleet.TRACES[trace](1.2, 2000, noise)
    seconds = noise.lognormal(0.2, 0.6, len(arrivals))
    ours, theirs = simulate(arrivals, seconds, fleet), InSimpy(arrivals, seconds, fleet)
    np.testing.assert_allclose(ours.waits, theirs.waits, atol=1e-6)
    assert ours.cold_starts == theirs.started
    assert ours.cold_starts or fleet.min_workers
    assert ours.worker_seconds == pytest.approx(theirs.paid)
    assert ours.most <= fleet.max_workers


def test_one_worker_waits_as_long_as_theory_says():
    """M/D/1: load * seconds / (2 - 2 load)."""
    arrivals = plan_fleet.steady(0.7, 400_000, np.random.default_rng(7))
    outcome = simulate(arrivals, np.ones(len(arrivals)), Fleet(min_workers=1, max_workers=1))
    assert outcome.waits.mean() == pytest.approx(0.7 / 0.6, rel=0.03)
    assert outcome.cold_starts == 0


@pytest.mark.parametrize("trace", plan_fleet.TRACES)
def test_a_trace_has_its_rate(trace):
    arrivals = plan_fleet.TRACES[trace](0.5, 10 * 86400, np.random.default_rng(8))
    assert len(arrivals) / (10 * 86400) == pytest.approx(0.5, rel=0.1)
    assert (np.diff(arrivals) >= 0).all()


def run(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["plan_fleet", *map(str, words)])
    status = plan_fleet.main()
    return status, *capsys.readouterr()


def test_a_recommendation_keeps_its_target_for_less(monkeypatch, capsys, tmp_path):
    words = ("daily", "--rate", 0.2, "--target", 5, "--price", 0.001, "--png", tmp_path / "plan.png")
    status, out, _ = run(monkeypatch, capsys, *words)
    given, best = (line.split(" | ") for line in out.splitlines() if line.startswith(("| as given", "| recomm")))
    assert status == 0
    assert float(best[2].split(" / ")[2]) <= 5
    assert float(best[7].rstrip(" |")) < float(given[7].rstrip(" |"))
    assert Image.open(tmp_path / "plan.png").size[1] > 800

    status, out, _ = run(monkeypatch, capsys, "steady", "--rate", 2, "--hours", 1, "--max-workers", 1, "--target", 1)
    assert status == 1
    assert "raise --max-workers" in out


def test_a_csv_of_ones_own(monkeypatch, capsys, tmp_path):
    path = tmp_path / "jobs.csv"
    path.write_text("seconds,takes\n100,2\n101,3\n400,1\n")
    _, out, _ = run(monkeypatch, capsys, path, "--scale-after", 0, "--cold-start", 10, "--max-workers", 1)
    # 10 s of start; the second job waits for the first; the third meets a new worker.
    assert "3 jobs" in out
    assert "| 10.0 / 10.8 / 10.9 / 11.0 / 11.0 | 2 |" in out
    for text in ("1\ntwo\n", "", "1,2,3\n", "1,0\n", "1\n2,3\n", "nan\n"):
        path.write_text(text)
        status, _, err = run(monkeypatch, capsys, path)
        assert (status, str(path) in err) == (1, True)
