"""What is not computed twice, with micro on the CPU, as ratios of the same run (below 1 it pays).

    python -m benchmarks.caches [--pairs 15]

Runs alternate, so that another job on the machine slows both alike. Prints Markdown for docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

if not __package__:  # started by its path, which makes this folder the place of imports
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from imagegen.builder.micro.scenes import COLOURS, Scene, Shape
from imagegen.model.config import FluxConfig
from imagegen.model.inputs import References
from imagegen.model.pipeline import FluxPipeline
from imagegen.models import MICRO_PATH, get_model

PROMPT = "make the background green"
PICTURES = 4
SIDE = 128


def references(count: int) -> list[Image.Image]:
    kinds = ("circle", "square", "triangle", "star")[:count]
    shapes = [Shape(kind, "red", COLOURS["red"], 0.5, 0.5, 0.28) for kind in kinds]
    return [Scene("blue", COLOURS["blue"], (shape,)).draw(SIDE, SIDE) for shape in shapes]


def draw(pipeline: FluxPipeline, images: References | None, seed: int = 0) -> None:
    how: dict[str, Any] = {"width": SIDE, "height": SIDE, "num_inference_steps": 4, "guidance_scale": 1.0, "seed": seed}
    if images is None:
        pipeline.generate(PROMPT, **how)
    else:
        pipeline.edit(PROMPT, images, **how)


def job(pipeline: FluxPipeline, images: list[Image.Image], once: bool) -> None:
    """The images of a job, its references encoded once, or for each."""
    shared = References(images)
    for seed in range(PICTURES):
        draw(pipeline, shared if once else References(images), seed)


def seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def row(what: str, mine: Callable[[], object], base: Callable[[], object], pairs: int) -> None:
    """Prints a line of the table: medians, and the median of the ratios of pairs that ran one after the other."""
    mine()
    base()
    times = [(seconds(mine), seconds(base)) for _ in range(pairs)]
    ratios = sorted(a / b for a, b in times)
    with_it, without = (1000 * statistics.median(column) for column in zip(*times, strict=True))
    spread = f"{ratios[0]:.3f} to {ratios[-1]:.3f}"
    print(f"| {what}, {pairs} pairs | {with_it:.1f} | {without:.1f} | {statistics.median(ratios):.3f} | {spread} |")


def main() -> None:
    parser = argparse.ArgumentParser(description="What is not computed twice, with micro on the CPU.")
    parser.add_argument("--pairs", type=int, default=15, metavar="N", help="pairs of calls; default: 15")
    pairs = parser.parse_args().pairs
    spec = get_model("micro")
    keeps = FluxPipeline(FluxConfig(spec, MICRO_PATH, device="cpu", prompt_cache=10**6))
    forgets = FluxPipeline(FluxConfig(spec, MICRO_PATH, device="cpu"))
    with keeps, forgets:
        print("| what | with ms | without ms | ratio: median of pairs | least to most |\n|---|---|---|---|---|")
        row("a prompt again", lambda: keeps.encode_prompt(PROMPT), lambda: forgets.encode_prompt(PROMPT), pairs)
        row(f"a picture {SIDE}x{SIDE} of it", lambda: draw(keeps, None), lambda: draw(forgets, None), pairs)
        for count in (1, 4):
            images = references(count)
            what = f"{PICTURES} pictures {SIDE}x{SIDE} of {count} reference{'s' * (count > 1)}"
            row(what, partial(job, keeps, images, True), partial(job, keeps, images, False), pairs)


if __name__ == "__main__":
    main()
