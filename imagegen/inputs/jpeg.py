"""What Pillow does not say of a JPEG: whether its coefficients are all kept in memory, and whether only its end is
missing. The bytes are untrusted."""

from __future__ import annotations

import io
import re

from PIL import Image, ImageFile

#: Markers (ITU-T T.81, table B.1).
_END, _SCAN = b"\xff\xd9", 0xDA
_PROGRESSIVE = 0xC2
#: Start of frame, of any kind: 0xC0 to 0xCF but for DHT, JPG and DAC.
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_STANDALONE = {0x01, *range(0xD0, 0xD9)}
_RESTART = re.compile(rb"\xff([\xd0-\xd7])")
#: Entropy-coded data of several kinds: a decoder that waits for some goes on differently with one of them.
_DATA = tuple(pattern * 8 for pattern in (b"\x55\xaa", b"\x12\x34\x56", b"\x00", b"\xc7\x3b\xfe"))


def keeps_coefficients(data: bytes) -> bool:
    """Whether libjpeg keeps the coefficients of the whole image until its last scan: it is progressive, or its first
    scan does not hold all components. True where that cannot be read."""
    place, components = 2, 0
    while data[place : place + 1] == b"\xff":
        marker = data[place + 1] if place + 1 < len(data) else 0
        if marker == 0xFF or marker in _STANDALONE:
            place += 1 if marker == 0xFF else 2
            continue
        body = place + 4
        if body + 6 > len(data):
            return True
        if marker in _FRAMES:
            if marker == _PROGRESSIVE:
                return True
            components = data[body + 5]
        elif marker == _SCAN:
            return data[body] < components
        place += 2 + int.from_bytes(data[place + 2 : body])
    return True


def load(image: Image.Image, data: bytes) -> Image.Image:
    """Decodes an open JPEG; one of which only the end marker is missing too, as browsers do.

    Data that are missing before the end marker are an error: the pixels would be grey. The two are told apart by what
    is appended. The data of a complete scan end by themselves, so nothing that follows changes a pixel; an incomplete
    scan is decoded on into what follows, be it entropy-coded data or the restart intervals that are to come next. A
    progressive file that was cut exactly between two scans is complete in this sense, and comes out less sharp.

    Raises:
        OSError: it is broken or truncated.
    """
    size = image.size
    try:
        image.load()
        return image
    except OSError:
        body = data.removesuffix(b"\xff")
        if _END in data[-1024:]:
            raise
        markers = _RESTART.findall(body, body.rfind(b"\xff\xda"))
        after = markers[-1][0] + 1 if markers else 0xD0
        intervals = b"".join(bytes((0xFF, 0xD0 + (after + i) % 8)) + _DATA[0] for i in range(8))
        complete = _load_at(body + _END, size)
        for more in (*_DATA, intervals):
            if _load_at(body + more + _END, size).tobytes() != complete.tobytes():
                raise
        return complete


def _load_at(data: bytes, size: tuple[int, int]) -> ImageFile.ImageFile:
    image = Image.open(io.BytesIO(data), formats=("JPEG",))
    image.draft(None, size)
    image.load()
    return image
