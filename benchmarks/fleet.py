"""How fast the fleet's simulation is, and simpy with the same rules: CPU seconds of this process.

    python -m benchmarks.fleet [--most 10000000]

An hour of jobs of 3.2 s on average on up to 10,000 workers. Prints Markdown for docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import sys
import time
from pathlib import Path

import numpy as np

if not __package__:  # started by its path, which makes this folder the place of imports
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from scripts.fleet_simulation import Fleet, Seconds, simulate, steady
from tests.support.fleet_in_simpy import InSimpy

#: simpy is not worth waiting for beyond this.
_SIMPY_JOBS = 100_000


def trace(jobs: int) -> tuple[Seconds, Seconds]:
    """About so many jobs within an hour, and their times: lognormal."""
    noise = np.random.default_rng(0)
    arrivals = steady(jobs / 3600, 3600, noise)
    return arrivals, noise.lognormal(1.04, 0.5, len(arrivals))


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=10_000_000, help="jobs of the largest run")
    args = parser.parse_args()
    print(
        f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, {os.cpu_count()} cores, Python {sys.version.split()[0]}\n"
    )
    print("| jobs | most workers on | CPU s | microseconds a job | memory, most MB | simpy: times as long |")
    print("|---|---|---|---|---|---|")
    for jobs in (10**4, 10**5, 10**6, 10**7):
        if jobs > args.most:
            break
        arrivals, seconds = trace(jobs)
        begun = time.process_time()
        outcome = simulate(arrivals, seconds, Fleet(max_workers=10_000))
        taken = time.process_time() - begun
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        simpy = ""
        if jobs <= _SIMPY_JOBS:
            begun = time.process_time()
            InSimpy(arrivals, seconds, Fleet(max_workers=10_000))
            simpy = f"{(time.process_time() - begun) / taken:.0f}"
        each = taken / len(arrivals) * 1e6
        print(
            f"| {len(arrivals):,} | {outcome.most:,} | {taken:.2f} | {each:.2f} | {memory:.0f} | {simpy} |", flush=True
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
