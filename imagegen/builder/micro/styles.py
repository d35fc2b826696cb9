"""Whether a picture shows what the miniature's adapters teach: white frames around shapes, and rings for circles."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imagegen.builder.micro.measure import background_colour, colour_names
from imagegen.builder.micro.scenes import COLOURS

_NAMES = list(COLOURS)
#: Pixels below a shape's edge, which is a mixture of both sides, and how deep the frame is looked for.
_EDGE, _DEPTH = 1, 3


def frame_share(picture: Image.Image) -> float:
    """The share of a shape's outermost pixels that are white; 0 where there is no shape. Not for a white background."""
    names = colour_names(picture)
    filled = names != _NAMES.index(background_colour(picture))
    band = _eroded(filled, _EDGE) & ~_eroded(filled, _DEPTH)
    return float((names[band] == _NAMES.index("white")).mean()) if band.any() else 0.0


def hole_share(picture: Image.Image) -> float:
    """The share of pixels in the middle of the one shape that have the background's colour; 0 where there is none."""
    names = colour_names(picture)
    ground = _NAMES.index(background_colour(picture))
    rows, columns = np.nonzero(names != ground)
    if not rows.size:
        return 0.0
    top, bottom, left, right = rows.min(), rows.max(), columns.min(), columns.max()
    row, column, reach = (top + bottom) // 2, (left + right) // 2, max(1, min(bottom - top, right - left) // 8)
    middle = names[row - reach : row + reach + 1, column - reach : column + reach + 1]
    return float((middle == ground).mean())


def _eroded(mask: NDArray[np.bool_], pixels: int) -> NDArray[np.bool_]:
    """The mask without what is near its edge (4 neighbours); the picture's border is no edge."""
    for _ in range(pixels):
        inner = mask.copy()
        inner[1:] &= mask[:-1]
        inner[:-1] &= mask[1:]
        inner[:, 1:] &= mask[:, :-1]
        inner[:, :-1] &= mask[:, 1:]
        mask = inner
    return mask
