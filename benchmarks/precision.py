"""How far images drift when weights are quantised: the same prompts and seeds in the full precision and in another.

    python -m benchmarks.precision fp8 int8 fp8+fp8 [--pictures 200] [--output DIR]

Each word is a precision of the transformer, after a plus that of the text encoder too. Beside them stands the noise
floor: how far images drift by a change that means nothing, bf16 instead of float32 on a CPU, compiled instead of not
on a GPU. Where the model is micro, what each image shows is read from its pixels too. Prints Markdown for
docs/benchmarks.md and writes DIR/compare.png.

LPIPS is not among the figures: its package brings the last layers alone, and the network under them is a download.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

if not __package__:  # started by its path, which makes this folder the place of imports
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from imagegen.builder.micro.measure import background_colour, interval, shape_colour
from imagegen.builder.micro.scenes import held_out_combinations
from imagegen.memory.types import Precision
from imagegen.model.config import FluxConfig
from imagegen.model.loading import default_device
from imagegen.model.pipeline import FluxPipeline
from imagegen.models import get_model
from imagegen.settings import get_settings
from imagegen.weights.sources import find_weights

#: What a model of everything is asked for: people, text, fine patterns, light, many things.
PROMPTS = (
    "a portrait of an old fisherman, rain on his coat, shallow depth of field",
    "a shop window with the words OPEN LATE in red neon",
    "a bowl of ramen from above, steam, chopsticks on the rim",
    "an isometric drawing of a small harbour with seven boats",
    "a close-up of a dragonfly's wing, every vein sharp",
    "a child's drawing of a house, crayon on paper",
    "a street in Lisbon at dusk, tram, wet cobblestones",
    "a chessboard in the middle of a game, marble pieces",
    "a red panda asleep on a branch, morning fog",
    "a glass of water on a checked tablecloth, hard sunlight",
    "a map of an island that does not exist, ink and watercolour",
    "four friends laughing around a camp fire, night sky",
)


def prompts(name: str) -> Iterator[tuple[str, tuple[str, str] | None]]:
    """Prompts without end; for micro the colours of background and shape that an image must have, in combinations
    that its training never showed."""
    if name != "micro":
        yield from ((prompt, None) for prompt in itertools.cycle(PROMPTS))
    for kind, colour, background in itertools.cycle(held_out_combinations()):
        article = "an" if colour[0] in "aeiou" else "a"
        yield f"{article} {colour} {kind} on a {background} background", (background, colour)


def psnr(one: Image.Image, other: Image.Image) -> float:
    """Peak signal to noise ratio in dB; 99 for images that are the same."""
    a, b = (np.asarray(picture, dtype=np.float64) for picture in (one, other))
    error = ((a - b) ** 2).mean()
    return 99.0 if error == 0 else float(10 * np.log10(255**2 / error))


def ssim(one: Image.Image, other: Image.Image) -> float:
    """Structural similarity, 1 for images that are the same: Wang et al. 2004, on luminance, with the paper's window
    (a Gaussian of 11 pixels, sigma 1.5) and constants."""
    a, b = (torch.from_numpy(np.array(picture.convert("L"), dtype=np.float64))[None, None] for picture in (one, other))
    line = torch.exp(-((torch.arange(11, dtype=torch.float64) - 5) ** 2) / (2 * 1.5**2))
    window = (line[:, None] * line[None, :] / line.sum() ** 2)[None, None]

    def mean(values: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.conv2d(values, window)

    mean_a, mean_b = mean(a), mean(b)
    var_a, var_b, both = mean(a * a) - mean_a**2, mean(b * b) - mean_b**2, mean(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = (2 * mean_a * mean_b + c1) * (2 * both + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    return float(values.mean())


def draw(config: FluxConfig, pictures: int, change: Callable[[FluxPipeline], None] | None = None) -> list[Image.Image]:
    """The first so many prompts' images, seed by seed."""
    spec = config.spec
    with FluxPipeline(config) as pipeline:
        if change is not None:
            change(pipeline)
        return [
            pipeline.generate(
                prompt,
                width=spec.size,
                height=spec.size,
                num_inference_steps=spec.num_inference_steps,
                guidance_scale=spec.guidance_scale,
                seed=seed,
            ).image
            for seed, (prompt, _) in zip(range(pictures), prompts(spec.name), strict=False)
        ]


def compile_blocks(pipeline: FluxPipeline) -> None:
    """Compiles the transformer's blocks, each kind once."""
    pipeline._pipe.transformer.compile_repeated_blocks(fullgraph=True)


def right(name: str, drawn: list[Image.Image]) -> int | None:
    """How many images show both colours that were asked for; None where that cannot be read."""
    wanted = [colours for _, (_, colours) in zip(drawn, prompts(name), strict=False)]
    if None in wanted:
        return None
    return sum((background_colour(p), shape_colour(p)) == colours for p, colours in zip(drawn, wanted, strict=True))


