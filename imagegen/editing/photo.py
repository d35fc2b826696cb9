"""An edit of a photo at the photo's own size: what the model sees of it, and the photo with the edit in it.

Three requests are edited so: one with a mask, one that expands the canvas (the new part is the mask), and one that asks
to preserve what it did not mean to change (the changes are found afterwards).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imagegen.contract.editing import Expand
from imagegen.contract.fields import MAX_WEBP_SIDE
from imagegen.contract.schemas import EditRequest
from imagegen.editing.changes import find_changes
from imagegen.editing.drift import Drift, estimate
from imagegen.editing.mask import weights
from imagegen.editing.region import Region, choose_region, whole
from imagegen.errors import InvalidInput
from imagegen.inputs.decoding import MAX_PHOTO_PIXELS, MAX_RATIO
from imagegen.models import ModelSpec, Size, aspect_size

#: The most pixels of a job's answers together.
MAX_JOB_PIXELS = 2 * MAX_PHOTO_PIXELS


class Finished(NamedTuple):
    """An edited photo, and what the caller should know of it."""

    image: Image.Image
    warnings: list[str]


class PhotoEdit(ABC):
    """An edit of a photo.

    Args:
        photo: RGB, upright.
        region: which part of it the model sees.
    """

    def __init__(self, photo: Image.Image, region: Region) -> None:
        self.photo, self.region = photo, region
        #: What the caller should know before anything is generated.
        self.warnings: list[str] = []
        #: What the model sees: the region, of the size at which it is generated.
        self.crop = photo.resize(region.size, Image.Resampling.LANCZOS, box=region.box)

    @property
    def size(self) -> Size:
        """Width and height of the answer."""
        return self.photo.size

    @abstractmethod
    def finish(self, generated: Image.Image) -> Finished:
        """The photo with the generated region in its place. Any thread may call.

        Args:
            generated: RGB, of the crop's size.
        """

    def _paste(self, generated: NDArray[np.uint8], alpha: NDArray[np.uint8]) -> Image.Image:
        """The photo with the region replaced where `alpha`, of the region's size in the photo, is over 0."""
        patch = Image.fromarray(generated).resize(self.region.crop_size, Image.Resampling.LANCZOS)
        finished = self.photo.copy()
        finished.paste(patch, self.region.box[:2], Image.fromarray(alpha))
        return finished


class MaskedEdit(PhotoEdit):
    """An edit where a mask says.

    Args:
        alpha: (height, width), the weight of the edit at each pixel of the photo; 0 keeps it.
        correct_drift: move and tint the generated region back, as what is kept of it says.
    """

    def __init__(self, photo: Image.Image, alpha: NDArray[np.uint8], spec: ModelSpec, correct_drift: bool) -> None:
        super().__init__(photo, choose_region(alpha, spec))
        if alpha.min() > 0:
            self.warnings.append("mask: selects everything, so nothing of the reference is kept")
        left, top, right, bottom = self.region.box
        self._alpha, self._correct_drift = alpha[top:bottom, left:right], correct_drift

    def finish(self, generated: Image.Image) -> Finished:
        """The photo with the edit in it; pixels of weight 0 are the photo's own."""
        pixels, notes = np.asarray(generated), []
        if self._correct_drift:
            drift = estimate(np.asarray(self.crop), pixels, self.kept())
            pixels, notes = drift.undo(pixels), _describe(drift)
        return Finished(self._paste(pixels, self._alpha), notes)

    def kept(self) -> NDArray[np.bool_]:
        """Where the crop shows nothing but what is kept."""
        import cv2

        edited = (self._alpha > 0).astype(np.uint8) * 255
        kept: NDArray[np.bool_] = cv2.resize(edited, self.region.size, interpolation=cv2.INTER_AREA) == 0
        return kept


class PreservedEdit(PhotoEdit):
    """An edit without a mask: what has merely drifted is the photo's own again."""

    def __init__(self, photo: Image.Image, spec: ModelSpec) -> None:
        super().__init__(photo, whole(photo.size, spec))

    def finish(self, generated: Image.Image) -> Finished:
        """The photo with what the edit has changed."""
        import cv2

        pixels = np.asarray(generated)
        changes = find_changes(np.asarray(self.crop), pixels)
        if changes is None:
            everything = np.full(self.photo.size[::-1], 255, np.uint8)
            return Finished(self._paste(pixels, everything), ["preserve: nearly all has changed, so nothing was kept"])
        alpha = cv2.resize(changes.alpha, self.photo.size, interpolation=cv2.INTER_LINEAR).astype(np.uint8)
        part = f"preserve: {np.mean(alpha > 0):.0%} of the image has changed, the rest is the reference's own"
        return Finished(self._paste(changes.drift.undo(pixels), alpha), [part, *_describe(changes.drift)])


