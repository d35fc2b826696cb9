"""Jobs over HTTP: what is lost by kill -9, what idempotency keys make, who waits for whom, and what the store costs.

    python -m benchmarks.jobs [--kills 20] [--jobs 300] [--only kills|keys|fairness|time|many]

micro on the CPU, each server in a process of its own. `kills`: jobs are sent while the server is killed by SIGKILL at
random moments, each time but the last two; then at each moment of two jobs by a hook, named in tests/support. `time`:
warm images of 512x512 by /generate and by /jobs with a folder, in pairs. `many`: a store with 100,000 ended jobs.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from tests.support.jobs_server import MOMENTS
from tests.support.killable import KillableServer
from tests.support.webhook_receiver import SECRET, Receiver, receiving

JOB = {"prompt": "a red circle on a blue background", "width": 64, "height": 64}
#: Ended jobs of `many`.
MANY = 100_000


def kills(folder: Path, jobs: int, times: int) -> None:
    """Jobs lost, generated again, and not told."""
    server, accepted = KillableServer(folder), list[str]()
    sending = threading.Event()
    with receiving() as (hook, receiver):
        server.start()

        def send() -> None:
            """Sends each job until it is accepted, by a key of its own."""
            for i in range(jobs):
                body = {**JOB, "seed": i, "webhook_url": hook, "webhook_secret": SECRET}
                while True:
                    with contextlib.suppress(httpx.TransportError):
                        headers = {"Idempotency-Key": f"job {i}"}
                        answer = httpx.post(f"{server.url}/jobs", json=body, headers=headers, timeout=30)
                        if answer.status_code == 202:
                            accepted.append(answer.json()["id"])
                            break
                    time.sleep(0.05)
            sending.set()

        sender = threading.Thread(target=send, daemon=True)
        sender.start()
        numbers = random.Random(24)
        for _ in range(times):
            time.sleep(numbers.uniform(0.0, 12.0))
            server.kill()
            server.start()
        for moment in MOMENTS:
            for count in ("1", "2"):
                server.kill()
                server.start(moment, count)
                _extra(server, hook, accepted)
        server.kill()
        server.start()
        sending.wait()
        _until(lambda: all(state["finished_at"] for state in server.states(accepted)))
        states = server.states(accepted)
        _until(lambda: {f"msg_{job}" for job in accepted} <= {identity for identity, _ in receiver.came}, 120)
        time.sleep(3)
        _report(server, receiver, accepted, states, times)
        server.kill()


def _extra(server: KillableServer, hook: str, accepted: list[str]) -> None:
    """Sends three jobs, and waits until the server has killed itself."""
    number = 0
    while server.process is not None and server.process.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            if number >= 3:
                break
            body = {**JOB, "seed": 10_000 + number, "webhook_url": hook, "webhook_secret": SECRET}
            answer = httpx.post(f"{server.url}/jobs", json=body, timeout=30)
            if answer.status_code == 202:
                accepted.append(answer.json()["id"])
        number += 1
    if server.process is not None:
        server.process.wait(300)


def _report(
    server: KillableServer, receiver: Receiver, accepted: list[str], states: list[dict[str, Any]], times: int
) -> None:
    lines = [line.split() for line in server.record.read_text().splitlines()]
    stored: set[str] = set()
    again = 0
    for moment, job in lines:
        again += moment == "generated" and job in stored
        if moment == "stored":
            stored.add(job)
    ids = [identity for identity, _ in receiver.came]
    told = set(ids)
    print(f"killed {times} times at random and {2 * len(MOMENTS)} times at a moment; {len(accepted)} jobs accepted")
    print(f"lost: {sum(state['status'] != 'succeeded' for state in states)}; stored and generated again: {again}")
    starts = Counter(job for moment, job in lines if moment == "running")
    print(f"begun more than once: {sum(count > 1 for count in starts.values())}, at most {max(starts.values())} times")
    print(f"webhooks never delivered: {sum(f'msg_{job}' not in told for job in accepted)}")
    twice = sum(count > 1 for count in Counter(ids).values())
    print(f"delivered twice: {twice}, told apart by their id; signature wrong: {len(receiver.wrong)}")


def keys(folder: Path) -> None:
    """200 requests at once with 20 idempotency keys."""
    with _server(folder) as server:

        def ask(number: int) -> str:
            headers = {"Idempotency-Key": f"key {number % 20}"}
            answer = httpx.post(f"{server.url}/jobs", json=JOB, headers=headers, timeout=60)
            assert answer.status_code == 202, answer.text
            return str(answer.json()["id"])

        with ThreadPoolExecutor(200) as pool:
            made = set(pool.map(ask, range(200)))
        print(f"200 requests at once with 20 keys: {len(made)} jobs")


def _has_finished(client: httpx.Client, job: str) -> bool:
    return bool(client.get(f"/jobs/{job}").json()["finished_at"])


def fairness(folder: Path) -> None:
    """The jobs that one caller's job waits for, where another's hundred wait."""
    names = {"many": "m" * 16, "one": "o" * 16}
    text = "".join(f'[{name}]\nsha256 = "{hashlib.sha256(key.encode()).hexdigest()}"\n' for name, key in names.items())
    (folder / "keys.toml").write_text(text)
    with _server(folder) as server:
        clients = [httpx.Client(base_url=server.url, headers={"X-API-Key": key}, timeout=60) for key in names.values()]
        many, one = clients
        hundred = [many.post("/jobs", json={**JOB, "num_inference_steps": 40}).json()["id"] for _ in range(100)]
        waits = []
        for _ in range(10):
            before = set(server.moments("generated"))
            job = one.post("/jobs", json=JOB).json()["id"]
            _until(partial(_has_finished, one, job))
            order = [other for other in server.moments("generated") if other not in before]
            waits.append(order.index(job))
        left = sum(many.get(f"/jobs/{job}").json()["status"] == "queued" for job in hundred)
        print(f"jobs of the other that ended first, the running one included: {waits}; {left} of 100 still wait")
        for client in clients:
            client.close()


def added(folder: Path, pairs: int) -> None:
    """What the store adds to a warm image of 512x512: what a client waits for beside the job's own time in the engine,
    which other work on the machine changes from job to job."""
    body = {**JOB, "width": 512, "height": 512, "seed": 1}
    with _server(folder) as server, httpx.Client(base_url=server.url, timeout=60) as client:

        def direct() -> Any:
            return client.post("/generate", json=body).json()

        def stored() -> Any:
            job = client.post("/jobs", json=body).json()["poll_url"]
            last = ""
            with client.stream("GET", f"{job}/events") as stream:
                for line in stream.iter_lines():
                    last = line if line.startswith("data: ") else last
            return json.loads(last.removeprefix("data: "))

        for _ in range(3):
            direct()
            stored()
        engine, beside = list[float](), dict[Callable[[], Any], list[float]]()
        for i in range(pairs):
            for way in (direct, stored) if i % 2 else (stored, direct):
                begun = time.monotonic()
                answer = way()
                seconds = time.monotonic() - begun
                assert answer["images"]
                engine.append(answer["timings"]["total"])
                beside.setdefault(way, []).append(seconds - engine[-1])
        job, first, second = (statistics.median(part) for part in (engine, beside[direct], beside[stored]))
        print(f"in the engine {job:.3f} s; beside it /generate {first * 1000:.1f} ms, /jobs {second * 1000:.1f} ms")
        print(f"ratio {(job + second) / (job + first):.3f}, medians of {pairs} pairs")


_START = """
import asyncio, resource, sys, time
from pathlib import Path
from imagegen.engine.service import Service
from imagegen.jobs.jobs import Jobs
from tests.support import settings

