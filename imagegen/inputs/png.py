"""The chunks of an untrusted PNG that are used: pixels, transparency, orientation and colour, and not its text.

Pillow's own reader refuses a good image for a large profile or text, does not read cICP, and parses what nobody needs
here. So it is given the chunks that the pixels need, and this module reads those about colour (PNG, third edition,
11.3).
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

SIGNATURE = b"\x89PNG\r\n\x1a\n"
#: Passed on, beside those that begin with a capital letter: without them the pixels cannot be decoded.
_KEPT = (b"tRNS", b"eXIf")
#: The largest profile in bytes; those of printing presses have one to four million.
MAX_PROFILE = 8_000_000


@dataclass
class Png:
    """A PNG: the file with the chunks that its pixels need, and what the others say."""

    data: bytes
    #: Bits of a sample.
    depth: int
    frames: int = 1
    #: An ICC profile; empty where it is too large.
    profile: bytes | None = None
    srgb: bool = False
    #: gAMA: the exponent of the encoding, 1 / 2.2 for example.
    gamma: float | None = None
    #: cHRM: x and y of white, red, green and blue.
    chromaticities: tuple[float, ...] | None = None
    #: cICP: colour primaries and transfer function by ITU-T H.273.
    cicp: tuple[int, int] | None = None


def read(data: bytes) -> Png:
    """Walks the chunks of a PNG. Never raises: what is broken is left for the decoder to refuse. Of a chunk that may be
    there only once the first counts."""
    kept, other = bytearray(SIGNATURE), dict[bytes, bytes]()
    place, size = len(SIGNATURE), len(data)
    while place < size:
        length, name = int.from_bytes(data[place : place + 4]), data[place + 4 : place + 8]
        end = place + 12 + length
        if name[:1].isupper() or (name in _KEPT and name not in other) or end > size:
            kept += data[place:end]
        if not name[:1].isupper() and end <= size:
            other.setdefault(name, data[place + 8 : end - 4])
        if name == b"IEND":
            break
        place = end
    found = Png(bytes(kept), data[24] if size > 24 else 8)
    if len(other.get(b"acTL", b"")) == 8:
        frames = int.from_bytes(other[b"acTL"][:4])
        found.frames = frames if frames < 2**31 else 1
    if b"iCCP" in other:
        found.profile = _inflate(other[b"iCCP"])
    found.srgb = b"sRGB" in other
    if len(gamma := other.get(b"gAMA", b"")) == 4:
        found.gamma = int.from_bytes(gamma) / 100_000 or None
    if len(primaries := other.get(b"cHRM", b"")) == 32:
        found.chromaticities = tuple(value / 100_000 for value in struct.unpack(">8I", primaries))
    if len(cicp := other.get(b"cICP", b"")) == 4:
        found.cicp = cicp[0], cicp[1]
    return found


def _inflate(chunk: bytes) -> bytes | None:
    """iCCP's profile: a name, a zero, the method 0, and zlib's data. None where it is broken, empty where too large."""
    body = chunk.partition(b"\0")[2]
    try:
        inflater = zlib.decompressobj()
        profile = inflater.decompress(body[1:], MAX_PROFILE)
    except zlib.error:
        return None
    if inflater.eof:
        return profile
    return b"" if inflater.unconsumed_tail else None
