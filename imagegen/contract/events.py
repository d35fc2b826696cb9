"""What a transport may show its caller while a job runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image


@dataclass(frozen=True)
class Queued:
    """The job is admitted; `place` jobs come before it."""

    place: int


@dataclass(frozen=True)
class References:
    """The references are being read."""


@dataclass(frozen=True)
class Step:
    """Step `step` of `total`, all images of the job counted, is done; `seconds_left` is an estimate.

    `preview` is the image as it looks so far, where previews were asked for.
    """

    step: int
    total: int
    seconds_left: float
    preview: Image.Image | None = None


@dataclass(frozen=True)
class Generated:
    """The job has left the GPU; its images are encoded and sent beside the next job."""


Event = Queued | References | Step | Generated
#: Called in the event loop's thread, in order, and never after the job's answer.
Listener = Callable[[Event], None]
