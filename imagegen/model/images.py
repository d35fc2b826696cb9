"""Images on their way from the GPU: made into bytes there, copied without a wait, and taken by another thread."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from PIL import Image

from imagegen.errors import GpuFailed
from imagegen.model.transfer import to_host

if TYPE_CHECKING:
    import torch


@dataclass
class Mark:
    """A moment in the work of a device: on a GPU when its queue reaches it, on a CPU now."""

    at: float = field(default_factory=time.monotonic)
    event: Any = None  # torch.cuda.Event

    @classmethod
    def on(cls, device: torch.device) -> Mark:
        """What has been asked of a device until now."""
        mark = cls()
        if device.type == "cuda":
            import torch

            mark.event = torch.cuda.Event(enable_timing=True)
            mark.event.record(torch.cuda.current_stream(device))
        return mark

    def wait(self) -> None:
        """Waits until the device has come to it.

        Raises:
            GpuFailed: the GPU never will.
        """
        if self.event is None:
            return
        import torch

        try:
            self.event.synchronize()
        except torch.AcceleratorError:
            raise GpuFailed("the GPU failed; this worker must be replaced") from None

    def seconds_to(self, later: Mark) -> float:
        """Seconds of the device between two moments that it has come to."""
        if self.event is None or later.event is None:
            return later.at - self.at
        return float(self.event.elapsed_time(later.event)) / 1000


class GeneratedImage:
    """An image that the device has been asked for, and the seconds that it takes. Any thread may ask for them; they
    come when the image has been copied into main memory.

    Args:
        decoded: (1, 3, height, width), -1 to 1, on the device.
        begun, denoised: when the first step began, and when the last one ended.
    """

    def __init__(self, decoded: torch.Tensor, begun: Mark, denoised: Mark) -> None:
        # A GPU makes the bytes in its queue, a CPU in the thread that asks for the image.
        self._pixels = decoded if decoded.device.type == "cpu" else to_host(to_bytes(decoded))
        self._begun, self._denoised, self._done = begun, denoised, Mark.on(decoded.device)

    def wait(self) -> None:
        """Waits until the image is in main memory.

        Raises:
            GpuFailed: the GPU failed before it was done.
        """
        self._done.wait()

    @cached_property
    def image(self) -> Image.Image:
        """The image.

        Raises:
            GpuFailed: the GPU failed before it was done.
        """
        self.wait()
        pixels = to_bytes(self._pixels) if self._pixels.is_floating_point() else self._pixels
        return Image.fromarray(pixels.numpy()[0])

    @property
    def denoise(self) -> float:
        """Seconds until the last step was done."""
        self.wait()
        return self._begun.seconds_to(self._denoised)

    @property
    def decode(self) -> float:
        """Seconds from there until the image was in main memory."""
        self.wait()
        return self._denoised.seconds_to(self._done)


def to_bytes(decoded: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) from -1 to 1 as (B, H, W, 3) of bytes, rounded as diffusers' `postprocess` does: to 0 to 1 in the
    decoder's type, then in float32, halves to the even number."""
    import torch

    shown = (decoded * 0.5).add_(0.5).clamp_(0, 1)
    return shown.permute(0, 2, 3, 1).float().mul_(255).round_().to(torch.uint8).contiguous()


def image_to_bytes(image: Image.Image) -> torch.Tensor:
    """An RGB image as (1, height, width, 3) bytes."""
    import numpy as np
    import torch

    return torch.from_numpy(np.array(image))[None]


def to_pixels(image: torch.Tensor) -> torch.Tensor:
    """(1, height, width, 3) bytes as (1, 3, height, width) from -1 to 1 in float32, to the bit as diffusers'
    `preprocess` makes it of an image that needs no resizing."""
    return image.permute(0, 3, 1, 2).float().div_(255).mul_(2).sub_(1)
