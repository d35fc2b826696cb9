"""The fleet's simulation of one worker against the real worker: how long jobs wait on the mock queue, whose GPU sleeps.

    python -m benchmarks.fleet_waits [--runs 3]

Prints Markdown. Other work on the machine makes the real jobs wait for what is not simulated, so run it alone.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

if not __package__:  # started by its path, which makes this folder the place of imports
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.worker_under_test import STEPS
from scripts.fleet_simulation import Fleet, Seconds, simulate, steady
from tests.support.runpod_queue import RunPodQueue

#: Seconds that the GPU sleeps for a job, and how many jobs there are.
SECONDS, JOBS = 0.5, 60


def begun_and_ended(path: Path) -> Seconds:
    """When the GPU worked on each job, in the order of the jobs."""
    steps = np.array(sorted(tuple(map(float, line.split())) for line in path.read_text().splitlines()))
    return np.stack([steps[::STEPS, 0], steps[STEPS - 1 :: STEPS, 1]])


def waits(folder: Path) -> tuple[Seconds, Seconds]:
    """How long each job waited for the worker, and how long it would have by the simulation."""
    busy = folder / "busy"
    command = ("-m", "benchmarks.worker_under_test", "handler.py", str(busy), "--simulate", str(SECONDS))
    environment = {"IMAGEGEN_MODEL": "micro", "IMAGEGEN_DEVICE": "cpu", "RUNPOD_LOG_LEVEL": "INFO"}
    fields = {"prompt": "a red circle", "width": 1024, "height": 1024}
    with RunPodQueue() as queue, queue.worker(folder / "log", *command, **environment):
        # What a job takes of a worker is measured as one would: from one begin to the next while jobs wait.
        for job in [queue.run(fields) for _ in range(9)]:
            job.wait(120)
        begun, ended = begun_and_ended(busy)
        gap = np.median(begun[2:] - ended[1:-1])  # the first was alone while the worker started
        arrivals, zero = steady(0.65 / SECONDS, 1000, np.random.default_rng(1))[:JOBS], time.monotonic() + 1
        jobs = []
        for moment in arrivals:
            time.sleep(max(0.0, zero + moment - time.monotonic()))
            jobs.append(queue.run(fields))
        for job in jobs:
            if job.wait(120).status != "COMPLETED":
                raise SystemExit("a job failed; the worker's log is in " + str(folder))
    begun, ended = begun_and_ended(busy)
    created = np.array([job.created for job in jobs])
    waited = begun[-JOBS:] - created
    # As long as the GPU of this machine really slept, so that a busy machine is no difference.
    simulated = simulate(created, ended[-JOBS:] - begun[-JOBS:] + gap, Fleet(min_workers=1, max_workers=1)).waits
    return waited, simulated


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3, help="how often; default: 3")
    args = parser.parse_args()
    print("| run | mean, real (s) | mean, simulated | median, real | simulated | ninth tenth, real | simulated |")
    print("|---|---|---|---|---|---|---|")
    for run in range(args.runs):
        with tempfile.TemporaryDirectory() as folder:
            waited, simulated = waits(Path(folder))
        pairs = [(waited.mean(), simulated.mean())]
        pairs += [(np.percentile(waited, share), np.percentile(simulated, share)) for share in (50, 90)]
        print(f"| {run + 1} | " + " | ".join(f"{real:.3f} | {model:.3f}" for real, model in pairs) + " |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
