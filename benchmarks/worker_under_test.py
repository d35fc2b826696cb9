"""A worker on the stand-in queue whose GPU is simulated or slowed down, and watched: run by benchmark_worker.

    python -m benchmarks.worker_under_test HANDLER INTERVALS (--simulate|--slow) SECONDS
        [--fetch SECONDS] [--concurrency N]

`--simulate`: the GPU sleeps this long for a job and hands over a prepared picture of 1024x1024. `--slow`: micro draws,
and its transformer sleeps this long in each step. Either way each interval in which the GPU is busy (with `--slow`: in
which text encoder, transformer or VAE runs) is appended to INTERVALS as a line "begin end", in time.monotonic().
`--fetch`: each reference takes this long to arrive. `--concurrency`: the SDK's own loop takes the jobs, this number of
them in flight, and not ours.
"""

from __future__ import annotations

import argparse
import runpy
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
from PIL import Image, ImageFilter

if not __package__:  # started by its path, which makes this folder the place of imports
    sys.path[0] = str(Path(__file__).resolve().parents[1])

ROOT = Path(__file__).resolve().parent.parent
STEPS = 4


def photo_like(side: int = 1024) -> Image.Image:
    """A picture that compresses as a photograph does: smooth shapes of many colours under a fine grain (PNG at zlib's
    level 6: about 1.6 bytes a pixel)."""
    noise = np.random.default_rng(0)
    coarse = Image.fromarray(noise.integers(0, 256, (side // 64, side // 64, 3), np.uint8))
    smooth = coarse.resize((side, side), Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(4))
    grain = noise.normal(0, 3, (side, side, 3))
    return Image.fromarray(np.clip(np.asarray(smooth) + grain, 0, 255).astype(np.uint8))


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
                self._file.write(f"{begun} {time.monotonic()}\n")

        return watched


def simulate(watch: Watch, seconds: float) -> None:
    """Replaces the model by a sleep: as the pipeline that the plain handler calls, and as ours."""
    from imagegen.model import pipeline

    picture = photo_like()

    class Pipe:
        """What plain_handler.py uses of the pipeline."""

        @classmethod
        def from_pretrained(cls, *_: Any, **__: Any) -> Pipe:
            return cls()

        def __call__(self, **_: Any) -> Any:
            watch.wrap(time.sleep)(seconds)
            return type("Output", (), {"images": [picture]})

    def load(self: pipeline.FluxPipeline) -> None:
        self._device = __import__("torch").device("cpu")
        self._pipe = type("Pipe", (), {"_execution_device": self._device})

    def generate(self: pipeline.FluxPipeline, *_: Any, on_step: Any, **__: Any) -> Any:
        def steps() -> None:
            for step in range(STEPS):
                time.sleep(seconds / STEPS)
                on_step(step + 1, STEPS, lambda: picture)

        watch.wrap(steps)()
        return SimpleNamespace(image=picture, denoise=seconds, decode=0.0)

    diffusers.Flux2KleinPipeline = Pipe
    ours: Any = pipeline.FluxPipeline
    ours.load, ours.generate, ours.edit = load, generate, generate
    ours.encode_prompt = lambda self, prompt: SimpleNamespace(seconds=0.0, warnings=[], cached=False)
    ours.unload = lambda self: None


def fetch(seconds: float) -> None:
    """Lets each reference take this long to arrive."""
    from imagegen.inputs.decoders import Decoders

    patched: Any = Decoders
    load = patched._load  # noqa: SLF001 - what a load costs is replaced

    def late(*arguments: Any) -> Any:
        time.sleep(seconds)
        return load(*arguments)

    patched._load = late  # noqa: SLF001


def take_with_the_sdk(concurrency: int) -> None:
    """Replaces our loop over the queue by the SDK's own, with a `concurrency_modifier` of this number."""
    from runpod.serverless.modules.rp_scale import JobScaler

    from imagegen.runpod import worker

    def scaler(_: Any, door: Any, config: dict[str, Any]) -> JobScaler:
        return JobScaler({**config, "concurrency_modifier": lambda _: concurrency})

    patched: Any = worker
    patched.QueueLoop = scaler


def slow(watch: Watch, seconds: float) -> None:
    """Watches the parts of the real micro, and makes each step of its transformer longer."""
    from_pretrained = diffusers.Flux2KleinPipeline.from_pretrained

    def load(*arguments: Any, **options: Any) -> Any:
        pipe = from_pretrained(*arguments, **options)
        pipe.transformer.forward = watch.wrap(pipe.transformer.forward, seconds)
        pipe.text_encoder.forward = watch.wrap(pipe.text_encoder.forward)
        pipe.vae.decode, pipe.vae.encode = watch.wrap(pipe.vae.decode), watch.wrap(pipe.vae.encode)
        return pipe

    diffusers.Flux2KleinPipeline.from_pretrained = load


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("script", help="the worker's file")
    parser.add_argument("intervals", type=Path, help="where the times of its GPU work are written")
    parser.add_argument("--simulate", type=float, metavar="SECONDS", help="replace the model by a sleep")
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
