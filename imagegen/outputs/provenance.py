"""The record in every picture of where it comes from: written into PNG, JPEG and WebP, and read back.

`imagegen inspect FILE...` prints it.

EXIF holds what draws the picture again (JSON in ImageDescription) and the software; XMP what IPTC asks of pictures that
a model has made, which is what platforms look for. A C2PA manifest (`imagegen.outputs.signing`) says the same, signed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import quoteattr

from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from imagegen import __version__
from imagegen.contract.loras import UsedLora

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
    loras: Sequence[UsedLora] = ()

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
        if self.loras:
            record["loras"] = [lora.model_dump() for lora in self.loras]
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
