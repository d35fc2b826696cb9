"""What the benchmark of edits is made of: masked edits whose right answer is known, photographs, and drift."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from imagegen.builder.micro.measure import shows
from imagegen.builder.micro.samples import draw_sample
from imagegen.builder.micro.scenes import Scene
from imagegen.models import Size

Pixels = NDArray[np.uint8]
#: Edits that a mask can confine.
_TASKS = ("recolour", "swap", "remove", "add", "enlarge", "shrink")
#: Standard deviation of a camera's noise, of 255. Without it a flat background has no jump that a seam's could be
#: compared with.
_GRAIN = 3.0


@dataclass(frozen=True)
class MaskedSample:
    """A photo of a scene, what to change in it, where, and what it must show then."""

    prompt: str
    photo: Image.Image
    mask: Image.Image
    target: Scene
    seed: int

    def is_right(self, answer: Image.Image) -> bool:
        """Whether an answer shows the change: kinds, colours, places and sizes of all shapes, and the background."""
        return shows(answer.resize((128, 128), Image.Resampling.LANCZOS), self.target)


def masked_sample(seed: int) -> MaskedSample:
    """A masked edit that the training has never shown; the mask covers the shapes that change, with a margin."""
    rng = random.Random(f"masked {seed}")
    while True:
        asked = draw_sample("edit", rng, held_out=True)
        if asked.meaning["task"] in _TASKS:
            break
    before, after, side = asked.references[0], asked.target, rng.choice((128, 160, 192, 256))
    changing = {*before.shapes} ^ {*after.shapes}
    mask = Image.new("L", (side, side))
    for shape in changing:
        x, y, reach = shape.x * side, shape.y * side, (1.1 * shape.radius + 0.02) * side
        ImageDraw.Draw(mask).ellipse((x - reach, y - reach, x + reach, y + reach), fill=255)
    return MaskedSample(asked.caption, grainy(before.draw(side, side), seed), mask, after, seed)


def grainy(picture: Image.Image, seed: int) -> Image.Image:
    """A picture with a camera's noise."""
    noise = np.random.default_rng(seed).normal(0, _GRAIN, (picture.height, picture.width, 1))
    return Image.fromarray(np.clip(np.asarray(picture) + noise, 0, 255).astype(np.uint8))


def seam(photo: Image.Image, answer: Image.Image, alpha: Pixels) -> tuple[float, float]:
    """The mean jump between neighbours that the edit weighs differently: of the answer, and of the photo."""
    jumps = []
    for picture in (answer, photo):
        pixels, found = np.asarray(picture, np.float32), []
        for axis in (0, 1):
            edge = np.diff(alpha.astype(int), axis=axis) != 0
            found.append(np.abs(np.diff(pixels, axis=axis)).mean(-1)[edge])
        jumps.append(float(np.concatenate(found).mean()))
    return jumps[0], jumps[1]


def synthetic_photo(size: Size, seed: int) -> Image.Image:
    """Smooth shapes of many colours under grain."""
    width, height = size
    noise = np.random.default_rng(seed)
    coarse = noise.integers(0, 256, (max(2, height // 64), max(2, width // 64), 3), np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC), np.int16)
    grain = noise.integers(-6, 7, (height, width, 1), np.int16)
    return Image.fromarray(np.clip(smooth + grain, 0, 255).astype(np.uint8))


def photographs(folder: Path | None) -> dict[str, Image.Image]:
    """The RGB photographs of a folder by their names; without one, photographs made by arithmetic."""
    if folder is None:
        return {f"synthetic {seed}": synthetic_photo((512, 512 - 64 * seed), seed) for seed in range(4)}
    found = {}
    for path in sorted(folder.iterdir()):
        if path.suffix in (".png", ".jpg"):
            with Image.open(path) as picture:
                if picture.mode == "RGB" and min(picture.size) >= 256:
                    found[path.stem] = picture.copy()
    return found


def synthetic_edit(photo: Image.Image, seed: int) -> tuple[Image.Image, NDArray[np.bool_]]:
    """A photo in which one thing has changed: an object is there, is gone (blurred away), or has another colour; and
    where that is."""
    import cv2

    rng = np.random.default_rng(seed)
    height, width = photo.height, photo.width
    rows, columns = np.mgrid[:height, :width]
    radius = rng.uniform(0.08, 0.22) * min(width, height)
    x, y = rng.uniform(radius, width - radius), rng.uniform(radius, height - radius)
    inside = (columns - x) ** 2 + (rows - y) ** 2 < radius**2
    pixels, other = np.asarray(photo), np.asarray(photo)
    way = seed % 3
    if way == 0:
        other = np.broadcast_to(rng.integers(0, 256, 3, np.uint8), pixels.shape)
    elif way == 1:
        other = pixels[..., rng.permutation([[1, 2, 0], [2, 0, 1]])[0]]
    else:
        other = cv2.GaussianBlur(255 - pixels, (0, 0), radius / 6).astype(np.uint8)
    return Image.fromarray(np.where(inside[..., None], other, pixels).astype(np.uint8)), inside


def drifted(picture: Image.Image, seed: int) -> tuple[Image.Image, NDArray[np.float32]]:
    """A picture moved by up to 8 pixels, scaled by 0.98 to 1.02, each channel times 0.9 to 1.1, with a decoder's noise;
    and the (2, 3) movement from the old coordinates to the new ones."""
    import cv2

    rng = np.random.default_rng(seed)
    scale, angle, far = rng.uniform(0.98, 1.02), rng.uniform(0, 2 * math.pi), rng.uniform(0, 8)
    warp = np.array([[scale, 0, far * math.cos(angle)], [0, scale, far * math.sin(angle)]], np.float32)
    pixels = np.asarray(picture)
    moved = cv2.warpAffine(pixels, warp, picture.size, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    tinted = moved * rng.uniform(0.9, 1.1, 3) + rng.normal(0, 1.5, moved.shape)
    return Image.fromarray(np.clip(tinted, 0, 255).astype(np.uint8)), warp
