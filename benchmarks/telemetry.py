"""What traces cost, and whether the metrics tell the truth of the GPU's time; with micro on the CPU.

    python -m benchmarks.telemetry [--pairs 30] [--side 512]

1. Warm jobs with and without traces alternate in one process; a collector of this process's own takes the spans.
2. Jobs come with pauses, and the benchmark keeps its own log of when the GPU's thread begins and ends each job's work.
   The metrics' busy and idle seconds are compared with it.

Prints Markdown for docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

if not __package__:  # started by its path, which makes this folder the place of imports
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from imagegen import logs
from imagegen.contract.schemas import GenerateRequest
from imagegen.engine import gpu_executor
from imagegen.engine.service import Service
from imagegen.settings import Settings
from imagegen.telemetry import tracing


@contextmanager
def collector() -> Iterator[str]:
    """The URL of a collector that takes spans and forgets them."""

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


async def job(service: Service, request: GenerateRequest) -> float:
    """Runs a job as a transport does; returns its seconds."""
    begun = time.perf_counter()
    with logs.request("benchmark"), tracing.request("POST", {}, "server"):
        await service.run(request)
    return time.perf_counter() - begun


async def with_and_without(service: Service, pairs: int, side: int, url: str) -> list[tuple[float, float]]:
    """Seconds of a job without and with traces, in pairs."""
    os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = url
    traced = Settings(_env_file=None)
    taken = []
    for number in range(pairs + 2):
        request = GenerateRequest(prompt="a red circle", width=side, height=side, seed=number)
        both: dict[bool, float] = {}
        for on in (False, True) if number % 2 else (True, False):
            if on:
                tracing.configure(traced)
            both[on] = await job(service, request)
            tracing.close()
        taken.append((both[False], both[True]))
    return taken[2:]


async def busy_and_idle(service: Service, jobs: int, side: int) -> tuple[float, float, float, float]:
    """Busy and idle seconds by the benchmark's own log, and by the metrics."""
    log: list[tuple[float, float]] = []
    real = gpu_executor.generate_images

    def logged(*arguments: Any) -> Any:
        begun = time.monotonic()
        result = real(*arguments)
        log.append((begun, time.monotonic()))
        return result

    gpu_executor.generate_images = logged  # type: ignore[assignment]
    before, begun = service.figures(), time.monotonic()
    for number in range(jobs):
        await job(service, GenerateRequest(prompt="a red circle", width=side, height=side, seed=number))
        await asyncio.sleep(0.5)
    after, ended = service.figures(), time.monotonic()
    gpu_executor.generate_images = real
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
    parser.add_argument("--pairs", type=int, default=30, help="jobs with and without traces; default: 30")
    parser.add_argument("--side", type=int, default=512, help="pixels of an image's side; default: 512")
    options = parser.parse_args()
    service = Service(Settings(_env_file=None, model="micro", device="cpu"))
    service.start().result()
    with collector() as url:
        pairs = asyncio.run(with_and_without(service, options.pairs, options.side, url))
    ratios = sorted(on / off for off, on in pairs)
    own_busy, own_idle, busy, idle = asyncio.run(busy_and_idle(service, options.pairs, options.side))
    service.close()
    job_of = f"a warm job of {options.side}x{options.side}"
    rows = {
        f"{job_of} with traces, over one without: median of {len(pairs)} pairs": statistics.median(ratios),
        f"GPU busy: the metrics over the benchmark's own log ({own_busy:.1f} s)": busy / own_busy,
        f"GPU idle: the metrics over the benchmark's own log ({own_idle:.1f} s)": idle / own_idle,
    }
    print("| what | measured |\n|---|---|", *(f"| {what} | {ratio:.3f} |" for what, ratio in rows.items()), sep="\n")


if __name__ == "__main__":
    main()
