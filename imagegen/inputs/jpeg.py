"""What Pillow does not say of a JPEG: whether its coefficients are all kept in memory, and whether only its end is
missing. The bytes are untrusted."""

from __future__ import annotations

import io

from PIL import Image, ImageFile

#: Markers (ITU-T T.81, table B.1).
_END, _SCAN = b"\xff\xd9", 0xDA
_PROGRESSIVE = 0xC2
#: Start of frame, of any kind: 0xC0 to 0xCF but for DHT, JPG and DAC.
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_STANDALONE = {0x01, *range(0xD0, 0xD9)}
#: What may follow the data of a scan that is complete without changing it: nothing, and entropy-coded data, with and
#: without each of the restart markers.
_FILLERS = (b"", b"\x55\xaa" * 64, b"".join(bytes((0xFF, 0xD0 + i)) + b"\x55\xaa" * 8 for i in range(8)))


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
    scan is decoded on into what follows. A progressive file that was cut exactly between two scans is complete in this
    sense, and comes out less sharp.

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
        loaded = [_load_at(body + filler + _END, size) for filler in _FILLERS]
        if any(other.tobytes() != loaded[0].tobytes() for other in loaded[1:]):
            raise
        return loaded[0]


def _load_at(data: bytes, size: tuple[int, int]) -> ImageFile.ImageFile:
    image = Image.open(io.BytesIO(data), formats=("JPEG",))
    image.draft(None, size)
    image.load()
    return image
