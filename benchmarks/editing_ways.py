"""Compares ways to generate what a mask selects, on micro, with the same photos, masks, words and seeds.

python -m benchmarks.editing_ways             prints the table
python -m benchmarks.editing_ways --picture   also writes docs/editing-ways.png

All see the crop around the mask, have their drift undone and are pasted alike (`imagegen.editing`). They differ in the
kept part of the latents at each step:

- reference: it is left to the model, which sees the crop as its reference image. This is what image-gen does.
- re-noised: the crop's latents under the level's noise, the same noise as at the beginning (diffusers' inpainting,
  which takes new noise nowhere else either).
- velocity: the model's velocity is replaced by the one towards the crop's latents, (x - x0) / sigma (LightX2V).
- no reference: as re-noised, and the model does not see the crop.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

if not __package__:  # started by its path, which makes this folder the place of imports
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.editing_samples import MaskedSample, masked_sample, seam
from imagegen.compat.diffusers import encode_image
from imagegen.contract.schemas import EditRequest
from imagegen.editing.mask import weights
from imagegen.editing.photo import MaskedEdit, plan_edit
from imagegen.model.config import FluxConfig
from imagegen.model.images import image_to_bytes, to_pixels
from imagegen.model.pipeline import FluxPipeline
from imagegen.models import MICRO_PATH, get_model

WAYS = ("reference", "re-noised", "velocity", "no reference")
_PICTURE = Path(__file__).resolve().parents[1] / "docs" / "editing-ways.png"
#: Rows of the contact sheet, and the side of an image in it.
_ROWS, _SIDE = 6, 160


@contextmanager
def keeping(pipe: Any, edit: MaskedEdit, way: str, noise: torch.Tensor) -> Iterator[None]:
    """While it is open, the pipeline's steps keep the unmasked latents in one of the ways."""
    if way == "reference":
        yield
        return
    x0 = encode_image(pipe, to_pixels(image_to_bytes(edit.crop)))
    # Max-pooled: a cell of which any pixel is selected is generated.
    selected = torch.from_numpy(~edit.kept()).float()[None, None]
    changes = torch.nn.functional.max_pool2d(selected, 16).flatten(1)[..., None]
    step: Callable[..., Any] = pipe.scheduler.step

    def kept(output: torch.Tensor, timestep: torch.Tensor, sample: torch.Tensor, **options: Any) -> Any:
        scheduler = pipe.scheduler
        index = scheduler.step_index or 0
        sigma, after = scheduler.sigmas[index], scheduler.sigmas[index + 1]
        if way == "velocity":
            output = changes * output + (1 - changes) * (sample - x0) / sigma
        made = step(output, timestep, sample, **options)[0]
        if way != "velocity":
            made = changes * made + (1 - changes) * ((1 - after) * x0 + after * noise)
        return (made,)

    pipe.scheduler.step = kept
    try:
        yield
    finally:
        del pipe.scheduler.step


def answer(pipeline: FluxPipeline, sample: MaskedSample, way: str) -> tuple[Image.Image, np.ndarray[Any, Any]]:
    """The edited photo, and the weights of the edit."""
    request = EditRequest(prompt=sample.prompt, images=["x"], mask="x")
    edit = plan_edit(request, sample.photo, sample.mask, pipeline.config.spec)
    assert isinstance(edit, MaskedEdit)
    how: dict[str, Any] = {
        "width": edit.crop.width,
        "height": edit.crop.height,
        "num_inference_steps": 4,
        "guidance_scale": 1.0,
    }
    noise = pipeline.preparation.noise(edit.crop.size, sample.seed)  # the same as the pipeline's
    with keeping(pipeline._plain, edit, way, noise):  # noqa: SLF001 - its steps are what is compared
        references = [] if way == "no reference" else [edit.crop]
        generated = pipeline.edit(sample.prompt, references, seed=sample.seed, **how).image
    alpha = weights(sample.mask, sample.photo.size, invert=False, grow=None, feather=None)
    return edit.finish(generated).image, alpha


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100, help="masked edits")
    parser.add_argument("--picture", action="store_true", help=f"write {_PICTURE.name}")
    args = parser.parse_args()
    right: dict[str, int] = dict.fromkeys(WAYS, 0)
    jumps: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    rows: list[tuple[MaskedSample, list[Image.Image]]] = []
    with FluxPipeline(FluxConfig(get_model("micro"), MICRO_PATH, device="cpu")) as pipeline:
        for seed in range(args.count):
            sample, images = masked_sample(seed), []
            for way in WAYS:
                image, alpha = answer(pipeline, sample, way)
                right[way] += sample.is_right(image)
                jumps[way].append(seam(sample.photo, image, alpha))
                images.append(image)
            rows.append((sample, images))
    print("| way | right inside, of", args.count, "| seam |\n|---|---|---|")
    for way in WAYS:
        made, was = (statistics.mean(column) for column in zip(*jumps[way], strict=True))
        print(f"| {way} | {right[way] / args.count:.0%} | {made / was:.2f} |")
    if args.picture:
        contact_sheet(rows[:_ROWS]).save(_PICTURE, optimize=True)


def contact_sheet(rows: list[tuple[MaskedSample, list[Image.Image]]]) -> Image.Image:
    """A row for each edit: the photo, the mask, and what each way made."""
    titles = ("photo", "mask", *WAYS)
    sheet = Image.new("RGB", (len(titles) * (_SIDE + 8), 20 + len(rows) * (_SIDE + 24)), "white")
    pen = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        pen.text((column * (_SIDE + 8) + 4, 4), title, fill="black")
    for row, (sample, images) in enumerate(rows):
        top = 20 + row * (_SIDE + 24)
        for column, image in enumerate((sample.photo, sample.mask, *images)):
            shown = image.convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.NEAREST)
            sheet.paste(shown, (column * (_SIDE + 8) + 4, top))
        pen.text((4, top + _SIDE + 4), sample.prompt, fill="black")
    return sheet


if __name__ == "__main__":
    main()
