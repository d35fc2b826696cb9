"""A mask as the weight of the edit at each pixel of a photo: 0 keeps the photo's pixel, 255 takes the generated one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imagegen.errors import InvalidInput
from imagegen.models import Size

#: A mask of another size than its photo is resized where its shape is the photo's within this.
_SHAPE_TOLERANCE = 0.01
#: Growth and feather without a wish: one pixel for each 128 of the photo's shorter side.
_DEFAULT_PART = 128
#: Grey from which on a pixel is of the selection that grows.
_SELECTED = 128


def weights(
    mask: Image.Image, photo: Size, *, invert: bool, grow: int | None, feather: int | None
) -> NDArray[np.uint8]:
    """A mask as (height, width) weights of the edit, of the photo's size.

    Args:
        mask: mode L; white is edited.
        photo: width and height of the reference that the mask belongs to, upright.
        invert: black is edited instead.
        grow: pixels of the photo by which the selection grows first; None: one for each 128 of its shorter side.
        feather: pixels over which the edit fades out around the grown selection; None: as `grow`.

    Raises:
        InvalidInput: the mask has another shape than the photo, or selects nothing.
    """
    values = np.asarray(_of_size(mask, photo))
    if invert:
        values = np.subtract(255, values, dtype=np.uint8)
    if not values.any():
        what = "black" if invert else "white"
        raise InvalidInput(f"mask: selects nothing; {what} or transparent pixels are what is edited", "mask")
    default = max(1, round(min(photo) / _DEFAULT_PART))
    grow, feather = default if grow is None else grow, default if feather is None else feather
    return _grown(values, grow, feather)


def _grown(values: NDArray[np.uint8], grow: int, feather: int) -> NDArray[np.uint8]:
    import cv2

    # Only around what is selected: a photo has a hundred times as many pixels as its mask.
    reach, side = grow + feather // 2, 2 * (feather // 4) + 1
    around = tuple(
        slice(max(0, int(found[0]) - reach - side), int(found[-1]) + 1 + reach + side)
        for found in (np.flatnonzero(values.any(axis=1)), np.flatnonzero(values.any(axis=0)))
    )
    part = np.ascontiguousarray(values[around])
    if reach:
        # By distance: to dilate by the largest reach would take a photo of 36 megapixels twelve minutes.
        unselected = (part < _SELECTED).astype(np.uint8)
        distance = cv2.distanceTransform(unselected, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        part = np.maximum(part, (distance <= reach).astype(np.uint8) * np.uint8(255))
    if feather:
        # A box twice is a triangle: the weight falls from 255 at the grown edge to 0 `feather` pixels outside of it.
        part = cv2.blur(cv2.blur(part, (side, side)), (side, side)).astype(np.uint8)
    grown = np.zeros_like(values)
    grown[around] = part
    return grown


def _of_size(mask: Image.Image, photo: Size) -> Image.Image:
    if mask.size == photo:
        return mask
    if abs(mask.width * photo[1] / (mask.height * photo[0]) - 1) > _SHAPE_TOLERANCE:
        raise InvalidInput(
            f"mask: is {mask.width}x{mask.height} and the first reference {photo[0]}x{photo[1]}; "
            "their sizes, or at least their shapes, must be the same",
            "mask",
        )
    return mask.resize(photo, Image.Resampling.BILINEAR)
