"""A reference as it was received (base64, a data: URI, a file's bytes) -> the RGB image that the model sees: complete,
upright, in sRGB, on white.

The bytes are untrusted. For each reference this module runs in a process of its own (`imagegen.inputs.decoder_server`),
whose time and memory the operating system limits, so it does not watch the clock. It checks what must be known before
pixels are decoded: the length, the format, the shape, and the memory that decoding will take. Every exception of a
decoder becomes an error of the contract.
"""

from __future__ import annotations

import io
import math
import struct
import warnings
import zlib
from collections.abc import Callable
from typing import Literal, NamedTuple

from PIL import (
    AvifImagePlugin,
    ExifTags,
    Image,
    ImageChops,
    ImageCms,
    JpegImagePlugin,
    MpoImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from imagegen.errors import BadReference, PayloadTooLarge
from imagegen.inputs import base64_text, color, jpeg, png
from imagegen.models import MEGAPIXEL, fit

#: Phones' JPEGs with a second image behind the first open as JPEG, and are then of the format MPO.
FORMATS = ("PNG", "JPEG", "WEBP", "AVIF")
ALLOWED = "PNG, JPEG, WebP and AVIF are allowed"
#: The most pixels of a reference: twice a 24-megapixel camera's. JPEGs are decoded at a fraction of their size, so they
#: may have as many as the largest sensors of phones.
MAX_PIXELS, MAX_JPEG_PIXELS = 50_000_000, 200_000_000
#: The most memory that decoding one reference may take, in bytes: 50 megapixels of the costliest format.
MAX_MEMORY = 1_000_000_000
#: Bytes of memory for a pixel, measured at 49 megapixels (`python -m benchmarks.decoders --memory`).
_PIXEL_BYTES = {"PNG": 5, "WEBP": 16, "AVIF": 13}
#: The same for JPEG: what is decoded at a fraction, and a coefficient of two bytes for each component of each pixel
#: where all coefficients are kept until the last scan.
_JPEG_PIXEL_BYTES, _COEFFICIENT_BYTES = 12, 2
#: For a photo at its own size: it is converted as a whole.
_PHOTO_PIXEL_BYTES = 8
#: The strips, and the four megapixels that remain before the last resizing.
_FIXED_BYTES = 50_000_000
#: diffusers' own bounds (Flux2ImageProcessor.check_image_input): sides of at least 64, at most 8 to 1.
MIN_SIDE, MAX_RATIO = 64, 8
#: Never reached: a megapixel at 8 to 1 is 2,896 wide.
MAX_SIDE = 4096
# Pillow's own limits warn, or are below ours; `_check_size` has both.
Image.MAX_IMAGE_PIXELS = None
# Pillow warns of much in untrusted files; the operator has no use for it, and each would be a line in the log.
warnings.filterwarnings("ignore", module=r"PIL\.")
# A thread for each core would gain little at one image a process.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1
# All that Pillow would import with the first image: a decoder cannot read files.
_PLUGINS = (PngImagePlugin, JpegImagePlugin, MpoImagePlugin, WebPImagePlugin, AvifImagePlugin, TiffImagePlugin)
Image.preinit()
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
#: What Pillow's decoders were seen to raise on 1,067 good and broken files, and what the colour management raises.
_DECODER_ERRORS: tuple[type[Exception], ...] = (
    OSError, ValueError, SyntaxError, NotImplementedError, EOFError, IndexError, KeyError, TypeError, OverflowError,
    struct.error, zlib.error, RuntimeError,
)  # fmt: skip
_PROFILE_ERRORS: tuple[type[Exception], ...] = (*_DECODER_ERRORS, ImageCms.PyCMSError)
#: How files of other formats begin, by the place of the bytes.
_OTHER_FORMATS = (
    (0, b"GIF8", "a GIF"), (0, b"BM", "a BMP"), (0, b"II*\0", "a TIFF"), (0, b"MM\0*", "a TIFF"),
    (4, b"ftyp", "a HEIC, or another format of the same container"), (0, b"\0\0\0\x0cjP", "a JPEG 2000"),
    (0, b"\0\0\0\x0cJXL", "a JPEG XL"), (0, b"\xff\x0a", "a JPEG XL"), (0, b"\0\0\x01\0", "an ICO"),
    (0, b"%PDF", "a PDF"), (0, b"8BPS", "a Photoshop file"), (0, b"<svg", "an SVG"), (0, b"<?xml", "XML"),
    (0, b"<", "HTML or XML"),
)  # fmt: skip


#: What a reference is decoded for. "reference": the model, which sees RGB, sides multiples of 16 and at least 64, at
#: most 1 megapixel, never cropped. "photo": an edit at its own size, RGB. "mask": such an edit, L, white where it is
#: edited.
Purpose = Literal["reference", "photo", "mask"]
#: The most pixels of a photo that is edited at its own size, and of a mask: at about 16 bytes a pixel for the photo,
#: its weights, the enlarged edit and the file, under 600 MB.
MAX_PHOTO_PIXELS = 36_000_000


class Reference(NamedTuple):
    """An upright image, as its purpose needs it."""

    image: Image.Image
    #: What the caller should know of it.
    warnings: list[str]


def is_url(value: str) -> bool:
    """Whether a reference must be fetched first (`imagegen.inputs.fetching`)."""
    return value[:8].lower().startswith(("http://", "https://"))


def check_length(value: str | bytes, field: str, max_bytes: int) -> None:
    """Refuses too long a reference by its length alone.

    Raises:
        PayloadTooLarge: base64 or a file of more than `max_bytes`.
    """
    size, about = (len(value) * 3 / 4 - 3, "about ") if isinstance(value, str) else (len(value), "")
    if size > max_bytes:
        raise PayloadTooLarge(f"{field}: is {about}{size / 1e6:.1f} MB; {max_bytes / 1e6:g} MB are allowed", field)


def load_reference(
    value: str | bytes,
    field: str,
    max_bytes: int,
    admit: Callable[[int], None] = lambda size: None,
    purpose: Purpose = "reference",
) -> Reference:
    """The image of one reference.

    Args:
        value: base64, with or without a `data:` prefix, or the file itself.
        field: its name in errors, such as "images[0]".
        max_bytes: the largest file.
        admit: called once before pixels are decoded, with the bytes of memory that this will take; returns when there
            is room for them.
        purpose: decides its mode and size.

    Raises:
        PayloadTooLarge: the file is over `max_bytes`.
        BadReference: it is not base64, not of an allowed format, broken, too large to decode, or too long and thin for
            the model.
    """
    check_length(value, field, max_bytes)
    data = base64_text.decode(value, field) if isinstance(value, str) else value
    del value
    try:
        return _decode(data, field, admit, purpose)
    except UnidentifiedImageError:
        if data.startswith((png.SIGNATURE, b"\xff\xd8")) or data[8:12] in (b"WEBP", b"avif"):
            raise BadReference(f"{field}: is broken or truncated", field) from None
        raise BadReference(f"{field}: is {_kind(data)}; {ALLOWED}", field) from None
    except MemoryError:
        raise BadReference(f"{field}: needs more memory to decode than a reference may", field) from None
    except _DECODER_ERRORS:
        raise BadReference(f"{field}: is broken or truncated", field) from None


def _kind(data: bytes) -> str:
    """What a file is that is not of an allowed format."""
    begin = data[:64].lstrip()
    for place, magic, name in _OTHER_FORMATS:
        if begin[place : place + len(magic)] == magic:
            return name
    return "not an image"


def _decode(data: bytes, field: str, admit: Callable[[int], None], purpose: Purpose) -> Reference:
    """Bytes -> an upright RGB image in sRGB, on white where it was transparent; or a mask's selection."""
    chunks = png.read(data) if data.startswith(png.SIGNATURE) else None
    with Image.open(io.BytesIO(chunks.data if chunks else data), formats=FORMATS) as image:
        _check_size(image, field, purpose)
        if chunks:
            _scale_transparency(image, chunks.depth)
        memory = _draft(image, data, purpose)
        if memory > MAX_MEMORY:
            raise BadReference(f"{field}: needs {memory / 1e6:.0f} MB to decode; 1000 MB are allowed", field)
        admit(memory)
        loaded = jpeg.load(image, data) if image.format in ("JPEG", "MPO") else image
        loaded.load()
        profile, notes = color.source_profile(image.info.get("icc_profile"), chunks)
        if purpose == "mask":
            pixels, transparent, notes = _selection(loaded), False, []
        else:
            flat, transparent = _flatten_in_strips(
                loaded, 4 * MEGAPIXEL if purpose == "reference" else MAX_PHOTO_PIXELS
            )
            pixels = _to_srgb(flat, profile)
        turn = _ORIENTATIONS.get(_orientation(image))
        frames = chunks.frames if chunks else int(getattr(image, "n_frames", 1))
    if frames > 1:
        notes.append(f"has {frames} frames; only the first is used")
    if transparent:
        notes.append(f"{'its first frame' if frames > 1 else 'it'} is fully transparent, so the model sees only white")
    pixels = pixels if turn is None else pixels.transpose(turn)
    return Reference(_resize(pixels) if purpose == "reference" else pixels, [f"{field}: {note}" for note in notes])


def _selection(image: Image.Image) -> Image.Image:
    """A mask as L: white where its pixels are transparent, if any are, else where they are white."""
    if image.mode.startswith("I"):
        return _flatten(image)[0]
    if image.mode in ("RGBA", "LA", "PA") or image.info.get("transparency") is not None:
        alpha = image.convert("RGBA").getchannel("A")
        if alpha.getextrema() != (255, 255):
            return ImageChops.invert(alpha)
    return image.convert("RGB").convert("L")


def _check_size(image: Image.Image, field: str, purpose: Purpose) -> None:
    width, height = image.size
    if purpose != "reference" and width * height > MAX_PHOTO_PIXELS:
        raise BadReference(
            f"{field}: has {width}x{height} pixels; {MAX_PHOTO_PIXELS / 1e6:g} megapixels are allowed for an edit at "
            "the photo's own size",
            field,
        )
    limit = MAX_JPEG_PIXELS if image.format in ("JPEG", "MPO") else MAX_PIXELS
    if width * height > limit:
        raise BadReference(
            f"{field}: has {width}x{height} pixels; {limit / 1e6:g} megapixels are allowed for this format", field
        )
    if max(width, height) > MAX_RATIO * min(width, height):
        raise BadReference(f"{field}: {width}x{height} is too long and thin; at most {MAX_RATIO}:1 is allowed", field)


def _draft(image: Image.Image, data: bytes, purpose: Purpose) -> int:
    """Lets a large JPEG for the model be decoded at a half, a quarter or an eighth of its size, which costs as much
    less. Returns the bytes of memory that decoding will take."""
    pixels = image.width * image.height
    kept = 0 if purpose == "reference" else pixels * _PHOTO_PIXEL_BYTES
    if image.format not in ("JPEG", "MPO"):
        return kept + pixels * _PIXEL_BYTES[str(image.format)] + _FIXED_BYTES
    coefficients = pixels * len(image.getbands()) * _COEFFICIENT_BYTES if jpeg.keeps_coefficients(data) else 0
    scale = 2 * math.sqrt(MEGAPIXEL / pixels)
    if scale < 1 and purpose == "reference":
        image.draft(None, (math.ceil(image.width * scale), math.ceil(image.height * scale)))
    return kept + image.width * image.height * _JPEG_PIXEL_BYTES + coefficients + _FIXED_BYTES


def _scale_transparency(image: Image.Image, depth: int) -> None:
    """A PNG's transparent colour in the eight bits of its pixels; Pillow leaves it in the file's depth."""
    received = image.info.get("transparency")
    if isinstance(received, tuple) and depth == 16:
        image.info["transparency"] = tuple(value >> 8 for value in received)
    elif isinstance(received, int) and image.mode in ("1", "L") and depth < 8:
        image.info["transparency"] = received * 255 // (2**depth - 1)


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation, 1 to 8; 1 where there is none or it cannot be read. A good image may have broken EXIF, of
    which nothing else is wanted."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # noqa: BLE001 - whatever a parser of an untrusted TIFF structure raises
        return 1


def _to_srgb(flat: Image.Image, profile: bytes | None) -> Image.Image:
    """L, RGB or CMYK -> RGB, by the profile where there is one that fits."""
    if profile is not None:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            wanted = source.profile.xcolor_space.strip()
            image = flat.convert("RGB") if flat.mode == "L" and wanted == "RGB" else flat
            converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
        except _PROFILE_ERRORS:
            converted = None  # a broken profile, or one of another mode: the bare numbers are the best guess
        if converted is not None:
            return converted
    return flat.convert("RGB")


def _flatten_in_strips(image: Image.Image, most: int) -> tuple[Image.Image, bool]:
    """An image without transparency, as L, RGB or CMYK, and whether all of it was transparent. One of more than some
    `most` pixels is made smaller. In strips, so that it is not in memory three times."""
    width, height = image.size
    by = max(1, math.isqrt(width * height // most))
    rows = by * max(1, MEGAPIXEL // (width * by))
    whole, transparent = None, True
    for top in range(0, height, rows):
        strip, clear = _flatten(image.crop((0, top, width, min(top + rows, height))))
        strip, transparent = strip.reduce(by), transparent and clear
        whole = whole or Image.new(strip.mode, (strip.width, -(-height // by)))
        whole.paste(strip, (0, top // by))
    if whole is None:
        raise ValueError("an image without rows")
    return whole, transparent


#: 16 bits -> 8 bits, rounded.
_TO_EIGHT_BITS = [(value + 128) // 257 for value in range(65536)]


def _flatten(image: Image.Image) -> tuple[Image.Image, bool]:
    """An image without transparency, on white, as L, RGB or CMYK; 16-bit grey is scaled and not clipped. And whether
    all of it was transparent."""
    transparent = image.info.get("transparency")
    if image.mode.startswith("I"):
        table = _TO_EIGHT_BITS
        if isinstance(transparent, int) and 0 <= transparent < len(table):
            table = [*table[:transparent], 255, *table[transparent + 1 :]]
        return image.convert("I").point(table, "L"), False
    if image.mode in ("RGBA", "LA", "PA") or transparent is not None:
        rgba = image.convert("RGBA")
        ground = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        ground.alpha_composite(rgba)
        return ground.convert("RGB"), rgba.getchannel("A").getextrema()[1] == 0
    flat = image if image.mode in ("L", "RGB", "CMYK") else image.convert("L" if image.mode == "1" else "RGB")
    return flat, False


def _resize(image: Image.Image) -> Image.Image:
    """To at most a megapixel and multiples of 16, without cropping."""
    w, h = fit(*image.size, MIN_SIDE, MAX_SIDE)
    # Rounding to 16 may have pushed 8:1 a little over.
    w, h = min(w, MAX_RATIO * h), min(h, MAX_RATIO * w)
    return image if (w, h) == image.size else image.resize((w, h), Image.Resampling.LANCZOS)
