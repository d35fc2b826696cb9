"""A reference as it came (base64 or a data: URI) -> the RGB picture that the model sees: whole, upright, on white.

The bytes are a stranger's. What is refused is refused before it costs anything: the length before decoding, the format
and the number of pixels on the header, before a pixel is read. Of the decoder's many exceptions none escapes.
"""

from __future__ import annotations

import base64
import binascii
import io
import struct
import warnings
import zlib

from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError

from imagegen.errors import BadReference, PayloadTooLarge
from imagegen.jobs import fit

#: Phones' JPEGs with a second picture behind the first open as JPEG, and are then of the format MPO.
FORMATS = ("PNG", "JPEG", "WEBP")
#: The most pixels that a reference may have before it is made smaller: twice a 24-megapixel camera's.
MAX_PIXELS = 50_000_000
# Pillow warns of much in a stranger's file; that is not the operator's business, and each would be a line in the log.
warnings.filterwarnings("ignore", module=r"PIL\.")
#: What EXIF's orientations ask for (TIFF 6.0, tag 274).
_ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
#: diffusers' own bounds (Flux2ImageProcessor.check_image_input): sides of at least 64, at most 8 to 1.
MIN_SIDE, MAX_RATIO = 64, 8
#: No bound in truth: a megapixel at 8 to 1 is 2,896 wide.
MAX_SIDE = 4096
#: What Pillow's decoders were seen to raise on 1,067 good and broken files, and what the colour management raises.
_DECODER_ERRORS: tuple[type[Exception], ...] = (
    OSError, ValueError, SyntaxError, NotImplementedError, EOFError, IndexError, KeyError, TypeError, OverflowError,
    struct.error, zlib.error,
)  # fmt: skip
_PROFILE_ERRORS: tuple[type[Exception], ...] = (*_DECODER_ERRORS, ImageCms.PyCMSError)


def load_reference(value: str, field: str, max_bytes: int) -> Image.Image:
    """The picture of one reference.

    Args:
        value: base64, with or without a `data:` prefix.
        field: its name in errors, such as "images[0]".
        max_bytes: the largest file.

    Returns:
        RGB, sides multiples of 16 and at least 64, at most 1 megapixel, never cropped.

    Raises:
        PayloadTooLarge: the file is over `max_bytes`.
        BadReference: it is not base64, not a PNG, JPEG or WebP, broken, animated, or too long and thin for the model.
    """
    return _resize(_decode(_bytes(value, field, max_bytes), field), field)


def _bytes(value: str, field: str, max_bytes: int) -> bytes:
    """Base64 or data: URI -> bytes."""
    if value[:8].lower().startswith(("http://", "https://")):
        raise BadReference(f"{field}: URLs are not fetched; send base64 or a data: URI", field)
    if value[:5].lower() == "data:":
        header, comma, value = value.partition(",")
        if not comma or not header.lower().endswith(";base64"):
            raise BadReference(f"{field}: a data: URI must have the form data:image/png;base64,...", field)
    if len(value) // 4 * 3 > max_bytes + 3:
        raise PayloadTooLarge(
            f"{field}: is about {len(value) * 3 / 4e6:.1f} MB; {max_bytes / 1e6:g} MB are allowed", field
        )
    try:
        data = base64.b64decode("".join(value.split()), validate=True)
    except (binascii.Error, ValueError):
        raise BadReference(f"{field}: is not base64 (A-Z a-z 0-9 + / and = as padding)", field) from None
    if not data:
        raise BadReference(f"{field}: is empty", field)
    return data


def _decode(data: bytes, field: str) -> Image.Image:
    """Bytes -> an upright RGB picture in sRGB, on white where it was transparent."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise _too_many_pixels(f"{picture.width}x{picture.height}", field)
            if getattr(picture, "n_frames", 1) > 1 and picture.format != "MPO":
                raise BadReference(f"{field}: is an animation; send one picture", field)
            picture.load()
            turn = _ORIENTATIONS.get(_orientation(picture))
            rgb = _to_rgb(picture)
            return rgb if turn is None else rgb.transpose(turn)
    except UnidentifiedImageError:
        raise BadReference(f"{field}: is not a picture; PNG, JPEG and WebP are allowed", field) from None
    except Image.DecompressionBombError:
        raise _too_many_pixels("its", field) from None
    except _DECODER_ERRORS:
        raise BadReference(f"{field}: is a broken or truncated picture", field) from None


def _orientation(picture: Image.Image) -> int:
    """EXIF's orientation, 1 to 8; 1 where there is none or it cannot be read. A good picture may have broken EXIF, of
    which nothing else is wanted."""
    try:
        return int(picture.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # whatever a parser of a stranger's TIFF structure comes up with
        return 1


def _too_many_pixels(size: str, field: str) -> BadReference:
    return BadReference(f"{field}: {size} pixels are too many; {MAX_PIXELS / 1e6:g} megapixels are allowed", field)


def _to_rgb(picture: Image.Image) -> Image.Image:
    """Any mode -> RGB: 16-bit grey scaled and not clipped, colours by their profile, transparency laid on white."""
    profile = picture.info.get("icc_profile")
    if picture.mode.startswith("I") or picture.mode == "F":
        # convert("L") would clip everything over 255; PNG's 16 bits are the only source of these modes here.
        picture = picture.convert("I").point(lambda value: value / 257).convert("L")
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        colour = picture.convert("RGBA")
        ground = Image.new("RGBA", colour.size, (255, 255, 255, 255))
        ground.alpha_composite(colour)
        picture = ground.convert("RGB")
    if profile and picture.mode in ("RGB", "L", "CMYK"):
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            converted = ImageCms.profileToProfile(picture, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
        except _PROFILE_ERRORS:
            converted = None  # a broken profile, or one of another mode: the bare numbers are the best guess
        if converted is not None:
            return converted
    return picture.convert("RGB")


def _resize(picture: Image.Image, field: str) -> Image.Image:
    """To at most a megapixel and multiples of 16, with all of the picture in it."""
    width, height = picture.size
    if max(width, height) > MAX_RATIO * min(width, height):
        raise BadReference(f"{field}: {width}x{height} is too long and thin; at most {MAX_RATIO}:1 is allowed", field)
    w, h = fit(width, height, MIN_SIDE, MAX_SIDE)
    # Rounding to 16 may have pushed 8:1 a little over.
    w, h = min(w, MAX_RATIO * h), min(h, MAX_RATIO * w)
    return picture if (w, h) == picture.size else picture.resize((w, h), Image.Resampling.LANCZOS)
