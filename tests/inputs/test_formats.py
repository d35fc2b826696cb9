"""What a person would see: formats and oddities against reference pixels, written by hand where Pillow's own writer
would hide a mistake of its reader. All within 2 of 255."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from imagegen.inputs.decoding import load_reference
from tests.support.images import to_bytes

SIDE, TILE = 128, 32
rng = np.random.default_rng(9)
#: Flat tiles: what a lossy format keeps, and each colour another.
TILES = rng.integers(0, 256, (SIDE // TILE, SIDE // TILE, 4)).astype(np.uint16)
RGBA = TILES.repeat(TILE, 0).repeat(TILE, 1)
RGB, ALPHA = RGBA[..., :3], RGBA[..., 3:]
GREY = RGB[..., :1]
WHITE = 255


def fine(values):
    """Sixteen bits whose upper eight are these."""
    return values * 256 + rng.integers(0, 256, values.shape).astype(np.uint16)


def on_white(colour, alpha):
    return WHITE + (colour.astype(float) - WHITE) * alpha / 255


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def rows(values, depth):
    """PNG's rows (H, W, channels), each with filter 0."""
    lines = []
    for row in values.reshape(values.shape[0], -1):
        if depth == 16:
            packed = row.astype(">u2").tobytes()
        elif depth == 8:
            packed = row.astype(np.uint8).tobytes()
        else:
            bits = (row[:, None] >> np.arange(depth - 1, -1, -1)) & 1
            packed = np.packbits(bits.reshape(-1).astype(np.uint8)).tobytes()
        lines.append(b"\0" + packed)
    return b"".join(lines)


ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


