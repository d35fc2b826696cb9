"""Ray Serve on this machine with micro: images a second with 1 and 2 replicas, what is lost when one is killed.

    python -m benchmarks.ray_replicas [--jobs 120]

Each replica has one processor. Prints Markdown for docs/benchmarks.md. Needs `pip install 'ray[serve]'`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import platform
import signal
import socket
import sys
import time
from pathlib import Path

import httpx
import psutil

if not __package__:  # started by its path, which makes this folder the place of imports
    sys.path[0] = str(Path(__file__).resolve().parents[1])

JOB = {"prompt": "a red circle on a blue background", "width": 512, "height": 512}


def replicas() -> list[int]:
    """The processes of this Ray that generate."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "ServeReplica:default:Replica" in " ".join(process.cmdline()):
                found.append(process.pid)
    return found


async def load(url: str, jobs: int, kill: bool) -> tuple[float, int]:
    """Sends all jobs at once; gives the seconds until the last answer, and how many were no images.

    Args:
        kill: end a replica once a tenth of the jobs is done.
    """
    async with httpx.AsyncClient(base_url=url, timeout=600) as client:
        begun = time.monotonic()
        answers = [asyncio.create_task(client.post("/generate", json=JOB)) for _ in range(jobs)]
        while kill and sum(task.done() for task in answers) < jobs / 10:  # noqa: ASYNC110 - no event says so
            await asyncio.sleep(0.01)
        if kill:
            os.kill(replicas()[0], signal.SIGKILL)
        done = await asyncio.gather(*answers, return_exceptions=True)
        lost = sum(isinstance(answer, BaseException) or answer.status_code != 200 for answer in done)
        return time.monotonic() - begun, lost


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=120, metavar="N", help="jobs of each measurement; default: 120")
    args = parser.parse_args()
    import ray  # installed by `make slow` alone
    from ray import serve

    from deploy.ray_serve import Args, app

    os.environ.update(IMAGEGEN_MODEL="micro", IMAGEGEN_DEVICE="cpu", IMAGEGEN_MAX_QUEUE=str(args.jobs))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ray.init(num_cpus=4, object_store_memory=100_000_000, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    url = f"http://127.0.0.1:{port}"
    print(f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, {os.cpu_count()} cores; {args.jobs} jobs of 512x512\n")
    print("| replicas | pictures a second | lost |")
    print("|---|---|---|")
    for count, kill in ((1, False), (2, False), (2, True)):
        serve.run(app(Args(min_replicas=count, max_replicas=count, gpus=0, cpus=1)))
        asyncio.run(load(url, 4, kill=False))  # warms them up
        seconds, lost = asyncio.run(load(url, args.jobs, kill))
        name = f"{count}, one killed under load" if kill else str(count)
        print(f"| {name} | {args.jobs / seconds:.2f} | {lost} |", flush=True)
    serve.shutdown()
    ray.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
