"""The record in every picture of where it comes from: written into PNG, JPEG and WebP, and read back.

    python -m imagegen.provenance FILE...    prints each file's record as JSON; status 1 where one has none

EXIF holds what draws the picture again (JSON in ImageDescription) and the software; XMP what IPTC asks of pictures that
a model has made, which is what platforms look for. A C2PA manifest (`imagegen.signing`) says the same, signed.
"""

from __future__ import annotations

import io
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from imagegen import __version__

SOFTWARE = f"image-gen {__version__}"
#: IPTC's vocabulary: http://cv.iptc.org/newscodes/digitalsourcetype/
_SOURCE_TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
#: The names are those of XMP and of the IPTC Photo Metadata Standard 2025.1 (AISystemUsed, AIPromptInformation).
_XMP = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/"
 xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" {properties}/>
</rdf:RDF></x:xmpmeta>
<?xpacket end="r"?>"""
#: As an attribute or an element, whoever wrote it.
_SOURCE_TYPE = re.compile(rb"DigitalSourceType(?:=[\"']|>)([^\"'<]+)")


@dataclass(frozen=True)
class Provenance:
    """What a picture's record says; sizes in pixels, the prompt only where the caller asked for it."""

    model: str
    seed: int
    num_inference_steps: int
    width: int
    height: int
    edited: bool = False
    prompt: str | None = None

    @property
    def source_type(self) -> str:
        """IPTC's word for it: made by a trained model, or by one out of pictures that were given to it."""
        return _SOURCE_TYPES + ("compositeWithTrainedAlgorithmicMedia" if self.edited else "trainedAlgorithmicMedia")

    def exif(self) -> Image.Exif:
        """What draws the picture again, as JSON in ImageDescription; the software."""
        record: dict[str, Any] = {
            "model": self.model,
            "seed": self.seed,
            "num_inference_steps": self.num_inference_steps,
            "width": self.width,
            "height": self.height,
        }
        if self.prompt is not None:
            record["prompt"] = self.prompt
        exif = Image.Exif()
        exif[ExifTags.Base.ImageDescription] = json.dumps(record)
        exif[ExifTags.Base.Software] = SOFTWARE
        return exif

    def xmp(self) -> bytes:
        """The kind of its source, the model and the software as an XMP packet."""
        properties = {
            "Iptc4xmpExt:DigitalSourceType": self.source_type,
            "Iptc4xmpExt:AISystemUsed": self.model,
            "xmp:CreatorTool": SOFTWARE,
        }
        if self.prompt is not None:
            properties["Iptc4xmpExt:AIPromptInformation"] = self.prompt
        return _XMP.format(properties=" ".join(f"{k}={quoteattr(v)}" for k, v in properties.items())).encode()

    def options(self, file_format: str) -> dict[str, Any]:
        """What Pillow's `save` is given for a file of this format ("PNG", "JPEG" or "WEBP")."""
        if file_format != "PNG":
            return {"exif": self.exif(), "xmp": self.xmp()}
        texts = PngInfo()
        texts.add_itxt("XML:com.adobe.xmp", self.xmp().decode())
        return {"exif": self.exif(), "pnginfo": texts}


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
    from imagegen.signing import validation_state

    if (state := validation_state(data, f"image/{file_format.lower()}")) is not None:
        found["signature"] = state
    return found


def main(paths: list[str]) -> int:
    """The command line; returns the exit status."""
    status = 0
    for path in paths or sys.exit("usage: python -m imagegen.provenance FILE..."):
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
