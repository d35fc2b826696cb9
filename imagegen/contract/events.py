"""What a door may tell its caller while a job runs."""

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
    """Step `step` of `total`, all pictures of the job counted, is done; `seconds_left` is an estimate.

    `preview` is what the picture now promises to become, where previews were asked for.
    """

    step: int
    total: int
    seconds_left: float
    preview: Image.Image | None = None


@dataclass(frozen=True)
class Drawn:
    """The job has left the GPU; its pictures are encoded and sent beside the next job."""


Event = Queued | References | Step | Drawn
#: Called in the event loop's thread, in order, and never after the job's answer.
Listener = Callable[[Event], None]
