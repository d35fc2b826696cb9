"""What the host does for an image beside the model: CPU seconds of the GPU's thread against the bare diffusers call.

    OMP_NUM_THREADS=1 python -m benchmarks.host_time [--images 20]

klein-9b with all its modules at a small width, whose text encoder, transformer and VAE return at once: what is left is
the host's work, for which a GPU waits. 1024x1024, 4 steps, a new prompt for each image, no reference and four. Both
ways take turns in one run and give the same image, to the bit. CPU seconds of the thread, and no time of the clock:
what else runs on the machine slows both alike. The worker's other threads prepare an image's inputs before its turn and
make its bytes after it; their seconds are shown beside. Prints Markdown for docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import Flux2KleinPipeline
from PIL import Image

if not __package__:  # started by its path, which makes this folder the place of imports
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.free_model import make_free, photo_like
from benchmarks.random_model import write_model
from imagegen.model.config import FluxConfig
from imagegen.model.inputs import References
from imagegen.model.pipeline import FluxPipeline
from imagegen.models import ModelSpec, get_model

T = TypeVar("T")

SIDE, STEPS = 1024, 4


def small_klein() -> ModelSpec:
    """klein-9b with all its layers and latents, at a small width."""
    spec = get_model("klein-9b")
    small = replace(
        spec.architecture,
        hidden=64,
        heads=2,
        text_hidden=64,
        text_feed_forward=64,
        text_heads=4,
        text_kv_heads=2,
        text_head_width=16,
        vocabulary=118,
    )
    return replace(spec, architecture=small)


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """What `work` returns, and the CPU seconds that it took in this thread."""
    begun = time.thread_time()
    result = work()
    return result, time.thread_time() - begun


def compare(bare: Any, pipeline: FluxPipeline, references: list[Image.Image], count: int) -> str:
    """A line of the table."""
    how: dict[str, Any] = {"width": SIDE, "height": SIDE, "num_inference_steps": STEPS, "guidance_scale": 1.0}
    columns: list[list[float]] = []
    for seed in range(count + 1):
        prompt, generator = f"a red fox in the snow, number {seed}", torch.Generator().manual_seed(seed)
        call = partial(bare, image=references or None, prompt=prompt, generator=generator, **how)
        output, plain = timed(call)
        wanted = output.images[0]
        inputs, before = timed(partial(pipeline.preparation.inputs, References(references), seeds=[seed], **how))
        tokens, more = timed(partial(pipeline.preparation.tokens, prompt))
        encoded, first = timed(partial(pipeline.encode_prompt, tokens))
        generated, ours = timed(partial(pipeline.generate_prepared, inputs, encoded, seed))
        image, after = timed(partial(getattr, generated, "image"))
        if image.tobytes() != wanted.tobytes():
            raise RuntimeError("the two ways give different images")
        if seed:  # the first image imports, and fills caches
            columns.append([plain, first + ours, before + more, after])
    plain, ours, before, after = (1000 * statistics.median(column) for column in zip(*columns, strict=True))
    ratio = statistics.median(row[1] / row[0] for row in columns)
    return f"| {len(references)} references | {plain:.1f} | {ours:.1f} | {ratio:.3f} | {before:.1f} | {after:.1f} |"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20, metavar="N", help="of each way; default: 20")
    count = parser.parse_args().images
    torch.set_num_threads(1)
    make_free()
    with tempfile.TemporaryDirectory() as folder:
        spec = small_klein()
        path = write_model(spec, Path(folder))
        bare = Flux2KleinPipeline.from_pretrained(path, dtype=torch.float32)
        bare.set_progress_bar_config(disable=True)
        print(
            "| CPU ms an image, median | bare diffusers | GPU's thread | ratio | prepared before | bytes made after |"
        )
        print("|---|---|---|---|---|---|")
        with FluxPipeline(FluxConfig(spec, path, device="cpu")) as pipeline, torch.no_grad():
            for references in ([], [photo_like(SIDE, SIDE)] * 4):
                print(compare(bare, pipeline, references, count), flush=True)


if __name__ == "__main__":
    main()
