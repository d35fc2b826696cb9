"""Attacks by object stores that jobs name: what its jobs, its memory and its own store feel of it. Part of
`benchmarks.attack`.

    python -m benchmarks.attack_stores    alone, and beside boto3's client without an attack

The hostile stores are another process at the lowest priority, since a real one has a machine of its own; so is the
worker's own store. Each kind of attack gets some jobs of two images at once, through RunPod's handler with micro. Then
the own store takes eight objects of half a megabyte, alone and beside uploads that hang, in pairs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

if not __package__:  # started by its path, which makes this folder the place of imports
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.attacked import ROOT, Row, in_time
from tests.support.faulty_store import STORED, FaultyStore, error

#: Jobs at once, the seconds that each may have, and the memory that the worker may grow by in megabytes.
JOBS, SECONDS, MEGABYTES = 4, 5, 20
#: What an upload to the own store may take beside an attack, against one alone: two cores are shared.
RATIO = 1.5
OBJECTS = [(f"own/{i}.png", os.urandom(500_000)) for i in range(8)]


async def _forever(head: bytes, part: bytes, every: float) -> AsyncIterator[bytes]:
    yield head
    while True:
        await asyncio.sleep(every)
        yield part


#: What each store sends to every upload, and whether it reads what is sent to it.
ATTACKS: dict[str, tuple[Callable[[str], Any], bool]] = {
    "an error without end": (lambda _: _forever(b"HTTP/1.1 400 Bad\r\n\r\n", bytes(65536), 0), True),
    "headers without end": (lambda _: _forever(b"HTTP/1.1 200 OK\r\n", b"X: a\r\n" * 1000, 0), True),
    "answers 100 without end": (lambda _: _forever(b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.001), True),
    "drips its status": (lambda _: _forever(b"HTTP/1.1 200", b" ", 0.5), True),
    "drips an error": (lambda _: _forever(b"HTTP/1.1 400 Bad\r\n\r\n", b"x", 0.5), True),
    "never answers": (lambda _: _forever(b"", b"", 0.5), True),
    "never reads": (lambda _: _forever(b"", b"", 0.5), False),
    "hangs in TLS": (lambda _: _forever(b"", b"", 0.5), False),
    "another region each time": (
        lambda head: error("400 Bad", "X", f"<Region>{'eu-2' if 'eu-1' in head else 'eu-1'}</Region>"),
        True,
    ),
}


async def serve(names: list[str]) -> None:
    """Another process: prints the URLs as a line of JSON, and ends when its stdin does."""
    stores = {name: FaultyStore(*ATTACKS.get(name, (lambda _: STORED, True))) for name in names}
    for store in stores.values():
        await store.__aenter__()
    print(json.dumps({name: store.url for name, store in stores.items()}), flush=True)
    await asyncio.to_thread(sys.stdin.read)


@contextmanager
def stores(*names: str, niceness: int = 0) -> Iterator[dict[str, str]]:
    """The URLs of these stores, while their process runs."""
    command = [sys.executable, "-m", "benchmarks.attack_stores", "--serve", *names]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        preexec_fn=lambda: os.nice(niceness),
    )
    assert process.stdin and process.stdout
    try:
        urls: dict[str, str] = json.loads(process.stdout.readline())
        yield {name: url.replace("http:", "https:") if "TLS" in name else url for name, url in urls.items()}
    finally:
        process.stdin.close()
        process.wait(300)


class Memory:
    """The most megabytes that this process has more than at the beginning; `with` it."""

    def __enter__(self) -> Memory:
        self._ended = threading.Event()
        self._before = self._most = self._resident()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self.grown = self._most - self._before

    def _watch(self) -> None:
        while not self._ended.wait(0.02):
            self._most = max(self._most, self._resident())

    @staticmethod
    def _resident() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def boto3_upload(url: str) -> Callable[[], float]:
    """Seconds of one upload of the objects by boto3's client, as it is, in threads."""
    import boto3
    from botocore.config import Config

    client = boto3.client(
        "s3", endpoint_url=url, aws_access_key_id="id", aws_secret_access_key="secret", region_name="us-east-1",
        config=Config(request_checksum_calculation="when_required", max_pool_connections=16),
    )  # fmt: skip
    pool = ThreadPoolExecutor(len(OBJECTS))

    def upload() -> float:
        begun = time.monotonic()
        list(pool.map(lambda item: client.put_object(Bucket="images", Key=item[0], Body=item[1]), OBJECTS))
        return time.monotonic() - begun

    return upload


async def own_upload(store: Any) -> float:
    """Seconds of one upload of the objects to the worker's own store."""
    from imagegen.outputs import upload

    begun = time.monotonic()
    await upload.put(store, OBJECTS, "image/png")
    return time.monotonic() - begun