async def main():
    chosen = settings(jobs_dir=Path(sys.argv[1]))
    service = Service(chosen)
    begun = time.perf_counter()
    jobs = Jobs(chosen, service)
    await jobs.start()
    started = time.perf_counter() - begun
    page = await jobs.page("owner", 20, None)
    listed = time.perf_counter() - begun - started
    await asyncio.sleep(3)
    await jobs.close()
    print(started, listed, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, len(page))

asyncio.run(main())
"""


def many(folder: Path) -> None:
    """Start and memory with 100,000 ended jobs in the store, and with none."""
    from imagegen.jobs.database import SqliteDatabase
    from imagegen.jobs.rows import NewJob, Room
    from imagegen.jobs.store import Store

    full, empty = folder / "full", folder / "empty"
    database = SqliteDatabase(full)
    store, room = Store(database, "benchmark"), Room(MANY, MANY, 1)
    database.execute("PRAGMA synchronous = OFF")
    result = '{"urls":[],"seeds":[1],"width":64,"height":64,"output_format":"png","model":"micro","timings":{}}'
    for i in range(MANY):
        identity = f"{i:032x}"
        name = f"{identity}.0.png"
        store.add(NewJob(identity, "owner", 1, mode="generate", fields='{"prompt": "a red circle"}'), room)
        store.finish(identity, "succeeded", result=result, events='[["references", {}]]', files=[name], size=50_000)
    database.close()
    found: dict[Path, list[list[float]]] = {full: [], empty: []}
    for _ in range(5):
        for path in (empty, full):
            done = subprocess.run(
                [sys.executable, "-c", _START, str(path)], cwd=ROOT, capture_output=True, text=True, check=True
            )
            found[path].append([float(part) for part in done.stdout.split()])
    for path, rows in found.items():
        start, listed, memory, _ = (statistics.median(column) for column in zip(*rows, strict=True))
        print(f"{path.name}: start {start:.3f} s, first page {listed * 1000:.1f} ms, memory {memory:.0f} MB")


@contextlib.contextmanager
def _server(folder: Path) -> Iterator[KillableServer]:
    server = KillableServer(folder)
    server.start()
    _until(lambda: httpx.get(f"{server.url}/health", timeout=60).json()["status"] in ("ready", "busy"))
    try:
        yield server
    finally:
        server.kill()


def _until(condition: Callable[[], Any], seconds: float = 3600) -> None:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)


def main() -> None:
    """Measures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=300, help="jobs of `kills`")
    parser.add_argument("--kills", type=int, default=20, help="kills at random moments")
    parser.add_argument("--pairs", type=int, default=20, help="pairs of `time`")
    parser.add_argument("--only", choices=("kills", "keys", "fairness", "time", "many"), help="one part alone")
    args = parser.parse_args()
    parts: dict[str, Callable[[Path], None]] = {
        "kills": lambda folder: kills(folder, args.jobs, args.kills),
        "keys": keys,
        "fairness": fairness,
        "time": lambda folder: added(folder, args.pairs),
        "many": many,
    }
    for name, part in parts.items():
        if args.only in (None, name):
            with tempfile.TemporaryDirectory() as folder:
                part(Path(folder))


if __name__ == "__main__":
    main()
