"""What an image shows, by its pixels: the background's colour, the shape's colour, its
outline, what an edit left untouched."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imagegen.builder.micro.scenes import COLOURS, SHAPES, SIZES, Scene, Shape

_NAMES = list(COLOURS)
_PALETTE = np.array(list(COLOURS.values()), dtype=np.float32)  # (colours, 3)
#: A shape is at least this share of the image; less is noise.
_LEAST_SHARE = 0.01


def colour_names(picture: Image.Image) -> NDArray[np.int64]:
    """(H, W): the index in COLOURS of the nearest named colour of each pixel."""
    pixels = np.asarray(picture, dtype=np.float32)
    distances = ((pixels[:, :, None] - _PALETTE) ** 2).sum(-1)
    nearest: NDArray[np.int64] = distances.argmin(-1)
    return nearest


def background_colour(picture: Image.Image) -> str:
    """The most common named colour in the outermost sixteenth of the image."""
    names = colour_names(picture)
    edge = max(1, min(names.shape) // 16)
    inside = np.zeros_like(names, dtype=bool)
    inside[edge:-edge, edge:-edge] = True
    return _most_common(names[~inside])


def shape_colour(picture: Image.Image) -> str | None:
    """The most common named colour that is not the background's; None where there is hardly any other."""
    names = colour_names(picture)
    others = names[names != _NAMES.index(background_colour(picture))]
    return _most_common(others) if others.size >= _LEAST_SHARE * names.size else None


def untouched_difference(picture: Image.Image, before: Image.Image, wanted: Image.Image) -> float:
    """Mean absolute difference (of 255) from `wanted` where the edit should change nothing. All of one size, RGB."""
    drawn, old, new = (np.asarray(image, dtype=np.float32) for image in (picture, before, wanted))
    same = np.abs(old - new).max(-1) < 8
    return float(np.abs(drawn - new)[same].mean()) if same.any() else 0.0


def interval(right: int, total: int) -> tuple[float, float]:
    """The 95 % confidence interval of a share (Wilson's score interval)."""
    if not total:
        return 0.0, 1.0
    z, share = 1.96, right / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    reach = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return max(0.0, centre - reach), min(1.0, centre + reach)


def _most_common(names: NDArray[np.int64]) -> str:
    return _NAMES[Counter(names.ravel().tolist()).most_common(1)[0][0]]


@dataclass(frozen=True)
class Found:
    """One shape in an image: which it is, its colour, its centre (fractions), its radius (of the shorter side)."""

    kind: str
    colour: str
    x: float
    y: float
    radius: float


def find_shapes(picture: Image.Image, background: str | None = None) -> list[Found]:
    """The shapes of an image, the largest first.

    A shape is a connected patch of one named colour that is not the background's, of at least 0.5 % of the image; its
    kind is that of the template that covers it best (intersection over union). On rendered scenes this names 99 % and
    more of the shapes (tests/builder/test_micro.py).
    """
    names = colour_names(picture)
    height, width = names.shape
    ground = _NAMES.index(background or background_colour(picture))
    found = []
    for mask in _patches(names, ground):
        area = int(mask.sum())
        if area < 0.005 * names.size:
            continue
        ys, xs = np.nonzero(mask)
        kind, unit = _best_template(mask)
        colour = _most_common(names[mask])
        radius = math.sqrt(area / unit) / min(width, height)
        found.append(Found(kind, colour, (xs.mean() + 0.5) / width, (ys.mean() + 0.5) / height, radius))
    return sorted(found, key=lambda shape: -shape.radius)


def size_name(radius: float) -> str:
    """The named size that a radius is nearest to, in proportion."""
    return min(SIZES, key=lambda name: abs(math.log(radius / SIZES[name])))


def shows(picture: Image.Image, scene: Scene) -> bool:
    """Whether an image shows a scene: the background's colour, and every shape with its kind and colour, where it
    should be (0.08 of the sides) and as large as it should be (a quarter more or less), and nothing else."""
    if background_colour(picture) != scene.background:
        return False
    found = find_shapes(picture, scene.background)
    if len(found) != len(scene.shapes):
        return False
    for shape in scene.shapes:
        near = [
            one
            for one in found
            if (one.kind, one.colour) == (shape.kind, shape.colour)
            and math.hypot(one.x - shape.x, one.y - shape.y) < 0.08
            and abs(math.log(one.radius / shape.radius)) < math.log(1.25)
        ]
        if not near:
            return False
        found.remove(near[0])
    return True


def _patches(names: NDArray[np.int64], ground: int) -> list[NDArray[np.bool_]]:
    """Connected patches (4 neighbours) of what is not the background, whatever their colours: the edge of a shape
    passes through other names on its way to the background's."""
    todo = names != ground
    patches = []
    while todo.any():
        seed = np.unravel_index(int(todo.argmax()), todo.shape)
        patch = np.zeros_like(todo)
        patch[seed] = True
        while True:
            grown = patch.copy()
            grown[1:] |= patch[:-1]
            grown[:-1] |= patch[1:]
            grown[:, 1:] |= patch[:, :-1]
            grown[:, :-1] |= patch[:, 1:]
            grown &= todo
            if (grown == patch).all():
                break
            patch = grown
        todo &= ~patch
        patches.append(patch)
    return patches


_GRID = 48


@lru_cache
def _templates() -> list[tuple[str, float, NDArray[np.bool_]]]:
    """(kind, area of the shape with radius 1, mask on the grid with a unit of area in the middle), turned by up to 25
    degrees."""
    made = []
    for kind in SHAPES:
        for turn in range(-25, 30, 5):
            if kind == "circle" and turn:
                continue
            shape = Shape(kind, "black", (0, 0, 0), 0.5, 0.5, 0.4, float(turn))
            drawn = Scene("white", (255, 255, 255), (shape,)).draw(160, 160)
            mask = np.asarray(drawn)[..., 0] < 128
            made.append((kind, mask.sum() / (0.4 * 160) ** 2, _normalised(mask)))
    return made


def _normalised(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The mask moved to its centre of mass and scaled to one area, on a grid of _GRID squared."""
    ys, xs = np.nonzero(mask)
    side = math.sqrt(mask.sum()) * 2.2
    at = (np.arange(_GRID) + 0.5) / _GRID - 0.5
    rows, columns = (np.rint(centre + at * side).astype(int) for centre in (ys.mean(), xs.mean()))
    inside = ((rows >= 0) & (rows < mask.shape[0]))[:, None] & ((columns >= 0) & (columns < mask.shape[1]))[None]
    picked = mask[np.clip(rows, 0, mask.shape[0] - 1)[:, None], np.clip(columns, 0, mask.shape[1] - 1)[None]]
    result: NDArray[np.bool_] = picked & inside
    return result


def _best_template(mask: NDArray[np.bool_]) -> tuple[str, float]:
    """The kind that covers the mask best, and the area of that kind with radius 1."""
    shape = _normalised(mask)
    kind, unit, _ = max(_templates(), key=lambda t: (shape & t[2]).sum() / (shape | t[2]).sum())
    return kind, unit
