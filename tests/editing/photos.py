"""Photographs made by arithmetic, and what a model's drift does to one."""

from __future__ import annotations

import numpy as np
from PIL import Image


def photo(width: int, height: int, seed: int = 0, grain: float = 4.0) -> Image.Image:
    """Smooth shapes of many colours under a fine grain."""
    noise = np.random.default_rng(seed)
    coarse = noise.integers(0, 256, (max(2, height // 64), max(2, width // 64), 3), np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), np.float32)
    return Image.fromarray(np.clip(smooth + noise.normal(0, grain, smooth.shape), 0, 255).astype(np.uint8))


def drifted(pixels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels moved by up to 8, scaled by 0.98 to 1.02, each channel times 0.9 to 1.1 and up to 8 levels off, and with
    noise; and the (2, 3) movement."""
    import cv2

    random = np.random.default_rng(seed)
    scale, (right, down) = random.uniform(0.98, 1.02), random.uniform(-8, 8, 2)
    warp = np.array([[scale, 0, right], [0, scale, down]], np.float32)
    size = pixels.shape[1::-1]
    moved = cv2.warpAffine(pixels, warp, size, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    tinted = moved * random.uniform(0.9, 1.1, 3) + random.uniform(-8, 8, 3) + random.normal(0, 2, moved.shape)
    return np.clip(tinted, 0, 255).astype(np.uint8), warp
