"""What a picture shows, by its pixels: the background's colour, the shape's colour, what an edit left untouched."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from builder.micro.scenes import COLOURS

_NAMES = list(COLOURS)
_PALETTE = np.array(list(COLOURS.values()), dtype=np.float32)  # (colours, 3)
#: A shape is at least this share of the picture; less is noise.
_LEAST_SHARE = 0.01


def colour_names(picture: Image.Image) -> NDArray[np.int64]:
    """(H, W): the index in COLOURS of the nearest named colour of each pixel."""
    pixels = np.asarray(picture, dtype=np.float32)
    distances = ((pixels[:, :, None] - _PALETTE) ** 2).sum(-1)
    nearest: NDArray[np.int64] = distances.argmin(-1)
    return nearest


def background_colour(picture: Image.Image) -> str:
    """The most common named colour in the outermost sixteenth of the picture."""
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