def row(name: str, model: str, reference: list[Image.Image], drawn: list[Image.Image]) -> str:
    """A line of the table."""
    line = f"| {name} |"
    for measure in (psnr, ssim):
        values = [measure(a, b) for a, b in zip(reference, drawn, strict=True)]
        tenth = float(np.percentile(np.array(values), 10))
        line += f" {statistics.median(values):.3g} | {tenth:.3g} |"
    if (count := right(model, drawn)) is None:
        return f"{line} | |"
    low, high = interval(count, len(drawn))
    return f"{line} {count} of {len(drawn)}: {count / len(drawn):.1%} | {low:.1%} to {high:.1%} |"


def contact_sheet(columns: dict[str, list[Image.Image]], rows: int = 12) -> Image.Image:
    """Images of a prompt beside each other, and how far the last is from the first, ten times as strong."""
    side = 256
    chosen = [i * len(next(iter(columns.values()))) // rows for i in range(rows)]
    sheet = Image.new("RGB", ((len(columns) + 1) * side, rows * side + 20), "white")
    pen = ImageDraw.Draw(sheet)
    for x, name in enumerate([*columns, "difference x 10"]):
        pen.text((x * side + 4, 2), name, fill="black", font_size=13)
    for y, i in enumerate(chosen):
        pictures = [pictures[i] for pictures in columns.values()]
        first, last = (np.asarray(picture, dtype=np.int16) for picture in (pictures[0], pictures[-1]))
        strong: NDArray[np.uint8] = np.clip(np.abs(last - first) * 10, 0, 255).astype(np.uint8)
        for x, picture in enumerate([*pictures, Image.fromarray(strong)]):
            sheet.paste(picture.resize((side, side)), (x * side, y * side + 20))
    return sheet


def _parse(text: str) -> tuple[str, str]:
    transformer, _, text_encoder = text.partition("+")
    parsed = (transformer, text_encoder or "bf16")
    if not set(parsed) <= set(get_args(Precision)):
        raise argparse.ArgumentTypeError(f"{text!r} is none; {', '.join(get_args(Precision))} are")
    return parsed


def main() -> int:
    """The command line; exit status 1 where micro, quantised, is more than two points less often right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("precisions", nargs="+", help="bf16, fp8, int8 or nf4, and the same after a plus", type=_parse)
    parser.add_argument("--model", default="micro", help="the model to measure; default: %(default)s")
    parser.add_argument("--path", type=Path, help="the folder of its weights in full precision")
    parser.add_argument("--quantized-path", type=Path, help="a folder that was quantised; else that is done here")
    parser.add_argument("--pictures", type=int, default=48, metavar="N", help="images of each precision; default: 48")
    parser.add_argument("--output", type=Path, default=Path("outputs"), metavar="DIR", help="default: outputs")
    args = parser.parse_args()
    spec, device = get_model(args.model), default_device()
    path = args.path or find_weights(spec, get_settings())
    if path is None:
        parser.error(f"there are no weights of {args.model}; --path names their folder")
    plain = FluxConfig(spec, path, device=device)
    full = "float32" if device == "cpu" else "bf16"
    floor = "bf16" if device == "cpu" else "bf16, compiled"
    columns = {full: draw(plain, args.pictures)}
    if device == "cpu":
        columns[floor] = draw(replace(plain, dtype="bfloat16"), args.pictures)
    else:
        columns[floor] = draw(plain, args.pictures, compile_blocks)
    for transformer, text_encoder in args.precisions:
        quantized = replace(plain, path=args.quantized_path or path, transformer=transformer, text_encoder=text_encoder)
        columns[f"{transformer}, text encoder {text_encoder}"] = draw(quantized, args.pictures)
    machine = f"{platform.machine()}, {os.cpu_count()} cores" if device == "cpu" else torch.cuda.get_device_name()
    print(f"{time.strftime('%Y-%m-%d')}, {machine}, {spec.name}, {args.pictures} pictures against {full}\n")
    print("| what | PSNR: median | 10th percentile | SSIM: median | 10th percentile | both colours right | 95 % |")
    print("|---|---|---|---|---|---|---|")
    for title, pictures in columns.items():
        print(row(title, spec.name, columns[full], pictures))
    args.output.mkdir(parents=True, exist_ok=True)
    contact_sheet(columns).save(args.output / "compare.png")
    counts = [right(spec.name, pictures) for pictures in columns.values()]
    return int(any(n is not None and n < (counts[0] or 0) - 0.02 * args.pictures for n in counts))


if __name__ == "__main__":
    sys.exit(main())
