"""Which part of a photo a masked edit generates, and at which size."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from imagegen.models import ModelSpec, Size, fit

#: The crop is this much larger than what the mask selects, so that the model sees what the edit must blend with.
_CONTEXT = 1.5
#: The longest shape that a reference image may have (diffusers' `Flux2ImageProcessor.check_image_input`).
_MAX_RATIO = 8
#: A small photo is generated larger than it is, which models do better, but not by more than this.
_MOST_ENLARGED = 2.0


@dataclass(frozen=True)
class Region:
    """The part of a photo that is generated.

    Args:
        box: left, top, right and bottom of the crop, in the photo's pixels; right and bottom are outside of it.
        size: width and height at which the model generates the crop, multiples of 16.
    """

    box: tuple[int, int, int, int]
    size: Size

    @property
    def crop_size(self) -> Size:
        """Width and height of the crop in the photo's pixels."""
        left, top, right, bottom = self.box
        return right - left, bottom - top


def choose_region(alpha: NDArray[np.uint8], spec: ModelSpec) -> Region:
    """The crop of a photo around what a mask selects, and the size at which the model generates it best.

    The crop is one and a half times as large as the selection and has at least as many pixels as the model's default
    image, so that a small selection keeps its surroundings and the photo's resolution. A crop with more pixels than
    that is generated smaller and enlarged again.

    Args:
        alpha: (height, width), the photo's size; what is over 0 is selected. Something must be.
    """
    height, width = alpha.shape
    columns, rows = np.flatnonzero(alpha.any(axis=0)), np.flatnonzero(alpha.any(axis=1))
    wide, high = int(columns[-1] - columns[0] + 1), int(rows[-1] - rows[0] + 1)
    across = max(math.ceil(wide * _CONTEXT), spec.size, math.ceil(high * _CONTEXT / _MAX_RATIO))
    down = max(math.ceil(high * _CONTEXT), spec.size, math.ceil(wide * _CONTEXT / _MAX_RATIO))
    left, right = _span(int(columns[0]), wide, across, width)
    top, bottom = _span(int(rows[0]), high, down, height)
    return Region((left, top, right, bottom), _generated_size((right - left, bottom - top), spec))


def whole(photo: Size, spec: ModelSpec) -> Region:
    """All of a photo of this width and height, and the size at which the model generates it best."""
    return Region((0, 0, *photo), _generated_size(photo, spec))


def _generated_size(crop: Size, spec: ModelSpec) -> Size:
    best = spec.size**2
    scale = min(_MOST_ENLARGED, math.sqrt(best / (crop[0] * crop[1])))
    return fit(crop[0] * scale, crop[1] * scale, spec.min_size, spec.max_size, best)


def _span(first: int, length: int, wanted: int, available: int) -> tuple[int, int]:
    """Begin and end of `wanted` pixels of `available` around the `length` ones that begin at `first`."""
    wanted = min(wanted, available)
    begin = min(max(0, first - (wanted - length) // 2), available - wanted)
    return begin, begin + wanted
