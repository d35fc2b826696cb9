"""What the record in an image says: `python -m imagegen.cli.inspect FILE...`."""

from __future__ import annotations

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
        OSError: it is not such a picture.
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


def main(paths: list[str]) -> int:
    """The command line; returns the exit status."""
    status = 0
    for path in paths or sys.exit("usage: python -m imagegen.cli.inspect FILE..."):
        try:
            record = read(Path(path).read_bytes())
        except (OSError, ValueError, SyntaxError) as error:
            print(f"error: {path}: cannot be read ({type(error).__name__})", file=sys.stderr)
            status = 1
            continue
        print(json.dumps({"file": path, **record}, indent=2))
        status = status if record else 1
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
