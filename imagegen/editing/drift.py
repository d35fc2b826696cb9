"""How far a generated image has drifted from its reference where nothing should have changed, and back.

FLUX.2 klein moves, scales and tints what it was not asked to change. Where both images show the same, the movement is
estimated by OpenCV's masked ECC (Evangelidis and Psarakis, 2008), started from a phase correlation; the tint by a
straight line for each channel, fitted without the pixels that do not follow it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Selection = NDArray[np.bool_]

#: Below this correlation of the kept parts the movement is not certain enough to be undone; above the second nothing
#: better is looked for.
_LEAST_CORRELATION, _CERTAIN = 0.6, 0.97
#: Movements are estimated on images of this longer side at most: five times as fast as at 1,024, and exact to a
#: third of a pixel there.
_ESTIMATE_SIDE = 512
#: More scale or shear than this is no drift of the model's.
_MOST_SCALE = 0.08
#: Kept pixels without which nothing is estimated, and the contrast (standard deviation, of 255) that they must have.
_LEAST_PIXELS, _LEAST_CONTRAST = 256, 2.0
#: Gains and offsets beyond these are a change of the image and no tint.
_MOST_GAIN, _MOST_OFFSET = 1.35, 48.0
_IDENTITY = np.eye(2, 3, dtype=np.float32)


@dataclass(frozen=True)
class Drift:
    """How a generated image differs from its reference where it should not.

    Args:
        warp: (2, 3), from the reference's pixel coordinates to the generated image's; None: not known, or none.
        gain, offset: for each channel: reference = gain * generated + offset, of 255.
    """

    warp: NDArray[np.float32] | None
    gain: tuple[float, float, float]
    offset: tuple[float, float, float]

    @property
    def shift(self) -> tuple[float, float]:
        """Pixels to the right and down by which the image's origin has moved."""
        return (0.0, 0.0) if self.warp is None else (float(self.warp[0, 2]), float(self.warp[1, 2]))

    @property
    def scale(self) -> float:
        """By how much the generated image is larger."""
        return 1.0 if self.warp is None else float(self.warp[0, 0])

    def undo(self, generated: Pixels) -> Pixels:
        """The generated image (height, width, 3) where and as it would be without the drift."""
        import cv2

        moved: Pixels = generated
        if self.warp is not None:
            height, width = generated.shape[:2]
            flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
            moved = cv2.warpAffine(
                generated, self.warp, (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE
            ).astype(np.uint8)
        if self.gain == (1.0, 1.0, 1.0) and self.offset == (0.0, 0.0, 0.0):
            return moved
        levels = np.arange(256)[:, None] * np.array(self.gain) + np.array(self.offset)
        table = np.clip(np.rint(levels), 0, 255).astype(np.uint8)
        return np.stack([table[:, channel][moved[..., channel]] for channel in range(3)], axis=-1)


def estimate(reference: Pixels, generated: Pixels, kept: Selection) -> Drift:
    """The drift of a generated image against its reference.

    Args:
        reference, generated: (height, width, 3), of one size.
        kept: (height, width), where nothing should have changed.
    """
    warp = _movement(reference, generated, kept)
    moved = Drift(warp, (1, 1, 1), (0, 0, 0)).undo(generated)
    inside = kept if warp is None else kept & _covered(warp, kept.shape)
    gain, offset = _tint(reference[inside], moved[inside])
    return Drift(warp, gain, offset)


def _movement(reference: Pixels, generated: Pixels, kept: Selection) -> NDArray[np.float32] | None:
    import cv2

    # By a whole number, since other reductions move edges by parts of a pixel.
    by = -(-max(kept.shape) // _ESTIMATE_SIDE)
    before, after = (_reduce(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), by) for image in (reference, generated))
    inside = _reduce(kept.astype(np.uint8), by) == 1
    if np.count_nonzero(inside) < _LEAST_PIXELS:
        return None
    if before[inside].std() < _LEAST_CONTRAST or after[inside].std() < _LEAST_CONTRAST:
        return None
    best: NDArray[np.float32] | None = None
    found = max(_LEAST_CORRELATION, float(np.corrcoef(before[inside], after[inside])[0, 1]))
    for start in (None, _coarse):
        begin = _IDENTITY if start is None else start(before, after, inside)
        certainty, warp = _refine(before, after, inside, begin)
        if certainty > found and np.abs(warp[:, :2] - np.eye(2)).max() <= _MOST_SCALE:
            found, best = certainty, _shift_and_scale(warp, inside)
        if found > _CERTAIN:
            break
    if best is not None:  # pixels are counted from their middle, which moves with their size
        best[:, 2] = by * best[:, 2] + (by - 1) / 2 * (1 - best[:, :2].sum(axis=1))
    return best


def _reduce(pixels: NDArray[Any], by: int) -> NDArray[np.float32]:
    """A grey image of as many pixels for each `by` x `by` of its own: their mean."""
    import cv2

    height, width = (side // by for side in pixels.shape[:2])
    cut = pixels[: height * by, : width * by].astype(np.float32)
    reduced: NDArray[np.float32] = cv2.resize(cut, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32)
    return reduced


def _refine(
    before: NDArray[np.float32], after: NDArray[np.float32], inside: Selection, warp: NDArray[np.float32]
) -> tuple[float, NDArray[np.float32]]:
    """The correlation of two images after the best movement near `warp`, and that movement: first of smoothed images,
    which finds it from farther away, then of the images as they are, which is more exact."""
    import cv2

    mask, everywhere = inside.astype(np.uint8) * 255, np.full(inside.shape, 255, np.uint8)
    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 50, 1e-4)
    certainty, found = 0.0, warp.copy()
    for smoothing in (5, 1):
        try:
            certainty, moved = cv2.findTransformECCWithMask(
                before, after, mask, everywhere, found.copy(), cv2.MOTION_AFFINE, criteria, smoothing
            )
            found = np.asarray(moved, np.float32)
        except cv2.error:  # it does not converge
            break
    return float(certainty), found


def _shift_and_scale(warp: NDArray[np.float32], kept: Selection) -> NDArray[np.float32]:
    """The nearest movement without rotation and shear, which models do not add; exact in the kept part's middle."""
    rows, columns = np.nonzero(kept)
    middle = np.array([columns.mean(), rows.mean()])
    scale = (warp[0, 0] + warp[1, 1]) / 2
    found: NDArray[np.float32] = (np.eye(2, 3) * scale).astype(np.float32)
    found[:, 2] = warp[:, :2] @ middle + warp[:, 2] - scale * middle
    return found


def _coarse(before: NDArray[np.float32], after: NDArray[np.float32], kept: Selection) -> NDArray[np.float32]:
    """The movement by whole images, for shifts that are too large for ECC to find."""
    import cv2

    first, second = (np.where(kept, image - image[kept].mean(), 0).astype(np.float32) for image in (before, after))
    (right, down), _ = cv2.phaseCorrelate(first, second, cv2.createHanningWindow(first.shape[::-1], cv2.CV_32F))
    warp = _IDENTITY.copy()
    warp[:, 2] = right, down
    return warp


def _covered(warp: NDArray[np.float32], shape: tuple[int, ...]) -> Selection:
    """Where the generated image has pixels for the reference's."""
    import cv2

    full = np.full(shape, 255, np.uint8)
    return cv2.warpAffine(full, warp, shape[::-1], flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP) > 0


def _tint(reference: Pixels, generated: Pixels) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Gain and offset of each channel, from the pixels (n, 3) that follow them."""
    gains, offsets = [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]
    if len(reference) >= _LEAST_PIXELS:
        step = max(1, len(reference) // 200_000)
        for channel in range(3):
            y, x = (pixels[::step, channel].astype(np.float64) for pixels in (reference, generated))
            follow = np.ones(len(x), bool)
            gain, offset = 1.0, 0.0
            for _ in range(5):
                flat = x[follow].std() < _LEAST_CONTRAST
                gain = 1.0 if flat else float(np.cov(x[follow], y[follow], bias=True)[0, 1] / x[follow].var())
                offset = float(y[follow].mean() - gain * x[follow].mean())
                error = np.abs(y - gain * x - offset)
                follow = error <= max(2.0, 2.5 * 1.4826 * float(np.median(error)))
            certain = follow.mean() > 0.5 and 1 / _MOST_GAIN < gain < _MOST_GAIN and abs(offset) < _MOST_OFFSET
            if certain:
                gains[channel], offsets[channel] = gain, offset
    return (gains[0], gains[1], gains[2]), (offsets[0], offsets[1], offsets[2])
