"""A thousand and more broken and hostile images, the same ones each time: generated, and good ones damaged."""

from __future__ import annotations

import base64
import io
import random
import struct
import zipfile
import zlib
from collections.abc import Iterator

from PIL import Image

from tests.inputs.test_formats import CASES, chunk
from tests.support.images import scene, to_bytes

GOOD = {name: data for name, (data, _) in CASES.items()}
PICTURE = scene("circle", "red", "blue")


def pictures() -> Iterator[tuple[str, bytes]]:
    """Name and file of each."""
    yield from GOOD.items()
    yield from damaged()
    yield from bombs()
    yield from lies()
    yield from of_other_formats()


def damaged() -> Iterator[tuple[str, bytes]]:
    """Each good file cut, flipped, spliced, and with something before or behind it."""
    rng = random.Random(9)
    names = list(GOOD)
    for name, data in GOOD.items():
        for end in (1, 8, 33, len(data) // 3, len(data) * 2 // 3, len(data) - 1):
            yield f"{name}: cut at {end}", data[:end]
        for flips in (1, 2, 3, 5, 20, 100):
            broken = bytearray(data)
            for _ in range(flips):
                broken[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            yield f"{name}: {flips} bits flipped", bytes(broken)
        for i in range(5):
            broken = bytearray(data)
            for _ in range(3):
                broken[rng.randrange(min(len(data), 80))] = rng.choice([0, 1, 0x7F, 0x80, 0xFE, 0xFF])
            yield f"{name}: header broken, {i}", bytes(broken)
        other = GOOD[rng.choice(names)]
        yield f"{name}: spliced", data[: len(data) // 2] + other[len(other) // 2 :]
        yield f"{name}: zeros inside", data[: len(data) // 2] + bytes(500) + data[len(data) // 2 :]
        yield f"{name}: something behind it", data + rng.randbytes(5000)
        yield f"{name}: something before it", b"\n" + data
        yield f"{name}: twice", data + data


def png(width: int, height: int, depth: int, kind: int, *chunks: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


def bombs() -> Iterator[tuple[str, bytes]]:
    """Small files that claim to be large, or become so."""
    zeros = zlib.compress(bytes(50_000_000), 9)
    yield "20 KB of 13,000 x 13,000", to_bytes(Image.new("1", (13_000, 13_000)))
    for side in (2**31 - 1, 2**32 - 1, 65_535, 30_000, 7072, 0):
        for depth, kind in ((1, 0), (8, 6), (16, 6)):
            yield f"a PNG of {side} x {side}, {depth} bits", png(side, side, depth, kind, chunk(b"IDAT", zeros[:9000]))
    yield "a PNG of one row", png(50_000_000, 1, 8, 0, chunk(b"IDAT", zeros))
    yield "a PNG of one column", png(1, 50_000_000, 1, 0, chunk(b"IDAT", zeros))
    yield "a small PNG of many bytes", png(64, 64, 8, 2, chunk(b"IDAT", zeros))
    for name in (b"zTXt", b"iTXt", b"iCCP"):
        body = {b"zTXt": b"a\0\0", b"iTXt": b"a\0\1\0\0\0", b"iCCP": b"a\0\0"}[name] + zeros
        good = GOOD["png, 8-bit"]
        yield f"a PNG with a large {name.decode()}", good[:33] + chunk(name, body) + good[33:]
        yield f"a PNG with many {name.decode()}", good[:33] + chunk(name, body[:2000]) * 500 + good[33:]
    yield "a PNG of a million chunks", good[:33] + chunk(b"abCd", b"") * 1_000_000 + good[33:]
    yield "a PNG of many IDAT", good[:-12] + chunk(b"IDAT", b"") * 500_000 + good[-12:]
    for frames in (2**31 - 1, 2**32 - 1, 0, 1):
        yield f"a PNG of {frames} frames", good[:33] + chunk(b"acTL", struct.pack(">II", frames, 0)) + good[33:]
    jpeg = GOOD["jpeg, progressive"]
    place = jpeg.index(b"\xff\xc2") + 5
    for height, width in ((65_535, 65_535), (65_535, 1), (7000, 7000), (0, 128), (128, 0)):
        yield f"a JPEG of {width} x {height}", jpeg[:place] + struct.pack(">HH", height, width) + jpeg[place + 4 :]
    last = jpeg.rindex(b"\xff\xda")
    for count in (30, 100, 10_000):
        yield f"a JPEG of {count} scans", jpeg[:last] + jpeg[last:-2] * count + jpeg[-2:]
    yield "a JPEG of many segments", jpeg[:2] + b"\xff\xfe\0\2" * 1_000_000 + jpeg[2:]
    for side in (1, 4000, 16_383):
        size = struct.pack("<I", side - 1)[:3]
        extended = b"VP8X" + struct.pack("<I", 10) + b"\2\0\0\0" + size + size
        inner = extended + GOOD["webp, animated"][30:]
        yield f"a WebP of {side} x {side}", b"RIFF" + struct.pack("<I", len(inner) + 4) + b"WEBP" + inner
    yield "7,000 x 7,000 of one colour", to_bytes(Image.new("1", (7000, 7000)))


def tiff(*entries: tuple[int, int, int, int], then: int = 0) -> bytes:
    body = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0\x08\0\0\0" + body + struct.pack("<I", then)


def lies() -> Iterator[tuple[str, bytes]]:
    """Good images with lengths, checksums and metadata that are wrong."""
    good = GOOD["png, 8-bit"]
    for length in (0, 1, 12, 14, 2**31, 2**32 - 1):
        yield f"a PNG whose header is {length} long", good[:8] + struct.pack(">I", length) + good[12:]
    place = good.index(b"IDAT") - 4
    for length in (0, 1, 2**31 - 1, 2**32 - 1):
        yield f"a PNG whose data are {length} long", good[:place] + struct.pack(">I", length) + good[place + 4 :]
    for depth in (0, 3, 5, 8, 32, 255):
        for kind in (0, 1, 2, 3, 5, 7, 255):
            yield f"a PNG of depth {depth} and kind {kind}", good[:24] + bytes([depth, kind]) + good[26:]
    yield "a palette PNG without a palette", png(64, 64, 8, 3, chunk(b"IDAT", zlib.compress(bytes(65 * 64))))
    for size in (1, 2, 3, 769, 5000):
        data = chunk(b"PLTE", bytes(size)) + chunk(b"tRNS", bytes(size)) + chunk(b"IDAT", zlib.compress(bytes(65 * 64)))
        yield f"a palette of {size} bytes", png(64, 64, 8, 3, data)
    for kind in (0, 2, 3, 4, 6):
        for size in (0, 1, 2, 6, 1000):
            rows = chunk(b"IDAT", zlib.compress(bytes(257 * 64)))
            yield f"a tRNS of {size} bytes, kind {kind}", png(64, 64, 8, kind, chunk(b"tRNS", b"\xff" * size), rows)
    metadata = {
        "turned by 0": tiff((0x112, 3, 1, 0)),
        "turned by 9": tiff((0x112, 3, 1, 9)),
        "turned by many": tiff((0x112, 3, 2**31, 8)),
        "turned by text": tiff((0x112, 2, 4, 0x41414141)),
        "turned by a fraction of zero": tiff((0x112, 5, 1, 8)),
        "leading to itself": tiff((0x8769, 4, 1, 8), (0x112, 3, 1, 6), then=8),
        "of 60,000 entries": tiff(*[(0x112, 3, 1, 6)] * 5000, then=8),
        "beyond its end": tiff((0x112, 3, 1, 6), then=2**31),
        "of nothing": b"",
        "of noise": random.Random(1).randbytes(3000),
        "of large values": tiff(*((0x9286, 7, 2**31 - 1, 8) for _ in range(50))),
    }
    for name, exif in metadata.items():
        yield f"a PNG with EXIF {name}", good[:33] + chunk(b"eXIf", exif) + good[33:]
        body = b"Exif\0\0" + exif[:65_000]
        jpeg = GOOD["jpeg"]
        yield f"a JPEG with EXIF {name}", jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + jpeg[2:]
    for profile in (b"", b"x" * 128, b"\xff" * 5000, struct.pack(">I", 2**31) + bytes(124) + struct.pack(">I", 2**31)):
        for mode in ("RGB", "L", "CMYK"):
            picture = PICTURE.convert(mode)
            yield f"{mode} with a profile of {len(profile)}", to_bytes(picture, "JPEG", icc_profile=profile)
    for width, height in ((1, 1), (1, 8), (1, 9), (8, 1), (15, 17), (63, 64), (2000, 250), (2001, 250)):
        yield f"{width} x {height}", to_bytes(Image.new("RGB", (width, height)))


def of_other_formats() -> Iterator[tuple[str, bytes]]:
    """Files of other formats, and what is no image."""
    for kind in (
        "GIF",
        "BMP",
        "TIFF",
        "ICO",
        "PPM",
        "TGA",
        "PCX",
        "JPEG2000",
        "AVIF",
        "PDF",
        "EPS",
        "DDS",
        "SGI",
        "IM",
    ):
        yield kind, to_bytes(PICTURE, kind)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("bomb", bytes(10_000_000))
    yield "a zip", archive.getvalue()
    yield "a PNG and a zip", GOOD["png, 8-bit"] + archive.getvalue()
    yield "a page", b"<html><img src=file:///etc/passwd></html>"
    yield "an SVG with an entity", b'<!DOCTYPE svg [<!ENTITY x SYSTEM "file:///etc/passwd">]><svg>&x;</svg>'
    yield "PostScript", b"%!PS-Adobe-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file"
    yield "HEIC's first bytes", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(500)
    yield "a pickle", b"\x80\x04\x95\x1a\0\0\0\0\0\0\0\x8c\x05posix\x94\x8c\x06system\x94\x93\x94."
    for size in (0, 1, 100, 100_000):
        yield f"{size} zeros", bytes(size)
        yield f"{size} random bytes", random.Random(size).randbytes(size)
    nested = GOOD["png, 8-bit"]
    for depth in range(1, 6):
        nested = base64.b64encode(nested)
        yield f"base64 inside of base64, {depth} deep", nested
        yield f"a data: URI inside, {depth} deep", b"data:image/png;base64," + nested


def slow_profile(matrices: int) -> bytes:
    """An ICC profile (version 4.3) whose D2B0 names one 3x3 matrix so many times; each is applied to each pixel."""
    numbers = (1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0)
    element = b"matf" + bytes(4) + struct.pack(">HH12f", 3, 3, *numbers)
    place = 16 + 8 * matrices
    table = struct.pack(">II", place, len(element)) * matrices
    d2b0 = b"mpet" + bytes(4) + struct.pack(">HHI", 3, 3, matrices) + table + element
    white = b"XYZ " + bytes(4) + struct.pack(">iii", 63190, 65536, 54061)
    tags, table, body, place = [(b"wtpt", white), (b"D2B0", d2b0)], b"", b"", 128 + 4 + 24
    for name, value in tags:
        table += name + struct.pack(">II", place + len(body), len(value))
        body += value
    head = struct.pack(">I4xI4s4s4s12x4s", place + len(body), 0x04300000, b"mntr", b"RGB ", b"XYZ ", b"acsp")
    head = head.ljust(68, b"\0") + struct.pack(">iii", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def slow(file_format: str, matrices: int = 500_000) -> bytes:
    """An image of 64x64 whose profile takes minutes. Its file is small as a PNG, where profiles are compressed."""
    return to_bytes(PICTURE.resize((64, 64)), file_format, icc_profile=slow_profile(matrices))


def scans(count: int, size: tuple[int, int]) -> bytes:
    """A progressive JPEG with its last scan repeated until there are so many: each is a pass over the whole image."""
    data = to_bytes(Image.new("RGB", size, "teal"), "JPEG", progressive=True)
    begin = data.rindex(b"\xff\xda")
    return data[:begin] + data[begin:-2] * (count - data.count(b"\xff\xda") + 1) + data[-2:]
