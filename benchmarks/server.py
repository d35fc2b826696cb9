"""The HTTP server under load, on this machine: its cost over the bare pipeline, a full queue, /health meanwhile.

    python -m benchmarks.server [--pairs 24]

Starts `python -m imagegen` with micro and a queue of 8. Prints Markdown for docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

if not __package__:  # started by its path, which makes this folder the place of imports
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from imagegen.models import MICRO_PATH

ROOT = Path(__file__).resolve().parent.parent
PROMPT = "a red circle on a blue background"
QUEUE = 8


@contextlib.contextmanager
def server() -> Iterator[tuple[str, int]]:
    """A server as a user starts it; gives its URL and process id."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    environment = {
        **os.environ, "IMAGEGEN_MODEL": "micro", "IMAGEGEN_DEVICE": "cpu", "PORT": port, "IMAGEGEN_SERVE": "http",
        "IMAGEGEN_MAX_QUEUE": str(QUEUE), "LOG_LEVEL": "WARNING",
    }  # fmt: skip
    process = subprocess.Popen([sys.executable, "-m", "imagegen"], cwd=ROOT, env=environment)
    url = f"http://127.0.0.1:{port}"
    try:
        while True:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{url}/health").json()["status"] == "ready":
                    break
            time.sleep(0.1)
        yield url, process.pid
    finally:
        process.terminate()
        process.wait()


def overhead(url: str, pairs: int, size: int) -> list[tuple[float, float]]:
    """Seconds of (a warm generate over HTTP, the bare pipeline's call and saving its PNG), pair after pair."""
    import torch
    from diffusers import Flux2KleinPipeline

    bare = Flux2KleinPipeline.from_pretrained(MICRO_PATH, dtype=torch.float32)
    bare.set_progress_bar_config(disable=True)
    arguments: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 1.0, "max_sequence_length": 32}
    measured = []
    with httpx.Client(base_url=url, timeout=60) as client:
        for i in range(pairs + 2):  # the first two warm both up

            def through(seed: int = i) -> float:
                begun = time.monotonic()
                job = {"prompt": PROMPT, "width": size, "height": size, "seed": seed}
                client.post("/generate", json=job).raise_for_status().json()
                return time.monotonic() - begun

            def direct(seed: int = i) -> float:
                begun = time.monotonic()
                generator = torch.Generator().manual_seed(seed)
                image = bare(prompt=PROMPT, width=size, height=size, generator=generator, **arguments).images[0]
                image.save(io.BytesIO(), "PNG")
                return time.monotonic() - begun

            if i % 2:
                http = through()
                measured.append((http, direct()))
            else:
                plain = direct()
                measured.append((through(), plain))
    return measured[2:]


def memory(pid: int) -> float:
    """Resident memory of a process in megabytes (Linux)."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1000


async def burst(url: str, count: int) -> tuple[int, int, float]:
    """`count` requests at once; gives how many generated, how many were refused, and the slowest refusal in seconds.

    Over bare connections: an HTTP client's own work for fifty requests would be most of the time. Each is used as soon
    as it is open, since the server closes one that sends no headers for ten seconds; its opening is not measured.
    """
    host, port = url.removeprefix("http://").split(":")
    body = json.dumps({"prompt": PROMPT, "width": 512, "height": 512}).encode()
    head = f"POST /generate HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(body)}\r\n\r\n"

    async def one() -> tuple[int, float]:
        reader, writer = await asyncio.open_connection(host, int(port))
        begun = time.monotonic()
        writer.write(head.encode() + body)
        status = int((await reader.readline()).split()[1])
        seconds = time.monotonic() - begun
        writer.close()
        return status, seconds

    answers = await asyncio.gather(*(one() for _ in range(count)))
    refusals = [seconds for status, seconds in answers if status == 429]
    return sum(status == 200 for status, _ in answers), len(refusals), max(refusals, default=0.0)


async def health_while_drawing(url: str, count: int) -> list[float]:
    """Seconds of each of `count` calls of /health while a job runs; where one ends before them, the next follows."""
    async with httpx.AsyncClient(base_url=url, timeout=600) as client:
        job = {"prompt": PROMPT, "width": 512, "height": 512, "num_inference_steps": 50, "num_images": 8}

        async def draw() -> None:
            while True:
                (await client.post("/generate", json=job)).raise_for_status()

        drawing = asyncio.create_task(draw())
        seconds: list[float] = []
        while len(seconds) < count and not drawing.done():
            begun = time.monotonic()
            state = (await client.get("/health")).json()["status"]
            passed = time.monotonic() - begun
            if state == "busy":
                seconds.append(passed)
            await asyncio.sleep(0.02)
        drawing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await drawing
    return seconds


def steps_after_dropping() -> list[int]:
    """Steps of 40 that still ran after the client left at step 3, of ten jobs; in this process, where they can be
    counted: calls of the transformer."""
    import threading

    import uvicorn

    from imagegen.server.main import create_app
    from imagegen.server.serve import uvicorn_config
    from imagegen.settings import Settings

    settings = Settings(model="micro", device="cpu")
    app = create_app(settings)
    running = uvicorn.Server(uvicorn_config(app, settings, host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=running.run)
    thread.start()
    while not running.started and thread.is_alive():
        time.sleep(0.01)
    calls: list[int] = []
    pipeline = app.state.service.start().result()
    pipeline._pipe.transformer.register_forward_pre_hook(lambda *_: calls.append(1))
    url = f"http://127.0.0.1:{running.servers[0].sockets[0].getsockname()[1]}"
    job = {"prompt": PROMPT, "width": 512, "height": 512, "num_inference_steps": 40}
    stream = {"Accept": "text/event-stream"}
    extra = []
    for _ in range(10):
        calls.clear()
        with httpx.stream("POST", f"{url}/generate", json=job, headers=stream, timeout=60) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: ") and json.loads(line[6:]).get("step") == 3:
                    break
        time.sleep(1)
        extra.append(len(calls) - 3)
    running.should_exit = True
    thread.join()
    return extra


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=24, help="pairs of warm jobs")
    args = parser.parse_args()
    print("| what | measured |\n|---|---|")
    with server() as (url, pid):
        pairs = overhead(url, args.pairs, 512)
        ratios = [http / plain for http, plain in pairs]
        median = statistics.median(ratios)
        print(f"| warm generate 512x512 over HTTP, against the bare call and PNG, {args.pairs} pairs | {median:.3f} |")
        asyncio.run(burst(url, 50))
        first = memory(pid)
        for _ in range(5):
            drawn, refused, slowest = asyncio.run(burst(url, 50))
        print(f"| 50 requests at once, queue of {QUEUE}: drawn, refused | {drawn}, {refused} |")
        print(f"| slowest refusal | {slowest * 1000:.0f} ms |")
        print(f"| resident memory after the first and the sixth such burst | {first:.0f}, {memory(pid):.0f} MB |")
        seconds = asyncio.run(health_while_drawing(url, 200))
        print(
            f"| /health while a job runs, 200 calls: median, slowest | {statistics.median(seconds) * 1000:.1f}, ",
            end="",
        )
        print(f"{max(seconds) * 1000:.1f} ms |")
    extra = ", ".join(map(str, steps_after_dropping()))
    print(f"| steps of 40 that still ran after the client left at step 3, ten jobs | {extra} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