async def run_jobs(name: str, url: str, count: int, seconds: int) -> tuple[float, list[str]]:
    """Runs jobs that name a store: seconds until the last has ended, and how they ended."""
    import handler

    async def job(number: int) -> str:
        config = {"accessId": "id", "accessSecret": "secret", "bucketName": "images", "endpointUrl": url}
        request = {"prompt": "a red circle", "delivery": "url", "num_images": 2, "timeout": seconds}
        request |= {"width": 64, "height": 64, "num_inference_steps": 1}
        output = await handler.handler({"id": f"{name}-{number}", "input": request, "s3Config": config})
        return str(output.get("code", "base64"))

    begun = time.monotonic()
    outcomes = await asyncio.gather(*(job(i) for i in range(count)))
    return time.monotonic() - begun, sorted(set(outcomes))


async def beside(url: str, own: Any, pairs: int) -> float:
    """What an upload to the own store takes while 32 to a hostile one hang, against one alone: the median of pairs."""
    from tests.support.faulty_store import outcome, store_at

    ratios = []
    for _ in range(pairs):
        alone = await own_upload(own)
        hanging = [asyncio.ensure_future(outcome(store_at(url), OBJECTS[0][1], 8)) for _ in range(4)]
        await asyncio.sleep(0.5)
        ratios.append(await own_upload(own) / alone)
        for task in hanging:
            task.cancel()
        await asyncio.gather(*hanging)
    return statistics.median(ratios)


async def attack(urls: dict[str, str], pairs: int) -> AsyncIterator[Row]:
    """A row for each store but the good one."""
    import handler
    from imagegen.outputs.object_store import ObjectStore
    from imagegen.settings import get_settings

    own = ObjectStore.from_settings(get_settings())
    await handler.handler({"id": "warm", "input": {"prompt": "a red circle"}})
    await run_jobs("warm", urls["good"], JOBS, 600)
    await own_upload(own)
    for name in filter(urls.get, ATTACKS):
        with Memory() as memory:
            took, outcomes = await run_jobs(name, urls[name], JOBS, SECONDS)
        other = await beside(urls[name], own, pairs)
        yield Row(
            f"a job's store: {name}",
            f"{JOBS} jobs end after {took:.1f} s as {', '.join(outcomes)}; {memory.grown:+.0f} MB; an upload to the "
            f"own store takes {other:.2f} of the time",
            f"they end within {SECONDS} s; {MEGABYTES} MB more; the own store takes up to {RATIO}",
            in_time(took, SECONDS + 1) and memory.grown < MEGABYTES and in_time(other, RATIO),
        )


def rows(short: bool) -> Iterator[Row]:
    """All kinds; short: those that hold a connection in another way each."""
    names = [name for name in ATTACKS if not short or name in ("an error without end", "never reads")]
    with stores(*names, niceness=19) as hostile, stores("good") as good:
        os.environ |= environment(good["good"])
        with asyncio.Runner() as runner:
            attacks = attack({**hostile, **good}, 4 if short else 20)
            while (row := runner.run(anext(attacks, None))) is not None:
                yield row


def environment(url: str) -> dict[str, str]:
    """The settings of a worker whose own store is at this URL."""
    return {
        "IMAGEGEN_MODEL": "micro", "IMAGEGEN_DEVICE": "cpu",
        "IMAGEGEN_PRIVATE_HOSTS": "127.0.0.1", "BUCKET_ENDPOINT_URL": url, "BUCKET_ACCESS_KEY_ID": "id",
        "BUCKET_SECRET_ACCESS_KEY": "secret", "BUCKET_NAME": "images",
    }  # fmt: skip


async def without_attack(url: str, pairs: int) -> str:
    """What an upload to the own store takes, against boto3's client."""
    from imagegen.outputs.object_store import ObjectStore
    from imagegen.settings import get_settings

    own, upload = ObjectStore.from_settings(get_settings()), boto3_upload(url)
    await asyncio.to_thread(upload)
    await own_upload(own)
    couples = [(await own_upload(own), await asyncio.to_thread(upload)) for _ in range(pairs)]
    alone = statistics.median(mine for mine, _ in couples)
    ratio = statistics.median(mine / theirs for mine, theirs in couples)
    clock = time.process_time()
    for _ in range(pairs):
        await own_upload(own)
    between = time.process_time()
    for _ in range(pairs):
        await asyncio.to_thread(upload)
    computing = (between - clock) / (time.process_time() - between)
    return (
        f"own store, no attack: {1000 * alone:.0f} ms, {ratio:.2f} of boto3's client, {computing:.2f} of its CPU time"
    )


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serve", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        asyncio.run(serve(arguments.serve))
        return 0
    with stores("good") as urls:
        os.environ |= environment(urls["good"])
        print(asyncio.run(without_attack(urls["good"], 20)), "\n")
    for row in rows(short=False):
        print(f"| {row.attack} | {row.seen} | {'yes' if row.met else '**no**'} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
