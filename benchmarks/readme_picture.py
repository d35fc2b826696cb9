"""docs/micro.png, the README's image: what micro generates, and edits of the first image, with their prompts.

    python -m benchmarks.readme_picture

`python -m benchmarks.micro --card` makes it too.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parents[1]
if not __package__:  # started by its path, which makes this folder the place of imports
    sys.path[0] = str(ROOT)

from imagegen.model.config import FluxConfig
from imagegen.model.pipeline import FluxPipeline
from imagegen.models import MICRO_PATH, get_model

SEED = 42
GENERATED = (
    "a red circle on a blue background",
    "a green star on a white background",
    "a big yellow triangle on a purple gradient",
    "a small blue square on the left and an orange circle on the right on a white background",
    "a small white star at the top on a black background",
)
#: Edits of the first image; the last one takes the background of the second.
EDITS = (
    "make the circle green",
    "make the background yellow",
    "turn the circle into a star",
    "make the circle bigger",
    "the circle of image 1 on the background of image 2",
)
#: Pixels: a cell, the space around it, the lines of text under it.
CELL, GAP, TEXT = 160, 14, 58


def picture(pipeline: FluxPipeline) -> Image.Image:
    """The sheet: a row of generated images, a row of edits, each with its prompt."""
    how: dict[str, Any] = {"seed": SEED, "width": 128, "height": 128, "num_inference_steps": 4, "guidance_scale": 1.0}
    generated = [pipeline.generate(prompt, **how).image for prompt in GENERATED]
    edits = [pipeline.edit(prompt, generated[: 1 + ("image 2" in prompt)], **how).image for prompt in EDITS]
    sheet = Image.new("RGB", (5 * (CELL + GAP) + GAP, 2 * (CELL + TEXT + GAP) + GAP), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for row, (images, prompts) in enumerate(((generated, GENERATED), (edits, EDITS))):
        for column, (image, prompt) in enumerate(zip(images, prompts, strict=True)):
            x, y = GAP + column * (CELL + GAP), GAP + row * (CELL + TEXT + GAP)
            sheet.paste(image.resize((CELL, CELL), Image.Resampling.LANCZOS), (x, y))
            pen.text((x, y + CELL + 4), wrapped(prompt, font, CELL), fill="#333333", font=font)
    return sheet


def wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """The text in lines of at most `width` pixels, broken between words."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return "\n".join(lines)


def write(pipeline: FluxPipeline, path: Path = ROOT / "docs" / "micro.png") -> None:
    """Writes the image with a palette, which is less than half of the bytes."""
    picture(pipeline).quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)


def main() -> int:
    """The command line."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with FluxPipeline(FluxConfig(get_model("micro"), MICRO_PATH, device="cpu")) as pipeline:
        write(pipeline)
    return 0


if __name__ == "__main__":
    sys.exit(main())
