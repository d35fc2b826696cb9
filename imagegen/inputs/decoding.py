"""A reference as it came (base64, a data: URI, a file's bytes) -> the RGB picture that the model sees: whole, upright,
on white.

The bytes are a stranger's. What is refused is refused before it costs anything: the length before decoding, the format,
the number of pixels and of a JPEG's scans before a pixel is read. Of the decoder's many exceptions none escapes. Memory
is bounded by the pixels that are in decoders at one moment, time by the processor's seconds that one picture may have.
"""

from __future__ import annotations

import base64
import binascii
import ctypes
import io
import math
import re
import struct
import threading
import time
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError

from imagegen.errors import BadReference, PayloadTooLarge
from imagegen.models import MEGAPIXEL, fit

#: Phones' JPEGs with a second picture behind the first open as JPEG, and are then of the format MPO.
FORMATS = ("PNG", "JPEG", "WEBP")
#: The most pixels that a reference may have before it is made smaller: twice a 24-megapixel camera's. It is below the
#: number at which Pillow warns of a bomb, so that each of its warnings is an error here.
MAX_PIXELS = 50_000_000
#: A progressive JPEG has about ten, one of four channels at most 24. Each is a pass over the whole picture, and a
#: hundred bytes are enough to ask for it.
MAX_SCANS = 40
#: A camera's JPEG has some dozens, one with megabytes of metadata some hundreds.
_MAX_SEGMENTS = 4096
#: How often a decoder may ask for more bytes: three times for each of a PNG's chunks, and 20 MB have some thousands.
_MAX_READS = 100_000
#: Seconds of the processor for one picture; 50 megapixels take about two. The clock is looked at when the decoder asks
#: for more bytes, which WebP's does once.
DECODE_SECONDS = 10.0
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


class Reference(NamedTuple):
    """A picture for the model: RGB, sides multiples of 16 and at least 64, at most 1 megapixel, never cropped."""

    picture: Image.Image
    #: What the caller should know of it.
    warnings: list[str]


class PixelBudget:
    """Room for so many pixels in decoders at one moment: four small pictures, or one large one."""

    def __init__(self, pixels: int) -> None:
        self._left, self._changed = pixels, threading.Condition()
        self._turn = threading.Lock()

    @contextmanager
    def hold(self, pixels: int) -> Iterator[None]:
        """Waits until there is room, and takes it; in turn, so that small ones do not pass a large one by."""
        with self._turn, self._changed:
            self._changed.wait_for(lambda: self._left >= pixels)
            self._left -= pixels
        try:
            yield
        finally:
            with self._changed:
                self._left += pixels
                self._changed.notify_all()


_room = PixelBudget(MAX_PIXELS)


class _Source(io.BytesIO):
    """A file that is no longer read once its decoding has taken too long, which is how a decoder is stopped."""

    def __init__(self, data: bytes, field: str) -> None:
        super().__init__(data)
        self._field, self._until, self._reads = field, time.thread_time() + DECODE_SECONDS, 0

    def read(self, size: int | None = -1, /) -> bytes:
        self._reads += 1
        if self._reads > _MAX_READS:
            raise BadReference(f"{self._field}: is a file of too many parts", self._field)
        if time.thread_time() > self._until:
            raise BadReference(f"{self._field}: takes more than {DECODE_SECONDS:g} s to decode", self._field)
        return super().read(size)


def is_url(value: str) -> bool:
    """Whether a reference is to be fetched first (`imagegen.inputs.fetching`)."""
    return value[:8].lower().startswith(("http://", "https://"))


def load_reference(value: str | bytes, field: str, max_bytes: int) -> Reference:
    """The picture of one reference.

    Args:
        value: base64, with or without a `data:` prefix, or the file itself.
        field: its name in errors, such as "images[0]".
        max_bytes: the largest file.

    Raises:
        PayloadTooLarge: the file is over `max_bytes`.
        BadReference: it is not base64, not a PNG, JPEG or WebP, broken, too costly to decode, or too long and thin for
            the model.
    """
    data = _bytes(value, field, max_bytes) if isinstance(value, str) else value
    try:
        return _decode(data, field)
    finally:
        _give_back()


def _give_back() -> None:
    """Returns freed memory to the system. glibc keeps what a thread has freed for that thread; after some large
    pictures that is hundreds of megabytes. It takes some milliseconds; others have no such call."""
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def _bytes(value: str, field: str, max_bytes: int) -> bytes:
    """Base64 or data: URI -> bytes."""
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


def _decode(data: bytes, field: str) -> Reference:
    """Bytes -> an upright RGB picture in sRGB, on white where it was transparent, of the model's size."""
    try:
        with Image.open(_Source(data, field), formats=FORMATS) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise _too_many_pixels(f"{picture.width}x{picture.height}", field)
            _check_shape(picture, field)
            if picture.format in ("JPEG", "MPO") and not _few_scans(data):
                raise BadReference(f"{field}: is a JPEG of too many parts; {MAX_SCANS} scans are allowed", field)
            if picture.format == "PNG":
                _scale_transparency(picture, data[24])
            frames = int(getattr(picture, "n_frames", 1))
            notes = [f"{field}: has {frames} frames; the first is used"] if frames > 1 else []
            with _room.hold(picture.width * picture.height):
                _load(picture)
                turn = _ORIENTATIONS.get(_orientation(picture))
                rgb = _to_rgb(picture)
                rgb = _resize(rgb if turn is None else rgb.transpose(turn))
            return Reference(rgb, notes)
    except UnidentifiedImageError:
        kind = "HEIC or AVIF" if data[4:8] == b"ftyp" else "not a picture"
        raise BadReference(f"{field}: is {kind}; PNG, JPEG and WebP are allowed", field) from None
    except Image.DecompressionBombError:
        raise _too_many_pixels("its", field) from None
    except _DECODER_ERRORS:
        raise BadReference(f"{field}: is a broken or truncated picture", field) from None


