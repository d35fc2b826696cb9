"""Images that tests send, and the bytes of those that they receive."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from PIL import Image

from imagegen.builder.micro.scenes import COLOURS, Scene, Shape


def scene(kind: str, colour: str, background: str, x: float = 0.5, radius: float = 0.28) -> Image.Image:
    """A reference as a user would send it: hard colours, one shape; 128x128."""
    shape = Shape(kind, colour, COLOURS[colour], x, 0.5, radius)
    return Scene(background, COLOURS[background], (shape,)).draw(128, 128)


def to_bytes(image: Image.Image, file_format: str = "PNG", **options) -> bytes:
    """An image as a file, with the options of Pillow's writer."""
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def to_base64(image: Image.Image | bytes, file_format: str = "PNG", **options) -> str:
    """An image, or the bytes of a file, as base64."""
    data = image if isinstance(image, bytes) else to_bytes(image, file_format, **options)
    return base64.b64encode(data).decode()


def from_base64(text: str) -> Image.Image:
    """The image in an answer, its pixels read."""
    image = Image.open(io.BytesIO(base64.b64decode(text, validate=True)))
    image.load()
    return image


def opened(path: Path) -> Image.Image:
    """The image of a file, its pixels read and the file closed."""
    with Image.open(path) as image:
        image.load()
        return image
