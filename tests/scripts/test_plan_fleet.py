"""The fleet's simulation: against the same rules in simpy, against queueing theory, and its command line."""

import sys

import numpy as np
import pytest

from scripts import plan_fleet
from scripts.fleet_simulation import Fleet, simulate
from tests.support.fleet_in_simpy import InSimpy
from tests.support.images import opened

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
    assert opened(tmp_path / "plan.png").size[1] > 800

    status, out, _ = run(monkeypatch, capsys, "steady", "--rate", 2, "--hours", 1, "--max-workers", 1, "--target", 1)
    assert status == 1
    assert "raise --max-workers" in out


def test_measured_times_are_sampled(monkeypatch, capsys, tmp_path):
    path = tmp_path / "times"
    path.write_text("2\n\n2.0\n")
    status, out, _ = run(monkeypatch, capsys, "steady", "--hours", 0.1, "--job-times", path)
    assert (status, "2.00 s each" in out) == (0, True)
    for text in ("1\n0\n", "1\n-2\n", "nan\n", "1 2\n", "one\n", ""):
        path.write_text(text)
        status, out, err = run(monkeypatch, capsys, "steady", "--job-times", path)
        assert (status, out, err.count("\n"), str(path) in err) == (1, "", 1, True)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--job-times", "/no/such/file"),
        ("--png", "/no/such/folder/plan.png"),
        ("--png", "plan.txt"),
        ("--percentile", 200),
        ("--percentile", 0),
        ("--idle-timeout", -1),
        ("--cold-start", -1),
        ("--cold-start", "nan"),
        ("--scale-after", -1),
        ("--price", -1),
        ("--target", -1),
        ("--job-seconds", 0),
        ("--rate", 0),
        ("--hours", -1),
        ("--min-workers", 11),
    ],
)
def test_what_no_fleet_can_be_is_one_line(monkeypatch, capsys, option, value):
    status, out, err = run(monkeypatch, capsys, "steady", "--hours", 0.1, f"{option}={value}")
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("error: ")
    assert option in err or str(value) in err


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