#: A JPEG's marker that begins a segment or ends the picture, where such a one may stand (ITU T.81, table B.1).
_MARKER = re.compile(rb"\xff([^\x00\x01\xff\xd0-\xd7])")
_END, _SCAN = b"\xd9", b"\xda"


def _few_scans(data: bytes) -> bool:
    """Whether a JPEG's first picture has few enough scans and segments. Segments are stepped over, so that none can
    hold what looks like the end, or like a scan."""
    scans, place = 0, 2
    for _ in range(_MAX_SEGMENTS):
        marker = _MARKER.search(data, place)
        if marker is None or marker[1] == _END:
            return True
        scans += marker[1] == _SCAN
        if scans > MAX_SCANS:
            return False
        place = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2])
    return False


def _scale_transparency(picture: Image.Image, depth: int) -> None:
    """A PNG's transparent colour in the eight bits of its pixels; Pillow leaves it in the file's depth."""
    came = picture.info.get("transparency")
    if isinstance(came, tuple) and depth == 16:
        picture.info["transparency"] = tuple(value >> 8 for value in came)
    elif isinstance(came, int) and picture.mode in ("1", "L") and depth < 8:
        picture.info["transparency"] = came * 255 // (2**depth - 1)


def _load(picture: Image.Image) -> None:
    """Reads the pixels; a large JPEG's at a half, a quarter or an eighth of their size, which costs as much less."""
    scale = 2 * math.sqrt(MEGAPIXEL / (picture.width * picture.height))
    if scale < 1:
        picture.draft(None, (math.ceil(picture.width * scale), math.ceil(picture.height * scale)))
    picture.load()


def _orientation(picture: Image.Image) -> int:
    """EXIF's orientation, 1 to 8; 1 where there is none or it cannot be read. A good picture may have broken EXIF, of
    which nothing else is wanted."""
    try:
        return int(picture.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # noqa: BLE001 - whatever a parser of a stranger's TIFF structure comes up with
        return 1


def _check_shape(picture: Image.Image, field: str) -> None:
    width, height = picture.size
    if max(width, height) > MAX_RATIO * min(width, height):
        raise BadReference(f"{field}: {width}x{height} is too long and thin; at most {MAX_RATIO}:1 is allowed", field)


def _too_many_pixels(size: str, field: str) -> BadReference:
    return BadReference(f"{field}: {size} pixels are too many; {MAX_PIXELS / 1e6:g} megapixels are allowed", field)


def _to_rgb(picture: Image.Image) -> Image.Image:
    """Any mode -> RGB in sRGB; a large picture is made smaller by a whole number on the way."""
    flat = _flatten_in_strips(picture)
    if profile := picture.info.get("icc_profile"):
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            converted = ImageCms.profileToProfile(flat, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
        except _PROFILE_ERRORS:
            converted = None  # a broken profile, or one of another mode: the bare numbers are the best guess
        if converted is not None:
            return converted
    return flat.convert("RGB")


def _flatten_in_strips(picture: Image.Image) -> Image.Image:
    """A picture without transparency, as L, RGB or CMYK, and smaller where it is large: some four megapixels remain for
    the last resizing. In strips, so that it is not in memory three times over."""
    width, height = picture.size
    by = max(1, math.isqrt(width * height // (4 * MEGAPIXEL)))
    rows = by * max(1, MEGAPIXEL // (width * by))
    whole = None
    for top in range(0, height, rows):
        strip = _flatten(picture.crop((0, top, width, min(top + rows, height)))).reduce(by)
        whole = whole or Image.new(strip.mode, (strip.width, -(-height // by)))
        whole.paste(strip, (0, top // by))
    if whole is None:
        raise ValueError("a picture without rows")
    return whole


def _flatten(picture: Image.Image) -> Image.Image:
    """A picture without transparency, laid on white, as L, RGB or CMYK; 16-bit grey scaled and not clipped."""
    transparent = picture.info.get("transparency")
    if picture.mode.startswith("I"):
        import numpy as np

        values = np.asarray(picture.convert("I"))
        grey = ((values + 128) // 257).astype(np.uint8)
        if isinstance(transparent, int):
            grey[values == transparent] = 255
        return Image.fromarray(grey)
    if picture.mode in ("RGBA", "LA", "PA") or transparent is not None:
        colour = picture.convert("RGBA")
        ground = Image.new("RGBA", colour.size, (255, 255, 255, 255))
        ground.alpha_composite(colour)
        return ground.convert("RGB")
    return picture if picture.mode in ("L", "RGB", "CMYK") else picture.convert("L" if picture.mode == "1" else "RGB")


def _resize(picture: Image.Image) -> Image.Image:
    """To at most a megapixel and multiples of 16, with all of the picture in it."""
    w, h = fit(*picture.size, MIN_SIDE, MAX_SIDE)
    # Rounding to 16 may have pushed 8:1 a little over.
    w, h = min(w, MAX_RATIO * h), min(h, MAX_RATIO * w)
    return picture if (w, h) == picture.size else picture.resize((w, h), Image.Resampling.LANCZOS)
