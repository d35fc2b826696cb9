"""Measures edits that leave the rest of a photo alone, with micro on a CPU.

python -m benchmarks.editing                      the whole table
python -m benchmarks.editing --only kept          one part of it
python -m benchmarks.editing --photos FOLDER      real photographs instead of arithmetic

For real photographs: `pip download --no-deps scikit-image==0.25.2`, and unzip its `skimage/data`.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from PIL import Image, ImageDraw

if not __package__:  # started by its path, which makes this folder the place of imports
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.editing_samples import (
    drifted,
    masked_sample,
    photographs,
    seam,
    synthetic_edit,
    synthetic_photo,
)
from imagegen.contract.schemas import EditRequest
from imagegen.editing.changes import find_changes
from imagegen.editing.drift import estimate
from imagegen.editing.mask import weights
from imagegen.editing.photo import plan_edit
from imagegen.model.config import FluxConfig
from imagegen.model.pipeline import FluxPipeline
from imagegen.models import MICRO_PATH, get_model

#: Sizes of the photos whose kept pixels are compared; the largest ones come seldom, since they take seconds each.
_SIZES = ((64, 64), (131, 117), (200, 152), (512, 512), (640, 427), (1000, 300), (1024, 1024))
_LARGE = ((3000, 4000), (6000, 4000))
_Row = tuple[str, str, str]


def _encoded(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=1)
    return base64.b64encode(file.getvalue()).decode()


def _decoded(text: str) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB"))


def kept(count: int, _: Path | None) -> list[_Row]:
    """Pixels outside the mask and its feather that differ, through each transport in turn."""
    import httpx
    import openai

    from imagegen.runpod import handler
    from tests.server.conftest import serving

    different, pixels, rng = 0, 0, random.Random(1)
    formats: list[dict[str, Any]] = [{"output_format": "png"}, {"output_format": "webp", "output_quality": 100}]
    limits = {"max_body_mb": 200, "max_reference_mb": 100, "max_result_mb": 200}
    with serving(**limits) as (url, service), mock.patch.object(handler, "service", return_value=service):
        service.start().result()
        client = httpx.Client(base_url=url, timeout=300)
        ai = openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0, timeout=300)
        for number in range(count):
            large = number % 20 == 19
            size = rng.choice(_LARGE if large else _SIZES)
            photo, mask = synthetic_photo(size, number), Image.new("L", size)
            x, y = rng.randrange(size[0]), rng.randrange(size[1])
            far = rng.randint(2, max(3, min(size) // 3))
            pen = ImageDraw.Draw(mask)
            (pen.ellipse if number % 2 else pen.rectangle)((x - far, y - far, x + far, y + far), fill=255)
            chosen = formats[number // 3 % 2]
            fields = {"prompt": "make the circle green", "seed": number, **chosen}
            # RunPod takes no answer of this size: there it goes to a store.
            if number % 3 == 0 and not large:
                job = {"mode": "edit", **fields, "images": [_encoded(photo)], "mask": _encoded(mask)}
                output = asyncio.run(handler.handler({"id": str(number), "input": job}))
                assert "images" in output, str(output)[:500]
                text = output["images"][0]
            elif number % 3 < 2:
                files = {"image": ("a.png", base64.b64decode(_encoded(photo)))}
                files["mask"] = ("m.png", base64.b64decode(_encoded(mask)))
                form = {name: str(value) for name, value in fields.items()}
                answer = client.post("/edit", data=form, files=files)
                assert answer.is_success, answer.text[:500]
                text = answer.json()["images"][0]
            else:
                text = _through_openai(ai, photo, mask, fields)
            outside = weights(mask, size, invert=False, grow=None, feather=None) == 0
            pixels += int(outside.sum())
            different += int((_decoded(text) != np.asarray(photo))[outside].any(axis=-1).sum())
    return [
        (f"pixels outside mask and feather that differ, {count} edits, {pixels / 1e6:.0f} million", f"{different}", "0")
    ]


def _through_openai(ai: Any, photo: Image.Image, mask: Image.Image, fields: dict[str, Any]) -> str:
    """OpenAI's way: transparent is edited."""
    clear = Image.new("RGBA", mask.size)
    clear.putalpha(mask.point(lambda value: 255 - value))
    files = [
        (name, base64.b64decode(_encoded(image)), "image/png") for name, image in (("a.png", photo), ("m.png", clear))
    ]
    extra: dict[str, Any] = {"seed": fields["seed"]}
    if fields["output_format"] == "webp":
        extra["output_compression"] = 100
    answer = ai.images.edit(
        image=files[0], mask=files[1], prompt=fields["prompt"], output_format=fields["output_format"], extra_body=extra
    )
    return str(answer.data[0].b64_json)


