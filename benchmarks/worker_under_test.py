"""A worker on the stand-in queue whose GPU is simulated or slowed down, and watched: run by benchmarks.worker.

    python -m benchmarks.worker_under_test HANDLER INTERVALS (--simulate|--slow) SECONDS
        [--fetch SECONDS] [--concurrency N]

`--simulate`: the worker's own pipeline, whose transformer sleeps for this long in all of a job's 4 steps, and whose
other parts return at once what was prepared (`free_model`). `--slow`: micro, whose transformer sleeps this long in
each step beside its work. Each interval in which text encoder, transformer or VAE runs is appended to INTERVALS as a
line "begin end cpu": times of time.monotonic(), and the CPU seconds of the thread until then. `--fetch`: each reference
takes this long to arrive. `--concurrency`: the SDK's own loop takes the jobs, this number of them in flight, and not
ours.
"""

from __future__ import annotations

import argparse
import runpy
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel
from transformers import Qwen3ForCausalLM

if not __package__:  # started by its path, which makes this folder the place of imports
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.free_model import make_free

ROOT = Path(__file__).resolve().parent.parent
STEPS = 4


class Watch:
    """Appends the intervals of the calls that it wraps to a file; those inside another are part of it."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", buffering=1)
        self._inside = threading.local()

    def wrap(self, call: Callable[..., Any], sleep: float = 0) -> Callable[..., Any]:
        """`call`, watched, and longer by `sleep` seconds."""

        def watched(*arguments: Any, **options: Any) -> Any:
            if getattr(self._inside, "yes", False):
                return call(*arguments, **options)
            self._inside.yes, begun = True, time.monotonic()
            try:
                time.sleep(sleep)
                return call(*arguments, **options)
            finally:
                self._inside.yes = False
                self._file.write(f"{begun} {time.monotonic()} {time.thread_time()}\n")

        return watched


def simulate(watch: Watch, seconds: float) -> None:
    """A model of which only the transformer takes time."""
    make_free(watch.wrap(lambda: time.sleep(seconds / STEPS)))


def fetch(seconds: float) -> None:
    """Lets each reference take this long to arrive."""
    from imagegen.inputs.decoders import Decoders

    patched: Any = Decoders
    load = patched._load  # noqa: SLF001 - what a load costs is replaced

    def late(*arguments: Any) -> Any:
        time.sleep(seconds)
        return load(*arguments)

    patched._load = late  # noqa: SLF001 - as above


def take_with_the_sdk(concurrency: int) -> None:
    """Replaces our loop over the queue by the SDK's own, with a `concurrency_modifier` of this number."""
    from runpod.serverless.modules.rp_scale import JobScaler

    from imagegen.runpod import worker

    def scaler(_: Any, adapter: Any, config: dict[str, Any]) -> JobScaler:
        return JobScaler({**config, "concurrency_modifier": lambda _: concurrency})

    patched: Any = worker
    patched.QueueLoop = scaler


def slow(watch: Watch, seconds: float) -> None:
    """Watches the parts of the real micro, and makes each step of its transformer longer."""
    parts: list[tuple[Any, str, float]] = [
        (Flux2Transformer2DModel, "forward", seconds),
        (Qwen3ForCausalLM, "forward", 0),
        (AutoencoderKLFlux2, "decode", 0),
        (AutoencoderKLFlux2, "encode", 0),
    ]
    for part, name, sleep in parts:
        setattr(part, name, watch.wrap(getattr(part, name), sleep))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("script", help="the worker's file")
    parser.add_argument("intervals", type=Path, help="where the times of its GPU work are written")
    parser.add_argument("--simulate", type=float, metavar="SECONDS", help="only the transformer takes time")
    parser.add_argument("--slow", type=float, metavar="SECONDS", help="make each step of micro longer")
    parser.add_argument("--fetch", type=float, metavar="SECONDS", help="make each download longer")
    parser.add_argument("--concurrency", type=int, metavar="N", help="take jobs with the SDK's own loop, N at a time")
    args = parser.parse_args()
    sys.argv = [args.script]
    sys.path.insert(0, str(ROOT))
    watch = Watch(args.intervals)
    if args.simulate is not None:
        simulate(watch, args.simulate)
    if args.slow is not None:
        slow(watch, args.slow)
    if args.fetch is not None:
        fetch(args.fetch)
    if args.concurrency is not None:
        take_with_the_sdk(args.concurrency)
    runpy.run_path(args.script, run_name="__main__")


if __name__ == "__main__":
    main()