def plan_edit(request: EditRequest, photo: Image.Image, mask: Image.Image | None, spec: ModelSpec) -> PhotoEdit:
    """How a request's first reference is edited at its own size, as `EditRequest.keeps_photo` says it is.

    Args:
        photo: RGB, upright, of any size.
        mask: mode L, upright, white where it is edited.

    Raises:
        InvalidInput: the mask does not belong to the photo, or selects nothing; or the answer would be too large.
    """
    if request.expand is not None or request.fit is not None:
        edges = request.expand or _edges_for(photo.size, str(request.aspect_ratio))
        width, height = photo.width + edges.left + edges.right, photo.height + edges.top + edges.bottom
        if max(width, height) > MAX_RATIO * min(width, height):
            text = f"{width}x{height} is too long and thin; at most {MAX_RATIO}:1 is allowed"
            raise InvalidInput(f"expand: {text}", "expand")
        _check_pixels("expand", (width, height), request)
        photo, alpha = _expanded(photo, edges)
        if not alpha.any():
            raise InvalidInput(f"fit: the reference has the shape {request.aspect_ratio} already", "fit")
        return MaskedEdit(photo, alpha, spec, request.correct_drift)
    _check_pixels("images[0]", photo.size, request)
    if mask is None:
        return PreservedEdit(photo, spec)
    alpha = weights(mask, photo.size, invert=request.mask_invert, grow=request.mask_grow, feather=request.mask_feather)
    return MaskedEdit(photo, alpha, spec, request.correct_drift)


def _check_pixels(field: str, size: Size, request: EditRequest) -> None:
    pixels = size[0] * size[1]
    if pixels > MAX_PHOTO_PIXELS:
        raise InvalidInput(
            f"{field}: {size[0]}x{size[1]} pixels are too many for an edit at the photo's own size; at most "
            f"{MAX_PHOTO_PIXELS / 1e6:g} megapixels are allowed",
            field,
        )
    if request.output_format == "webp" and max(size) > MAX_WEBP_SIDE:
        raise InvalidInput(
            f"output_format: {size[0]}x{size[1]} does not fit webp, whose sides have at most {MAX_WEBP_SIDE} pixels; "
            "png and jpeg are allowed",
            "output_format",
        )
    if pixels * request.num_images > MAX_JOB_PIXELS:
        raise InvalidInput(
            f"num_images: {request.num_images} images of {size[0]}x{size[1]} are too many; "
            f"{MAX_JOB_PIXELS // pixels} are allowed",
            "num_images",
        )


def _edges_for(size: Size, aspect_ratio: str) -> Expand:
    """What must be added on both sides to give a photo this shape."""
    across, down = (int(part) for part in aspect_ratio.split(":"))
    wide, high = aspect_size(size, across, down)
    right, bottom = wide - size[0], high - size[1]
    return Expand(left=right // 2, right=right - right // 2, top=bottom // 2, bottom=bottom - bottom // 2)


def _expanded(photo: Image.Image, edges: Expand) -> tuple[Image.Image, NDArray[np.uint8]]:
    """A photo on a larger canvas, its edge pixels repeated outwards, and the weights that select what is new."""
    around = ((edges.top, edges.bottom), (edges.left, edges.right))
    canvas = np.pad(np.asarray(photo), (*around, (0, 0)), mode="edge")
    return Image.fromarray(canvas), np.pad(np.zeros(photo.size[::-1], np.uint8), around, constant_values=255)


def _describe(drift: Drift) -> list[str]:
    """What was undone, where it can be seen: half a pixel, or a level of 255."""
    right, down = drift.shift
    notes = []
    if drift.warp is not None and (max(abs(right), abs(down)) >= 0.5 or abs(drift.scale - 1) >= 0.002):
        notes.append(f"moved by {-right:+.1f}, {-down:+.1f} pixels and scaled by {1 / drift.scale:.3f}")
    levels = max(
        abs(gain * level + offset - level)
        for gain, offset in zip(drift.gain, drift.offset, strict=True)
        for level in (64, 192)
    )
    if levels >= 2:
        notes.append(f"tinted by up to {levels:.0f} levels of 255")
    return [f"correct_drift: the edit was {' and '.join(notes)} to match the reference"] if notes else []
