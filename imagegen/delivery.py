"""A picture -> bytes of the format that was asked for -> base64, with a small record of where it comes from."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import logging
from collections.abc import Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass

from PIL import Image

from imagegen import __version__
from imagegen.errors import ResultTooLarge
from imagegen.server.schemas import EditRequest, GenerateRequest, OutputFormat

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


class Encoder:
    """Encodes one job's pictures in threads of their own, beside the GPU.

    Args:
        pool: the threads.
        model, num_inference_steps: for the record.
        request: names the format, the quality, and whether the prompt goes into the record.
    """

    def __init__(
        self, pool: Executor, model: str, request: GenerateRequest | EditRequest, num_inference_steps: int
    ) -> None:
        self._pool, self._model, self._request, self._steps = pool, model, request, num_inference_steps

    def encode(self, seed: int, picture: Image.Image, output_format: OutputFormat) -> Future[bytes]:
        """Begins to encode a picture."""
        request = self._request
        provenance = Provenance(self._model, seed, self._steps, request.prompt if request.embed_prompt else None)
        return self._pool.submit(encode, picture, output_format, request.output_quality, provenance)

    async def smaller(
        self, seeds: Sequence[int], pictures: Sequence[Image.Image], encoded: list[bytes], limit: int
    ) -> tuple[OutputFormat, list[bytes]]:
        """The pictures in a smaller format, if the job allows it and one fits into `limit` bytes.

        Raises:
            ResultTooLarge: it does not, or none does.
        """
        formats: tuple[OutputFormat, ...] = ("webp", "jpeg")
        for output_format in formats if self._request.allow_format_change else ():
            if output_format == self._request.output_format:
                continue
            files = [self.encode(seed, picture, output_format) for seed, picture in zip(seeds, pictures, strict=True)]
            smaller = [await asyncio.wrap_future(file) for file in files]
            if fits(smaller, limit):
                return output_format, smaller
            encoded = min(encoded, smaller, key=answer_size)
        raise too_large(encoded, limit)


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