def inside(count: int, _: Path | None) -> list[_Row]:
    """Held-out masked edits: the change made inside, and the seam."""
    from benchmarks.editing_ways import answer

    right, placed, jumps = [], [], []
    with _pipeline() as pipeline:
        for seed in range(1000, 1000 + count):
            sample = masked_sample(seed)
            image, alpha = answer(pipeline, sample, "reference")
            right.append(sample.is_right(image))
            if sample.prompt.startswith("add "):  # the one kind of these that says a place
                placed.append(right[-1])
            jumps.append(seam(sample.photo, image, alpha))
    made, was = (statistics.mean(column) for column in zip(*jumps, strict=True))
    return [
        (f"held-out masked edits: the change made inside, of {count}", f"{sum(right) / count:.1%}", "93 %"),
        (f"of these, {len(placed)} that add a shape at a place", f"{sum(placed) / max(1, len(placed)):.1%}", ""),
        ("the seam: jump across the mask's edge over the untouched picture's", f"{made / was:.2f}", "at most 1.2"),
    ]


def drift(count: int, folder: Path | None) -> list[_Row]:
    """Synthetic drift on a synthetic edit of a photo: what is left of it where the photo was kept."""
    moved, tinted = [], []
    for number, (name, photo) in enumerate(_some(photographs(folder), count)):
        edited, changed = synthetic_edit(photo, number)
        generated, warp = drifted(edited, number)
        found = estimate(np.asarray(photo), np.asarray(generated), ~changed)
        corners = np.array([[x, y] for x in (0, photo.width - 1) for y in (0, photo.height - 1)])
        estimated = np.eye(2, 3) if found.warp is None else found.warp
        errors = (estimated[:, :2] - warp[:, :2]) @ corners.T + (estimated[:, 2:] - warp[:, 2:])
        moved.append(float(np.abs(errors).mean()))
        rows, columns = (slice(side // 16, side - side // 16) for side in changed.shape)
        left = found.undo(np.asarray(generated)).astype(float) - np.asarray(photo)
        tinted.append(float(np.abs(left[rows, columns][~changed[rows, columns]].mean(axis=0)).max()))
        print(f"{name:24} {number:3}: {moved[-1]:.2f} pixels, {tinted[-1]:.2f} levels", file=sys.stderr)
    return [
        (
            "drift undone: mean pixels that are left",
            f"{statistics.mean(moved):.2f} (worst {max(moved):.2f})",
            "under 0.5",
        ),
        (
            "drift undone: mean levels of 255 that are left",
            f"{statistics.mean(tinted):.2f} (worst {max(tinted):.2f})",
            "under 2",
        ),
    ]


def preserve(count: int, folder: Path | None) -> list[_Row]:
    """`preserve: auto` under that drift: what is kept of the untouched, and what is lost of the change."""
    kept_parts, lost_parts = [], []
    for number, (name, photo) in enumerate(_some(photographs(folder), count)):
        edited, changed = synthetic_edit(photo, number)
        generated, _ = drifted(edited, number)
        found = find_changes(np.asarray(photo), np.asarray(generated))
        # A pixel has changed where anybody would call it so: by more than 40 levels.
        visible = changed & (np.abs(np.asarray(edited, int) - np.asarray(photo)).max(axis=-1) > 40)
        alpha = np.full(changed.shape, 255, np.uint8) if found is None else found.alpha
        kept_parts.append(float((alpha[~changed] == 0).mean()))
        lost_parts.append(float((alpha[visible] < 128).mean()) if visible.any() else 0.0)
        print(f"{name:24} {number:3}: kept {kept_parts[-1]:.1%}, reverted {lost_parts[-1]:.1%}", file=sys.stderr)
    return [
        ("preserve: untouched pixels kept to the bit", f"{statistics.mean(kept_parts):.1%}", "95 %"),
        ("preserve: changed pixels wrongly reverted", f"{statistics.mean(lost_parts):.1%}", "at most 2 %"),
    ]


def _some(found: dict[str, Image.Image], count: int) -> list[tuple[str, Image.Image]]:
    names = list(found)
    return [(names[i % len(names)], found[names[i % len(names)]]) for i in range(count)]


def added(_: int, __: Path | None) -> list[_Row]:
    """Seconds and memory that a masked edit of 12 megapixels takes beside the GPU, in a process of its own."""
    code = "from benchmarks.editing import cost; cost()"
    seconds, megabytes = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    return [
        ("cropping, aligning and pasting for 12 megapixels", f"{float(seconds):.2f} s", "under 0.5 s"),
        ("peak memory of that, photo and mask included", f"{float(megabytes):.0f} MB", "under 600 MB"),
    ]


def cost() -> None:
    """Prints the processor's seconds and the megabytes of a masked edit of 12 megapixels, without the model."""
    spec, size = get_model("klein-9b"), (4000, 3000)
    small = np.asarray(synthetic_photo((64, 64), 1))
    estimate(small, small, np.ones((64, 64), bool))  # what is imported once
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    photo, mask = synthetic_photo(size, 1), Image.new("L", size)
    ImageDraw.Draw(mask).ellipse((1500, 1000, 2300, 1800), fill=255)
    begun = time.process_time()
    edit = plan_edit(EditRequest(prompt="x", images=["x"], mask="x"), photo, mask, spec)
    first = time.process_time() - begun
    generated, _ = drifted(edit.crop, 1)
    begun = time.process_time()
    edit.finish(generated)
    seconds = first + time.process_time() - begun
    print(seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1000)


def strength(count: int, _: Path | None) -> list[_Row]:
    """How far nine strengths go from the source: in the mean of all pixels, and on the way to the whole edit."""
    levels = [float(level) for level in np.linspace(0.2, 1, 9)]
    changes: list[list[float]] = []
    ways: list[list[float]] = []
    with _pipeline() as pipeline:
        for sample in map(masked_sample, range(count)):
            source = sample.photo.resize((128, 128), Image.Resampling.LANCZOS)
            how: dict[str, Any] = {"width": 128, "height": 128, "num_inference_steps": 4, "guidance_scale": 1.0}
            edits = [pipeline.edit(sample.prompt, [source], seed=sample.seed, strength=s, **how).image for s in levels]
            moved = [np.asarray(image, float) - np.asarray(source) for image in edits]
            changes.append([float(np.abs(one).mean()) for one in moved])
            ways.append([float((one * moved[-1]).sum() / (moved[-1] ** 2).sum()) for one in moved])
    rows = []
    for what, each in (("on the way to the whole edit", ways), ("mean difference", changes)):
        means = [statistics.mean(column) for column in zip(*each, strict=True)]
        verdict = "monotonic" if means == sorted(means) else "not monotonic"
        shown = ", ".join(f"{mean:.2f}" for mean in means)
        name = f"strength 0.2 to 1.0 in nine steps, {count} edits: {what}"
        rows.append((name, f"{verdict}: {shown}", "monotonic"))
    return rows


def _pipeline() -> FluxPipeline:
    return FluxPipeline(FluxConfig(get_model("micro"), MICRO_PATH, device="cpu"))


_PARTS: dict[str, tuple[Callable[[int, Path | None], list[_Row]], int]] = {
    "kept": (kept, 200),
    "inside": (inside, 200),
    "drift": (drift, 48),
    "preserve": (preserve, 48),
    "added": (added, 1),
    "strength": (strength, 40),
}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(_PARTS), help="one part of the table")
    parser.add_argument("--count", type=int, help="edits of each part")
    parser.add_argument("--photos", type=Path, metavar="FOLDER", help="of photographs for drift and preserve")
    args = parser.parse_args()
    print("| what | measured | target |\n|---|---|---|")
    for name in [args.only] if args.only else _PARTS:
        part, count = _PARTS[name]
        for row in part(args.count or count, args.photos):
            print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
