"""The worker against the plain handler, in one run: cold start and warm jobs, as ratios (below 1 the worker is faster).

    python -m benchmarks.start [--cold 7] [--warm 24]

Runs alternate, so that another job on the machine slows both alike. Prints Markdown for docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PROMPT = "a red circle on a blue background"
WORKER, PLAIN = "handler.py", "benchmarks/plain_handler.py"
#: What each prints when the result of a local test is there.
SIGNS = {WORKER: "micro-42.png", PLAIN: "completed successfully"}
JOB = {"input": {"prompt": PROMPT, "seed": 42}}
#: Of a worker's cold start against the plain handler's.
_LIMIT = 0.9
#: What the worker's log said of each local test: seconds of its stages.
BREAKDOWNS: list[dict[str, float]] = []
_STAGE = re.compile(r"([a-z][a-z ]*) (\d+\.\d+) s")


def _environment(folder: str) -> dict[str, str]:
    return {
        **os.environ,
        "IMAGEGEN_MODEL": "micro",
        "IMAGEGEN_DEVICE": "cpu",
        "IMAGEGEN_OUTPUT_DIR": folder,
        "RUNPOD_LOG_LEVEL": "INFO",
    }


def cold_test(script: str, folder: str) -> float:
    """Seconds from the start of a local test (--test_input) to the line that says that the result is there; what the
    worker's log says of them goes into BREAKDOWNS."""
    begun = time.monotonic()
    with subprocess.Popen(
        [sys.executable, "-u", script, "--test_input", json.dumps(JOB)],
        cwd=ROOT,
        env=_environment(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "the first image is ready" in line:
                BREAKDOWNS.append({name: float(seconds) for name, seconds in _STAGE.findall(line)})
            if SIGNS[script] in line:
                seconds = time.monotonic() - begun
                process.stdout.read()
                return seconds
    raise RuntimeError(f"{script} ended with status {process.returncode} and no result")


def cold_worker(script: str, folder: str) -> float:
    """Seconds from the start of a worker (the SDK's API server on this machine) to the answer of its first job."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = ["--rp_serve_api", "--rp_api_host", "127.0.0.1", "--rp_api_port", str(port)]
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/runsync", json.dumps(JOB).encode(), {"Content-Type": "application/json"}
    )
    begun = time.monotonic()
    with subprocess.Popen(
        [sys.executable, script, *arguments],
        cwd=ROOT,
        env=_environment(folder),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            while process.poll() is None:
                try:
                    with urllib.request.urlopen(request) as answer:
                        if json.load(answer)["status"] != "COMPLETED":
                            raise RuntimeError(f"{script} failed its first job")
                    return time.monotonic() - begun
                except OSError:  # nobody listens yet
                    time.sleep(0.02)
        finally:
            process.terminate()
    raise RuntimeError(f"{script} ended with status {process.returncode} and no result")


def warm_pairs(count: int, size: int, folder: str) -> list[tuple[float, float]]:
    """Seconds of (a job through the handler, the bare pipeline's call and saving its PNG), pair after pair."""
    os.environ.update(IMAGEGEN_MODEL="micro", IMAGEGEN_DEVICE="cpu")
    import torch
    from diffusers import Flux2KleinPipeline

    from imagegen.models import MICRO_PATH
    from imagegen.runpod import handler

    bare = Flux2KleinPipeline.from_pretrained(MICRO_PATH, dtype=torch.float32)
    bare.set_progress_bar_config(disable=True)

    async def job(seed: int) -> float:
        begun = time.monotonic()
        fields = {"prompt": PROMPT, "width": size, "height": size, "seed": seed}
        output = await handler.handler({"id": f"job-{seed}", "input": fields})
        if "error" in output:
            raise RuntimeError(output["error"])
        return time.monotonic() - begun

    def call(seed: int) -> float:
        begun = time.monotonic()
        arguments: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 1.0, "max_sequence_length": 32}
        generator = torch.Generator().manual_seed(seed)
        image = bare(prompt=PROMPT, width=size, height=size, generator=generator, **arguments).images[0]
        image.save(Path(folder) / "bare.png")
        return time.monotonic() - begun

    async def all_pairs() -> list[tuple[float, float]]:
        pairs = []
        for i in range(count + 2):  # the first two warm both up
            # Each goes first every other time.
            if i % 2:
                through, direct = await job(i), call(i)
            else:
                direct, through = call(i), await job(i)
            pairs.append((through, direct))
        return pairs[2:]

    pairs = asyncio.run(all_pairs())
    handler.service().close()
    return pairs


def main() -> int:
    """The command line; exit status 1 where a worker's cold start is not faster by a tenth."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cold", type=int, default=7, help="pairs of cold starts")
    parser.add_argument("--warm", type=int, default=24, help="pairs of warm jobs")
    parser.add_argument("--size", type=int, default=512, help="side of the warm jobs' pictures")
    args = parser.parse_args()
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    print(f"{time.strftime('%Y-%m-%d')}, {machine}\n")
    print("| what | worker s | baseline s | ratio: median of pairs | least to most |\n|---|---|---|---|---|")
    rows: list[tuple[str, list[tuple[float, float]]]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, measure in (("cold start of a worker", cold_worker), ("cold start of a local test", cold_test)):
            pairs = []
            for i in range(args.cold):
                order = (WORKER, PLAIN) if i % 2 else (PLAIN, WORKER)
                seconds = {script: measure(script, folder) for script in order}
                pairs.append((seconds[WORKER], seconds[PLAIN]))
            rows.append((f"{name}, {args.cold} pairs", pairs))
        rows.append((f"warm job {args.size}x{args.size}, {args.warm} pairs", warm_pairs(args.warm, args.size, folder)))
    for name, pairs in rows:
        ratios = [worker / baseline for worker, baseline in pairs]
        ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
        spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
        print(f"| {name} | {ours:.2f} | {theirs:.2f} | {statistics.median(ratios):.3f} | {spread} |")
    print("\n| stage of the local test, worker | median s |\n|---|---|")
    for stage in BREAKDOWNS[0]:
        print(f"| {stage} | {statistics.median(times.get(stage, 0.0) for times in BREAKDOWNS):.2f} |")
    return int(statistics.median(worker / baseline for worker, baseline in rows[0][1]) > _LIMIT)


if __name__ == "__main__":
    sys.exit(main())
