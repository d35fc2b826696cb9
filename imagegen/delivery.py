"""A picture -> bytes of the format that was asked for -> base64, with a small record of where it comes from."""

from __future__ import annotations

import base64
import io
import json
import logging
from dataclasses import dataclass

from PIL import Image

from imagegen import __version__
from imagegen.errors import ResultTooLarge
from imagegen.server.schemas import OutputFormat

# At DEBUG Pillow logs the tags that it writes and reads, and one of ours may hold the prompt.
logging.getLogger("PIL").setLevel(logging.INFO)

#: PNG level 1: at level 6 a megapixel takes several times as long, for some per cent of the size.
_PNG_LEVEL = 1
#: EXIF tags.
_IMAGE_DESCRIPTION, _SOFTWARE = 0x010E, 0x0131


@dataclass(frozen=True)
class Provenance:
    """What a picture's record says; the prompt only where the caller asked for it."""

    model: str
    seed: int
    num_inference_steps: int
    prompt: str | None = None

    def exif(self) -> Image.Exif:
        """The record as EXIF, which PNG, JPEG and WebP all carry: JSON in ImageDescription, the worker in Software."""
        record = {"model": self.model, "seed": self.seed, "num_inference_steps": self.num_inference_steps}
        if self.prompt is not None:
            record["prompt"] = self.prompt
        exif = Image.Exif()
        exif[_IMAGE_DESCRIPTION] = json.dumps(record)
        exif[_SOFTWARE] = f"image-gen {__version__}"
        return exif


def encode(picture: Image.Image, output_format: OutputFormat, quality: int, provenance: Provenance) -> bytes:
    """The picture as a file, written from its bare pixels: nothing of a reference's metadata comes out."""
    file = io.BytesIO()
    exif = provenance.exif()
    if output_format == "png":
        picture.save(file, "PNG", compress_level=_PNG_LEVEL, exif=exif)
    elif output_format == "jpeg":
        picture.save(file, "JPEG", quality=quality, exif=exif)
    else:
        picture.save(file, "WEBP", quality=quality, exif=exif)
    return file.getvalue()


def to_base64(data: bytes) -> str:
    """Plain base64, without a prefix."""
    return base64.b64encode(data).decode("ascii")


def fits(files: list[bytes], limit: int | None) -> bool:
    """Whether the files, as base64 in one answer, stay within `limit` bytes (None: there is no limit)."""
    return limit is None or answer_size(files) <= limit


def answer_size(files: list[bytes]) -> int:
    """Bytes of an answer with these files: base64, and room for the fields beside them."""
    return sum((len(data) + 2) // 3 * 4 for data in files) + 4096


def too_large(files: list[bytes], limit: int) -> ResultTooLarge:
    """The error for files that do not fit, with what to do about it."""
    return ResultTooLarge(
        f"the answer would be {answer_size(files) / 1e6:.1f} MB and {limit / 1e6:g} MB are allowed; ask for "
        "fewer or smaller pictures, for output_format jpeg or webp, or set allow_format_change",
        "output_format",
    )
