"""What an edit without a mask has changed, told apart from what has merely drifted."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from imagegen.editing.drift import Drift, Pixels, estimate

#: How often the drift is estimated again without the pixels that were seen to change.
_ROUNDS = 3
#: A pixel has changed where it differs by more than this many standard deviations of the unchanged part's difference,
#: and by more than these levels of 255: what a VAE loses at edges.
_DEVIATIONS, _LEAST_DIFFERENCE = 6.0, 20.0
#: By how much of the image's longer side (1 / this), and by how many levels of 255, drift may move and tint it.
_REACH, _MOST_TINT = 40, 30
#: More difference (levels of 255) between parts that should be alike means that they are not.
_MOST_NOISE = 12.0
#: Where less than this part of the image is unchanged, there is nothing to keep.
_LEAST_UNCHANGED = 0.15


class Changes(NamedTuple):
    """What an edit changed: weights (height, width), 255 where it did; and the drift of the rest."""

    alpha: NDArray[np.uint8]
    drift: Drift


def find_changes(reference: Pixels, generated: Pixels) -> Changes | None:
    """Tells what an edit has changed from what has drifted, by the noise of the difference where both are alike.

    Args:
        reference, generated: (height, width, 3), of one size.

    Returns:
        None where most of the image has changed, so that nothing can be told.
    """
    import cv2

    height, width = reference.shape[:2]
    changed = _surely_changed(reference, generated)
    drift, noise = None, 0.0
    for _ in range(_ROUNDS):
        drift = estimate(reference, generated, ~changed)
        moved = drift.undo(generated)
        # Smoothed, since single pixels differ by grain and by resampling; the shift of an edge by half a pixel too.
        difference = cv2.blur(cv2.absdiff(reference, moved), (3, 3)).max(axis=-1).astype(np.float32)
        noise = 1.4826 * float(np.median(difference[~changed]))
        found = (difference > max(_LEAST_DIFFERENCE, _DEVIATIONS * noise)).astype(np.uint8)
        # Single pixels are noise; small holes in what has changed have changed too.
        small, large = (
            cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side)) for side in (3, min(height, width) // 32 | 3)
        )
        found = cv2.morphologyEx(cv2.morphologyEx(found, cv2.MORPH_OPEN, small), cv2.MORPH_CLOSE, large)
        found = cv2.dilate(found, small, iterations=2)
        now = found.astype(bool)
        if 1 - now.mean() < _LEAST_UNCHANGED:
            return None
        settled = np.array_equal(now, changed)
        changed = now
        if settled:
            break
    if drift is None or noise > _MOST_NOISE:
        return None
    alpha = changed.astype(np.uint8) * 255
    return Changes(cv2.blur(alpha, (3, 3)).astype(np.uint8), drift)


def _surely_changed(reference: Pixels, generated: Pixels) -> NDArray[np.bool_]:
    """Where the generated image has a colour that no drift could have brought there from the reference: none like it is
    near. Without these pixels the drift can be estimated."""
    import cv2

    side = 2 * max(4, max(reference.shape) // _REACH) + 1
    near = cv2.getStructuringElement(cv2.MORPH_RECT, (side, side))
    darkest, brightest = cv2.erode(reference, near).astype(int), cv2.dilate(reference, near).astype(int)
    smooth = cv2.blur(generated, (3, 3)).astype(int)
    outside = (smooth < darkest - _MOST_TINT) | (smooth > brightest + _MOST_TINT)
    return np.asarray(outside.any(axis=-1), bool)
