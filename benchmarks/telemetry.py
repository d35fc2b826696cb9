"""What traces cost, and whether the metrics tell the truth of the GPU's time; with micro on the CPU.

    python -m benchmarks.telemetry [--pairs 100] [--side 512]

1. Warm jobs with and without traces alternate in one process, each pair in the other order than the one before.
   Measured is the processor time of the process, so that other work on the machine counts for little. Each job's spans
   are sent at once, on a connection of their own, which is more than a worker does. A collector in a process of its own
   takes them. What traces add does not depend on an image's size: on the smallest job it is told from the noise of the
   rest, and is set against the time of a job of `--side`.
2. Jobs come with pauses, and the benchmark keeps its own log of when the GPU's thread begins and ends each job's work.
   The metrics' busy and idle seconds are compared with it.

Prints Markdown for docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import multiprocessing.sharedctypes
import os
import random
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from unittest import mock

if not __package__:  # started by its path, which makes this folder the place of imports
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from imagegen import logs
from imagegen.contract.schemas import GenerateRequest
from imagegen.engine import gpu_executor
from imagegen.engine.service import Service
from imagegen.settings import Settings
from imagegen.telemetry import tracing

#: The smallest job: pixels of a side, and steps.
_SMALLEST, _STEPS = 64, 1
#: Samples of the bootstrap.
_SAMPLES = 10_000


def _collect(port: multiprocessing.sharedctypes.Synchronized[int]) -> None:
    """A collector that takes spans and forgets them."""

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Receiver)
    port.value = server.server_port
    server.serve_forever()


@contextmanager
def collector() -> Iterator[str]:
    """The URL of a collector in a process of its own."""
    context = multiprocessing.get_context("fork")
    port = context.Value("i", 0)
    process = context.Process(target=_collect, args=(port,), daemon=True)
    process.start()
    while not port.value:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{port.value}"
    process.terminate()


async def job(service: Service, request: GenerateRequest) -> None:
    """Runs a job as a transport does."""
    with logs.request("benchmark"), tracing.request("POST", {}, "server"):
        await service.run(request)


async def with_and_without(service: Service, pairs: int, side: int, steps: int | None) -> list[tuple[float, float]]:
    """Seconds of the processor for a job without and with traces, in pairs."""
    traced = Settings(_env_file=None)
    taken = []
    for number in range(pairs + 2):
        request = GenerateRequest(
            prompt="a red circle", width=side, height=side, num_inference_steps=steps, seed=number
        )
        both: dict[bool, float] = {}
        for on in (False, True) if number % 2 else (True, False):
            if on:
                tracing.configure(traced)
            begun = time.process_time()
            await job(service, request)
            tracing.close()
            both[on] = time.process_time() - begun
        taken.append((both[False], both[True]))
    return taken[2:]


def interval(values: list[float]) -> tuple[float, float, float]:
    """The mean, and the bounds between which it is in 95 of 100 resamplings (the percentile bootstrap)."""
    resample = random.Random(0)
    means = sorted(statistics.fmean(resample.choices(values, k=len(values))) for _ in range(_SAMPLES))
    return statistics.fmean(values), means[int(0.025 * _SAMPLES)], means[int(0.975 * _SAMPLES)]


def _spread(values: Sequence[float], digits: int) -> str:
    mean, low, high = (f"{value:.{digits}f}" for value in values)
    return f"{mean} ({low} to {high})"


async def busy_and_idle(service: Service, jobs: int, side: int) -> tuple[float, float, float, float]:
    """Busy and idle seconds by the benchmark's own log, and by the metrics."""
    log: list[tuple[float, float]] = []
    real = gpu_executor.generate_images

    def logged(*arguments: Any) -> Any:
        begun = time.monotonic()
        result = real(*arguments)
        log.append((begun, time.monotonic()))
        return result

    with mock.patch.object(gpu_executor, "generate_images", logged):
        before, begun = service.figures(), time.monotonic()
        for number in range(jobs):
            await job(service, GenerateRequest(prompt="a red circle", width=side, height=side, seed=number))
            await asyncio.sleep(0.5)
        after, ended = service.figures(), time.monotonic()
    busy = sum(end - start for start, end in log)

    def gained(name: str) -> float:
        return sum(after[key] - before[key] for key in after if key.startswith(name))

    return (
        busy,
        ended - begun - busy,
        gained("imagegen_gpu_busy_seconds_total"),
        gained("imagegen_gpu_idle_seconds_total"),
    )


def main() -> None:
    """Runs both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=100, help="jobs with and without traces; default: 100")
    parser.add_argument("--side", type=int, default=512, help="pixels of an image's side; default: 512")
    options = parser.parse_args()
    with collector() as url:  # before torch has threads, which a fork would not copy
        os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = url
        service = Service(Settings(_env_file=None, model="micro", device="cpu"))
        service.start().result()
        small = asyncio.run(with_and_without(service, options.pairs, _SMALLEST, _STEPS))
        large = asyncio.run(with_and_without(service, options.pairs, options.side, None))
        tracing.close()
    own_busy, own_idle, busy, idle = asyncio.run(busy_and_idle(service, min(options.pairs, 30), options.side))
    service.close()
    of_job = statistics.fmean(off for off, _ in large)
    added = [one / of_job for one in interval([on - off for off, on in small])]
    side = f"{options.side}x{options.side}"
    milliseconds = [1e3 * of_job * one for one in added]
    rows = {
        f"processor time that traces add to a job, {len(small)} pairs": _spread(milliseconds, 2) + " ms",
        f"a warm job of {side} ({1e3 * of_job:.0f} ms) with that, over one without": _spread(
            [1 + one for one in added], 4
        ),
        f"the same, measured directly, {len(large)} pairs": _spread(interval([on / off for off, on in large]), 3),
        f"GPU busy: the metrics over the benchmark's own log ({own_busy:.1f} s)": f"{busy / own_busy:.3f}",
        f"GPU idle: the metrics over the benchmark's own log ({own_idle:.1f} s)": f"{idle / own_idle:.3f}",
    }
    print(
        "| what | measured, and its 95 % interval |\n|---|---|",
        *(f"| {what} | {it} |" for what, it in rows.items()),
        sep="\n",
    )


if __name__ == "__main__":
    main()