def png(values, depth, colour_type, *chunks, interlaced=False):
    """A PNG of these values (H, W, channels)."""
    if values.ndim == 2:
        values = values[..., None]
    passes = [values[y::dy, x::dx] for y, x, dy, dx in ADAM7] if interlaced else [values]
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], depth, colour_type, 0, 0, interlaced)
    data = zlib.compress(b"".join(rows(one, depth) for one in passes))
    return b"".join([b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", header), *chunks, chunk(b"IDAT", data), chunk(b"IEND", b"")])


def few(bits):
    """Grey values of so many bits, and the same in eight."""
    values = GREY >> (8 - bits)
    return values, values * (255 // (2**bits - 1))


def indexed(bits):
    """Indices of so many bits, a palette, and the image."""
    indices = (np.arange(TILES.shape[0] * TILES.shape[1]) % 2**bits).reshape(TILES.shape[:2])
    palette = rng.integers(0, 256, (2**bits, 3))
    return indices.repeat(TILE, 0).repeat(TILE, 1), palette, palette[indices].repeat(TILE, 0).repeat(TILE, 1)


def palette_png(bits, transparent=None):
    indices, palette, seen = indexed(bits)
    chunks = [chunk(b"PLTE", palette.astype(np.uint8).tobytes())]
    if transparent is not None:
        alphas = np.full(2**bits, 255)
        alphas[: len(transparent)] = transparent
        chunks.append(chunk(b"tRNS", bytes(transparent)))
        seen = on_white(seen, alphas[indices][..., None])
    return png(indices, bits, 3, *chunks), seen


def keyed(values, depth, colour_type, seen):
    """The colour of the second tile is transparent."""
    key = values[0, TILE]
    hidden = (values == key).all(-1, keepdims=True)
    data = png(values, depth, colour_type, chunk(b"tRNS", struct.pack(f">{len(key)}H", *key)))
    return data, np.where(hidden, WHITE, seen)


def pillow(values, file_format, mode=None, **options):
    return to_bytes(Image.fromarray(values.squeeze().astype(np.uint8), mode), file_format, **options)


JPEG = {"quality": 100, "subsampling": 0}


def cmyk_seen(values):
    values = values.astype(float)
    return (255 - values[..., :3]) * (255 - values[..., 3:]) / 255


def cmyk():
    """As Adobe writes it, the inks inverted."""
    picture = Image.frombytes("CMYK", (SIDE, SIDE), RGBA.astype(np.uint8).tobytes())
    return to_bytes(picture, "JPEG", **JPEG), cmyk_seen(RGBA)


def ycck():
    """The same as luma and chroma: Adobe's marker says so (transform 2), and Pillow never writes it."""
    inks = 255 - RGBA.astype(float)  # inverted, as they are stored
    r, g, b = (inks[..., i] for i in range(3))
    # What is transformed is the RGB that C, M, Y are the complement of (libjpeg: R = MAXJSAMPLE - C).
    r, g, b = 255 - r, 255 - g, 255 - b
    luma = 0.299 * r + 0.587 * g + 0.114 * b
    planes = [luma, 128 + (b - luma) / 1.772, 128 + (r - luma) / 1.402, inks[..., 3]]
    stored = np.stack(planes, -1).round().clip(0, 255).astype(np.uint8)
    data = to_bytes(Image.frombytes("CMYK", (SIDE, SIDE), (255 - stored).tobytes()), "JPEG", **JPEG)
    place = data.index(b"Adobe") + 11
    assert data[place] == 0
    return data[:place] + b"\x02" + data[place + 1 :], cmyk_seen(RGBA)


def rgb_jpeg():
    """Three channels that are not luma and chroma, as Adobe's transform 0 says."""
    return pillow(RGB, "JPEG", keep_rgb=True, **JPEG), RGB


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return pillow(RGB, "JPEG", exif=exif, **JPEG), np.rot90(RGB, -1)


def frames(file_format, **options):
    pictures = [Image.fromarray(values.astype(np.uint8)) for values in (RGB, 255 - RGB)]
    return to_bytes(pictures[0], file_format, save_all=True, append_images=pictures[1:], **options), RGB


def profile(space, *tags):
    """An ICC profile, version 2, with these tags and a white point."""
    d50 = (0.9642, 1.0, 0.8249)
    tags = [(b"wtpt", xyz(*d50)), *tags]
    place, table, data = 128 + 4 + 12 * len(tags), b"", b""
    for name, value in tags:
        table += name + struct.pack(">II", place + len(data), len(value))
        data += value + b"\0" * (-len(value) % 4)
    body = struct.pack(">I", len(tags)) + table + data
    head = struct.pack(">I4sI4s4s4s12s4s", 128 + len(body), b"", 0x02400000, b"mntr", space, b"XYZ ", b"", b"acsp")
    head = head.ljust(64, b"\0") + struct.pack(">I", 0) + xyz(*d50)[8:]
    return head.ljust(128, b"\0") + body


def xyz(*values):
    return b"XYZ \0\0\0\0" + struct.pack(">iii", *(round(value * 65536) for value in values))


def to_iccp(data):
    return chunk(b"iCCP", b"a name\0\0" + zlib.compress(data))


LINEAR = b"curv" + struct.pack(">II", 0, 0)
SRGB = {b"rXYZ": (0.4360, 0.2225, 0.0139), b"gXYZ": (0.3851, 0.7169, 0.0971), b"bXYZ": (0.1431, 0.0606, 0.7141)}


def from_linear(values):
    """IEC 61966-2-1: linear light -> sRGB."""
    values = values / 255
    return 255 * np.where(values <= 0.0031308, 12.92 * values, 1.055 * values ** (1 / 2.4) - 0.055)


def linear_rgb(file_format, **options):
    tags = [*((name, xyz(*value)) for name, value in SRGB.items())]
    tags += [(name, LINEAR) for name in (b"rTRC", b"gTRC", b"bTRC")]
    return pillow(RGB, file_format, icc_profile=profile(b"RGB ", *tags), **options), from_linear(RGB)


def grey_of_gamma_1_8():
    """As Apple's generic profile has it."""
    curve = b"curv" + struct.pack(">IIHH", 0, 1, round(1.8 * 256), 0)
    return pillow(GREY, "PNG", icc_profile=profile(b"GRAY", (b"kTRC", curve))), from_linear(255 * (GREY / 255) ** 1.8)


CASES = {
    "png, 8-bit": (png(RGB, 8, 2), RGB),
    "png, 16-bit": (png(fine(RGB), 16, 2), RGB),
    "png, grey of 8 bits": (png(GREY, 8, 0), GREY),
    "png, grey of 16 bits": (png(fine(GREY), 16, 0), GREY),
    **{f"png, grey of {bits} bits": (png(few(bits)[0], bits, 0), few(bits)[1]) for bits in (1, 2, 4)},
    "png, alpha": (png(RGBA, 8, 6), on_white(RGB, ALPHA)),
    "png, alpha of 16 bits": (png(fine(RGBA), 16, 6), on_white(RGB, ALPHA)),
    "png, grey with alpha": (png(RGBA[..., 2:], 8, 4), on_white(RGBA[..., 2:3], ALPHA)),
    "png, grey with alpha of 16 bits": (png(fine(RGBA[..., 2:]), 16, 4), on_white(RGBA[..., 2:3], ALPHA)),
    **{f"png, palette of {bits} bits": palette_png(bits) for bits in (1, 2, 4, 8)},
    "png, palette with alpha": palette_png(4, [0, 85, 170, 255, 0]),
    "png, palette with one clear colour": palette_png(2, [255, 0]),
    "png, a clear colour": keyed(RGB, 8, 2, RGB),
    "png, a clear colour of 16 bits": keyed(RGB * 257, 16, 2, RGB),
    "png, a clear grey": keyed(GREY, 8, 0, GREY),
    "png, a clear grey of 4 bits": keyed(few(4)[0], 4, 0, few(4)[1]),
    "png, a clear grey of 1 bit": keyed(few(1)[0], 1, 0, few(1)[1]),
    "png, a clear grey of 16 bits": keyed(GREY * 257, 16, 0, GREY),
    "png, interlaced": (png(RGB, 8, 2, interlaced=True), RGB),
    "png, interlaced grey of 2 bits": (png(few(2)[0], 2, 0, interlaced=True), few(2)[1]),
    "png, animated": frames("PNG"),
    "png, a profile of linear light": linear_rgb("PNG"),
    "png, a grey profile of gamma 1.8": grey_of_gamma_1_8(),
    "jpeg": (pillow(RGB, "JPEG", **JPEG), RGB),
    "jpeg, progressive": (pillow(RGB, "JPEG", progressive=True, **JPEG), RGB),
    "jpeg, grey": (pillow(GREY, "JPEG", quality=100), GREY),
    "jpeg, cmyk by Adobe": cmyk(),
    "jpeg, ycck by Adobe": ycck(),
    "jpeg, rgb without luma": rgb_jpeg(),
    "jpeg, turned by exif": turned(),
    "jpeg, a profile of linear light": linear_rgb("JPEG", **JPEG),
    "jpeg, several pictures (MPO)": frames("MPO", **JPEG),
    "webp, lossless": (pillow(RGB, "WEBP", lossless=True), RGB),
    "webp, alpha": (pillow(RGBA, "WEBP", lossless=True, exact=True), on_white(RGB, ALPHA)),
    "webp, animated": frames("WEBP", lossless=True),
}


@pytest.mark.parametrize("case", CASES)
def test_an_image_is_what_a_person_would_see(case):
    data, wanted = CASES[case]
    loaded = load_reference(data, "images[0]", 10**7).image
    assert (loaded.mode, loaded.size) == ("RGB", (SIDE, SIDE))
    off = np.abs(np.asarray(loaded).astype(float) - wanted).max()
    assert off <= 2, f"{case}: {off:.1f} of 255 away"


def test_there_are_twenty_and_more():
    assert len(CASES) >= 20


@pytest.mark.parametrize("name", ["JPEG", "WEBP"])
def test_a_lossy_image_is_near_where_it_is_flat(name):
    """With half the chroma, as cameras write it: edges blur, and what is between them does not."""
    loaded = np.asarray(load_reference(pillow(RGB, name, quality=95), "images[0]", 10**7).image).astype(float)
    centres = slice(TILE // 2, None, TILE)
    assert np.abs(loaded[centres, centres] - RGB[centres, centres]).max() <= 4


def test_a_large_image_is_made_smaller_without_a_shift():
    """By way of strips, in every mode: the same image as Pillow's own resizing gives."""
    across, down = (np.linspace(0, 255, size).round().astype(np.uint8) for size in (5200, 3600))
    wide = np.stack(np.broadcast_arrays(across[None, :], across[None, ::-1], down[:, None]), -1)
    picture = Image.fromarray(wide)
    files = [to_bytes(picture, "PNG", compress_level=1), to_bytes(picture.convert("RGBA"), "PNG", compress_level=1)]
    files += [to_bytes(picture, "JPEG", quality=95)]
    for data in files:
        loaded = load_reference(data, "images[0]", 10**9).image
        wanted = Image.open(io.BytesIO(data)).convert("RGB").resize(loaded.size, Image.Resampling.LANCZOS)
        off = np.abs(np.asarray(loaded).astype(float) - np.asarray(wanted).astype(float)).max()
        assert off <= 2, Image.open(io.BytesIO(data)).format
