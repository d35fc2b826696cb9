"""Prints what the provenance record in each image says, as JSON: model, seed, steps, software, signature.

    imagegen inspect FILE...

The exit status is 1 where a file cannot be read or has no record.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import sys
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image

from imagegen.outputs.signing import validation_state

#: As an attribute or an element, whoever wrote it.
_SOURCE_TYPE = re.compile(rb"DigitalSourceType(?:=[\"']|>)([^\"'<]+)")


def read(data: bytes) -> dict[str, Any]:
    """The record of a PNG, JPEG or WebP: the fields of `Provenance`, `software`, `digital_source_type` and, where it is
    signed and c2pa is installed, `signature`. Empty where there is none; the pixels are not decoded.

    Raises:
        OSError: it is not such an image.
    """
    found: dict[str, Any] = {}
    with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP")) as picture:
        exif, xmp, file_format = picture.getexif(), picture.info.get("xmp", b""), str(picture.format)
    try:
        record = json.loads(exif.get(ExifTags.Base.ImageDescription, ""))
    except (TypeError, ValueError):
        record = None
    if isinstance(record, dict) and "model" in record:
        found |= record
    if isinstance(software := exif.get(ExifTags.Base.Software), str):
        found["software"] = software
    if (match := _SOURCE_TYPE.search(xmp)) is not None:
        found["digital_source_type"] = match[1].decode(errors="replace")
    if (state := validation_state(data, f"image/{file_format.lower()}")) is not None:
        found["signature"] = state
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="a PNG, JPEG or WebP image")


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit status."""
    status = 0
    for path in args.files:
        try:
            record = read(path.read_bytes())
        except (OSError, ValueError, SyntaxError) as error:
            print(f"error: {path}: cannot be read ({type(error).__name__})", file=sys.stderr)
            status = 1
            continue
        print(json.dumps({"file": str(path), **record}, indent=2))
        status = status if record else 1
    return status
