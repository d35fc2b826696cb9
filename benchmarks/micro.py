"""Measures the miniature model on combinations that its training never showed, through the real FluxPipeline.

python -m benchmarks.micro            prints the table, writes outputs/micro-eval.png
python -m benchmarks.micro --card     also writes the table into imagegen/micro/README.md, and docs/micro.png

What is asked comes from the generator of the training's samples, held to those whose answer shows a combination of
shape, colour and background that no training image showed; references have hard edges or JPEG noise as often as in
the training.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw

if not __package__:  # started by its path, which makes this folder the place of imports
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks import readme_picture
from imagegen.builder.micro import __main__ as recipe
from imagegen.builder.micro.captions import Sample
from imagegen.builder.micro.measure import (
    background_colour,
    find_shapes,
    interval,
    shape_colour,
    shows,
    size_name,
    untouched_difference,
)
from imagegen.builder.micro.pool import as_found
from imagegen.builder.micro.samples import draw_sample
from imagegen.model.config import FluxConfig
from imagegen.model.pipeline import FluxPipeline
from imagegen.models import MICRO_PATH, get_model

ROOT = Path(__file__).resolve().parent.parent
SIZE = 128
#: What an edit may change where it should change nothing, in the mean, of 255.
KEPT = 12
#: How far from where it should be a shape may be, as a fraction of the side.
NEAR = 0.08
_HEADER = ("| what | right | of | share | 95 % interval |", "|---|---|---|---|---|")
_BEGIN, _END = "<!-- figures -->", "<!-- /figures -->"

Measures = Callable[[Sample, Image.Image], dict[str, bool]]


@dataclass
class Trial:
    """One image: what was asked, from which references, and which measures it passed."""

    prompt: str
    references: list[Image.Image]
    picture: Image.Image
    passed: dict[str, bool]


@dataclass(frozen=True)
class Test:
    """A part of the evaluation: the kind of sample, which of them, what is measured, at which size, and which share of
    `--each` images."""

    kind: str
    wanted: Callable[[Sample], bool]
    measures: Measures
    size: tuple[int, int] = (SIZE, SIZE)
    share: float = 1.0


def _things(prefix: str) -> Measures:
    """Of one shape from words: each thing by itself."""

    def measure(asked: Sample, picture: Image.Image) -> dict[str, bool]:
        (shape,) = asked.target.shapes
        return {
            f"{prefix}: background's colour": background_colour(picture) == asked.target.background,
            f"{prefix}: shape's colour": shape_colour(picture) == shape.colour,
            f"{prefix}: shape": [one.kind for one in find_shapes(picture)[:1]] == [shape.kind],
        }

    return measure


def _position(asked: Sample, picture: Image.Image) -> dict[str, bool]:
    (shape,) = asked.target.shapes
    found = find_shapes(picture)[:1]
    near = any(math.hypot(one.x - shape.x, one.y - shape.y) < NEAR for one in found)
    return {"text to image: position": near}


def _size(asked: Sample, picture: Image.Image) -> dict[str, bool]:
    named = [size_name(one.radius) for one in find_shapes(picture)[:1]]
    return {"text to image: size": named == [asked.meaning["size"]]}


def _whole(*names: str) -> Measures:
    """Of an image as a whole, under each of the names: every shape in its place, and all that was to stay, which of
    several references is the background of one."""

    def measure(asked: Sample, picture: Image.Image) -> dict[str, bool]:
        right = shows(picture, asked.target)
        if asked.references:
            ground = asked.references[int(asked.meaning.get("ground_image", "1")) - 1]
            before, wanted = (scene.draw(*picture.size) for scene in (ground, asked.target))
            right = right and untouched_difference(picture, before, wanted) <= KEPT
        return dict.fromkeys(names, right)

    return measure


def _task(*tasks: str) -> Callable[[Sample], bool]:
    return lambda asked: asked.meaning["task"] in tasks


def _one_shape(asked: Sample) -> bool:
    return len(asked.target.shapes) == 1 and asked.meaning.get("background", "none") != "none"


_EDITS = {
    "recolour the shape": ("recolour",),
    "recolour the background": ("background",),
    "remove": ("remove",),
    "add": ("add",),
    "move": ("move",),
    "enlarge and shrink": ("enlarge", "shrink"),
    "turn into another shape": ("swap",),
}
TESTS = (
    Test("generate", _one_shape, _things("text to image")),
    Test("generate", lambda s: s.meaning.get("position", "none") != "none" and _one_shape(s), _position),
    Test("generate", lambda s: s.meaning.get("size", "none") != "none" and _one_shape(s), _size),
    Test("generate", lambda s: len(s.target.shapes) == 2, _whole("text to image: two shapes, each in its place")),
    *(
        Test("edit", _task(*tasks), _whole("edit with one reference", f"edit: {name}"), share=0.2)
        for name, tasks in _EDITS.items()
    ),
    Test("combine", _task("combine"), _whole("two references")),
    Test("combine3", _task("combine"), _whole("three references")),
    Test("combine4", _task("combine"), _whole("four references")),
    *(
        Test("generate", _one_shape, _things(f"at {w}x{h}"), (w, h), share=0.4)
        for w, h in ((96, 96), (160, 160), (192, 192), (256, 256), (144, 96), (96, 144))
    ),
    # Of the edits above every fifth or so; by itself it shows whether the words find their shape.
    Test("edit2", _task("recolour", "remove", "swap"), _whole("one of two shapes edited"), share=0.4),
)


def open_pipeline(model: Path) -> FluxPipeline:
    """The pipeline, not yet loaded."""
    return FluxPipeline(FluxConfig(get_model("micro"), model, device="cpu"))


def run_alone(number: int, model: Path, count: int) -> list[Trial]:
    """Part `number` of TESTS, on samples of its own, in a process with one thread."""
    torch.set_num_threads(1)
    with open_pipeline(model) as pipeline:
        rng = random.Random(f"{recipe.SEED + 2}-{number}")
        return list(run(pipeline, TESTS[number], max(1, round(count * TESTS[number].share)), rng))


def run(pipeline: FluxPipeline, test: Test, count: int, rng: random.Random) -> Iterator[Trial]:
    """`count` images of one part. What the measure could not judge on the truth itself (shapes that touch)
    is not asked."""
    seed = 0
    while seed < count:
        asked = draw_sample(test.kind, rng, held_out=True)
        if not test.wanted(asked) or not shows(asked.target.draw(*test.size), asked.target):
            continue
        references = [as_found(scene, *test.size, rng) for scene in asked.references]
        how = _how(*test.size)
        if references:
            picture = pipeline.edit(asked.caption, references, seed=seed, **how).image
        else:
            picture = pipeline.generate(asked.caption, seed=seed, **how).image
        yield Trial(asked.caption, references, picture, test.measures(asked, picture))
        seed += 1


def _how(width: int, height: int) -> dict[str, Any]:
    return {"width": width, "height": height, "num_inference_steps": 4, "guidance_scale": 1.0}


def spread(pipeline: FluxPipeline, count: int) -> str:
    """How far seeds move a shape and change its size where the prompt leaves both open."""
    how = _how(SIZE, SIZE)
    prompt = "a red circle on a blue background"
    found = [find_shapes(pipeline.generate(prompt, seed=seed, **how).image)[:1] for seed in range(count)]
    circles = [one[0] for one in found if one]
    x, y, radius = (statistics.pstdev(getattr(one, name) for one in circles) for name in ("x", "y", "radius"))
    return (
        f"Over {len(circles)} seeds of '{prompt}' the standard deviation of the circle's place is {x:.3f} of the width "
        f"and {y:.3f} of the height, that of its radius {radius:.3f}."
    )


def pace(pipeline: FluxPipeline, count: int) -> str:
    """The median time of an image at SIZE squared, by the number of its references."""
    rng, times, around = random.Random(1), [], []
    for kind in ("generate", "edit", "combine", "combine3", "combine4"):
        seconds = []
        for seed in range(count):
            asked = draw_sample(kind, rng)
            references = [scene.draw(SIZE, SIZE) for scene in asked.references]
            begun = time.monotonic()
            prompt = pipeline.encode_prompt(asked.caption)
            if references:
                drawn = pipeline.edit(prompt, references, seed=seed, **_how(SIZE, SIZE))
            else:
                drawn = pipeline.generate(prompt, seed=seed, **_how(SIZE, SIZE))
            seconds.append(time.monotonic() - begun)
            around.append(prompt.seconds + drawn.decode)
        times.append(f"{statistics.median(seconds):.2f}")
    return (
        f"Seconds a picture at {SIZE}x{SIZE}, the median, with no to four references: {', '.join(times)}; of which the "
        f"text encoder and the VAE's decoder together take {statistics.median(around):.3f}."
    )


def rows(trials: Sequence[Trial]) -> list[str]:
    """Rows of a Markdown table: the share that passed each measure, with its 95 % confidence interval."""
    lines = []
    for name in dict.fromkeys(name for trial in trials for name in trial.passed):
        results = [trial.passed[name] for trial in trials if name in trial.passed]
        low, high = interval(sum(results), len(results))
        share = f"{sum(results) / len(results):.1%} | {low:.1%} to {high:.1%}"
        lines.append(f"| {name} | {sum(results)} | {len(results)} | {share} |")
    return lines


def contact_sheet(trials: Sequence[Trial], columns: int = 10) -> Image.Image:
    """The images with what was asked; references stand before their edit, a failure has a red frame."""
    cells = [
        cell
        for t in trials
        for cell in (
            *((reference, "reference", True) for reference in t.references),
            (t.picture, t.prompt, all(t.passed.values())),
        )
    ]
    step_x, step_y = SIZE + 8, SIZE + 42
    sheet = Image.new("RGB", (columns * step_x, -(-len(cells) // columns) * step_y), "grey")
    pen = ImageDraw.Draw(sheet)
    for i, (picture, text, good) in enumerate(cells):
        x, y = i % columns * step_x + 4, i // columns * step_y + 4
        if not good:
            pen.rectangle((x - 4, y - 4, x + SIZE + 3, y + SIZE + 3), fill="red")
        fitted = picture.copy()
        fitted.thumbnail((SIZE, SIZE))
        sheet.paste(fitted, (x, y))
        lines = "\n".join(text[start : start + 24] for start in range(0, 72, 24))
        pen.text((x, y + SIZE + 1), lines, fill="white", font_size=10)
    return sheet


def write_card(path: Path, figures: str) -> None:
    """Replaces what stands between the marks of the GPU."""
    card = path.read_text(encoding="utf-8")
    before, _, rest = card.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    path.write_text(f"{before}{_BEGIN}\n{figures}\n{_END}{after}", encoding="utf-8")


def main() -> int:
    """The command line; exit status 1 when a shape from words has its right colour in less than nine of ten."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=MICRO_PATH, help="the model's folder")
    parser.add_argument("--each", type=int, default=500, help="pictures for a whole part of the table")
    parser.add_argument(
        "--sheet", type=Path, default=Path("outputs/micro-eval.png"), help="where the contact sheet goes"
    )
    parser.add_argument("--card", action="store_true", help="write the figures into the model's card")
    args = parser.parse_args()
    parts = []
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as workers:
        asked = range(len(TESTS)), repeat(args.model), repeat(args.each)
        for part in workers.map(run_alone, *asked):
            parts.append(part)
            print("\n".join(rows(part)), flush=True)
    with open_pipeline(args.model) as pipeline:
        table = "\n".join([*_HEADER, *rows([trial for part in parts for trial in part])])
        figures = f"{table}\n\n{spread(pipeline, 100)} {pace(pipeline, 25)}"
    print(figures)
    args.sheet.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet([trial for part in parts for trial in part[:8]]).save(args.sheet)
    print(args.sheet)
    if args.card:
        write_card(args.model / "README.md", figures)
        with open_pipeline(args.model) as pipeline:
            readme_picture.write(pipeline)
    colours = [t.passed["text to image: shape's colour"] for t in parts[0]]
    return int(sum(colours) < 0.9 * len(colours))


if __name__ == "__main__":
    sys.exit(main())
