"""A reference's colours are what a browser shows: by cICP, an ICC profile, sRGB, gAMA and cHRM, in this order.

The wanted values are computed here from the standards' formulas, not by a colour library."""

import struct

import numpy as np
import pytest

from imagegen.inputs.decoding import load_reference
from tests.inputs.test_formats import GREY, RGB, SRGB, chunk, from_linear, png, profile, to_iccp, xyz

#: Linear light -> linear sRGB, from the chromaticities (CSS Color 4, sections 10 and 20).
FROM_P3 = [
    [1.2249401763, -0.2249401763, 0],
    [-0.0420569547, 1.0420569547, 0],
    [-0.0196375546, -0.0786360456, 1.0982736],
]
FROM_2020 = [[1.660491, -0.587641, -0.072850], [-0.124550, 1.132900, -0.008349], [-0.018151, -0.100579, 1.118730]]
P3 = (31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)
BT709 = (31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)


def to_linear(values):
    values = values / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def bt709_to_linear(values):
    values = values / 255
    return np.where(values < 0.081, values / 4.5, ((values + 0.099) / 1.099) ** (1 / 0.45))


def through(matrix, linear):
    return from_linear(255 * np.clip(linear @ np.array(matrix).T, 0, 1))


def gama(value):
    return chunk(b"gAMA", struct.pack(">I", value))


def chrm(*values):
    return chunk(b"cHRM", struct.pack(">8I", *values))


def cicp(primaries, transfer):
    return chunk(b"cICP", bytes((primaries, transfer, 0, 1)))


def swapped(padding=b""):
    """A profile with red and blue exchanged; its curve is linear."""
    tags = [(name, xyz(*SRGB[other])) for name, other in zip(SRGB, reversed(SRGB), strict=True)]
    tags += [(name, b"curv" + struct.pack(">II", 0, 0)) for name in (b"rTRC", b"gTRC", b"bTRC")]
    return profile(b"RGB ", *tags, *([(b"priv", b"data" + bytes(4) + padding)] if padding else []))


SWAPPED = from_linear(RGB)[..., ::-1]
LARGE = np.random.default_rng(1).bytes(1_200_000)
IS_SRGB = chunk(b"sRGB", b"\0")
CASES = {
    "gAMA 1.0 is linear light": ([gama(100_000)], from_linear(RGB)),
    "gAMA 1/1.8": ([gama(55_556)], from_linear(255 * (RGB / 255) ** 1.8)),
    "gAMA 1/2.2 alone stands for sRGB": ([gama(45_455)], RGB),
    "and with cHRM": ([gama(45_455), chrm(*BT709)], RGB),
    "cHRM of P3, gAMA 1/2.2": ([gama(45_455), chrm(*P3)], through(FROM_P3, to_linear(RGB))),
    "cHRM of P3 alone": ([chrm(*P3)], through(FROM_P3, to_linear(RGB))),
    "cHRM of P3, linear": ([gama(100_000), chrm(*P3)], through(FROM_P3, RGB / 255)),
    "sRGB before gAMA": ([IS_SRGB, gama(100_000)], RGB),
    "a profile before gAMA": ([to_iccp(swapped()), gama(100_000)], SWAPPED),
    "cICP of sRGB before a profile": ([cicp(1, 13), to_iccp(swapped())], RGB),
    "cICP of Display P3": ([cicp(12, 13)], through(FROM_P3, to_linear(RGB))),
    "cICP of BT.2020": ([cicp(9, 14)], through(FROM_2020, bt709_to_linear(RGB))),
    "cICP, linear": ([cicp(1, 8)], from_linear(RGB)),
    "cICP of gamma 2.2": ([cicp(1, 4)], from_linear(255 * (RGB / 255) ** 2.2)),
    "a profile of 1.2 MB": ([to_iccp(swapped(LARGE))], SWAPPED),
    "the first of two profiles": ([to_iccp(swapped()), to_iccp(b"not a profile")], SWAPPED),
    "cICP before IDAT, unknown": ([cicp(2, 2), to_iccp(swapped())], SWAPPED),
}


@pytest.mark.parametrize("case", CASES)
def test_colours_are_a_browser_s(case):
    chunks, wanted = CASES[case]
    loaded = np.asarray(load_reference(png(RGB, 8, 2, *chunks), "images[0]", 10**7).image).astype(float)
    off = np.abs(loaded - wanted).max()
    assert off <= 2, f"{off:.1f} of 255 away"


def test_grey_has_a_gamma_too():
    loaded = np.asarray(load_reference(png(GREY, 8, 0, gama(100_000)), "images[0]", 10**7).image).astype(float)
    assert np.abs(loaded - from_linear(GREY)).max() <= 2


@pytest.mark.parametrize(
    ("chunks", "says"),
    [
        ([cicp(9, 16)], "images[0]: is HDR (PQ), which is not converted; its colours may look wrong"),
        ([cicp(9, 18)], "images[0]: is HDR (HLG), which is not converted; its colours may look wrong"),
        ([cicp(2, 2)], "images[0]: has cICP 2, 2, which is not converted; its colours may look wrong"),
        ([to_iccp(bytes(8_000_001))], "images[0]: its color profile is over 8 MB and was not used"),
    ],
)
def test_what_is_not_honoured_is_said(chunks, says):
    loaded = load_reference(png(RGB, 8, 2, *chunks), "images[0]", 10**7)
    assert loaded.warnings == [says]
    assert np.array_equal(np.asarray(loaded.image), RGB)


@pytest.mark.parametrize(
    "chunks",
    [
        [gama(0)],
        [gama(1)],
        [gama(2**32 - 1)],
        [chunk(b"gAMA", b"\0")],
        [chrm(*[0] * 8)],
        [chrm(31270, 32900, 64000, 33000, 64000, 33000, 64000, 33000)],
        [chunk(b"cHRM", b"\0" * 31)],
        [chunk(b"cICP", b"\x0c\x0d\0")],
        [chunk(b"iCCP", b"name")],
        [chunk(b"iCCP", b"name\0\0not zlib")],
        [to_iccp(b"not a profile")],
        [chunk(b"zTXt", b"a\0\0" + bytes(100)), chunk(b"iTXt", b"\xff" * 99), chunk(b"tEXt", bytes(3_000_000))],
    ],
)
def test_broken_chunks_do_not_spoil_a_good_image(chunks):
    loaded = load_reference(png(RGB, 8, 2, *chunks), "images[0]", 10**7)
    assert np.array_equal(np.asarray(loaded.image), RGB) and loaded.warnings == []
