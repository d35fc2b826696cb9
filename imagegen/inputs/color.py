"""Which ICC profile leads from a reference's numbers to sRGB: its own, or one made of what a PNG says in other chunks.

As browsers do (PNG, third edition, 12.1): cICP before an ICC profile, before sRGB, before gAMA and cHRM. HDR (the
transfer functions PQ and HLG) is not converted, and the caller is warned.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from imagegen.inputs.png import MAX_PROFILE, Png

#: x and y of white, red, green and blue: ITU-R BT.709 (sRGB's), BT.2020 and Display P3, by H.273's code points.
_PRIMARIES = {
    1: (0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06),
    9: (0.3127, 0.3290, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046),
    12: (0.3127, 0.3290, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
}
#: Parametric curves of ICC.1:2022, 10.18, by H.273's code points: gamma 2.2 and 2.8, linear, sRGB, and BT.709's, which
#: BT.601 and BT.2020 share.
_BT709 = (1 / 0.45, 1 / 1.099, 0.099 / 1.099, 1 / 4.5, 0.081)
_CURVES: dict[int, tuple[float, ...]] = {
    1: _BT709, 4: (2.2,), 5: (2.8,), 6: _BT709, 8: (1.0,), 13: (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045),
    14: _BT709, 15: _BT709,
}  # fmt: skip
_HDR = {16: "PQ", 18: "HLG"}
#: Bradford's cone responses, and ICC's white D50.
_BRADFORD = ((0.8951, 0.2664, -0.1614), (-0.7502, 1.7135, 0.0367), (0.0389, -0.0685, 1.0296))
_D50 = (0.9642, 1.0, 0.8249)
Matrix = Sequence[Sequence[float]]


def source_profile(embedded: bytes | None, chunks: Png | None) -> tuple[bytes | None, list[str]]:
    """The profile of a reference's numbers, None where they are sRGB; and what the caller should know.

    Args:
        embedded: the profile that Pillow found in a format other than PNG.
        chunks: what a PNG says of its colours.
    """
    notes: list[str] = []
    profile = embedded
    if chunks is not None:
        if chunks.cicp is not None:
            primaries, transfer = chunks.cicp
            if primaries in _PRIMARIES and transfer in _CURVES:
                same = (primaries, transfer) == (1, 13)
                return None if same else make_profile(_PRIMARIES[primaries], _CURVES[transfer]), notes
            name = f"is HDR ({_HDR[transfer]})" if transfer in _HDR else f"has cICP {primaries}, {transfer}"
            notes.append(f"{name}, which is not converted; its colours may look wrong")
        profile = chunks.profile
        if profile is None and not chunks.srgb and (chunks.gamma or chunks.chromaticities):
            return _from_gamma(chunks), notes
    if profile is not None and not 0 < len(profile) <= MAX_PROFILE:
        notes.append(f"its color profile is over {MAX_PROFILE / 1e6:g} MB and was not used")
        profile = None
    return profile, notes


def _from_gamma(chunks: Png) -> bytes | None:
    """A profile of gAMA and cHRM. What is within rounding of sRGB's values means sRGB: writers put these approximations
    beside, or in place of, the chunk that says so."""
    primaries = chunks.chromaticities or _PRIMARIES[1]
    gamma = chunks.gamma or 1 / 2.2
    near = all(abs(a - b) < 0.005 for a, b in zip(primaries, _PRIMARIES[1], strict=True))
    if abs(gamma - 1 / 2.2) < 0.005:
        return None if near else make_profile(primaries, _CURVES[13])
    if not 0.01 <= gamma <= 10:
        return None
    return make_profile(primaries, (1 / gamma,))


def make_profile(chromaticities: Sequence[float], curve: Sequence[float]) -> bytes | None:
    """An ICC profile (version 4) of three primaries and one curve; None where the chromaticities mean no colour space.

    Args:
        chromaticities: x and y of white, red, green and blue.
        curve: parameters of a parametric curve: g, or g, a, b, c, d.
    """
    try:
        white, *primaries = (_xyz(x, y) for x, y in zip(chromaticities[::2], chromaticities[1::2], strict=True))
        columns = _transpose(primaries)
        scale = _apply(_inverse(columns), white)
        to_xyz = [[value * factor for value, factor in zip(row, scale, strict=True)] for row in columns]
        cones = [b / a for a, b in zip(_apply(_BRADFORD, white), _apply(_BRADFORD, _D50), strict=True)]
        adapted = _multiply([[value * f for value in row] for row, f in zip(_BRADFORD, cones, strict=True)], to_xyz)
        colorants = _transpose(_multiply(_inverse(_BRADFORD), adapted))
        tags = [(b"wtpt", _xyz_tag(_D50))]
        tags += [(name, _xyz_tag(c)) for name, c in zip((b"rXYZ", b"gXYZ", b"bXYZ"), colorants, strict=True)]
        body = b"para" + struct.pack(">IHH", 0, 3 if len(curve) == 5 else 0, 0) + b"".join(map(_fixed, curve))
        tags += [(name, body) for name in (b"rTRC", b"gTRC", b"bTRC")]
    except (ZeroDivisionError, struct.error):
        return None
    table, data, place = b"", b"", 128 + 4 + 12 * len(tags)
    for name, value in tags:
        table += name + struct.pack(">II", place + len(data), len(value))
        data += value
    size = place + len(data)
    head = struct.pack(">I4xI4s4s4s12x4s", size, 0x04200000, b"mntr", b"RGB ", b"XYZ ", b"acsp")
    head = head.ljust(68, b"\0") + b"".join(map(_fixed, _D50))
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + data


def _fixed(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))


def _xyz_tag(values: Sequence[float]) -> bytes:
    return b"XYZ \0\0\0\0" + b"".join(map(_fixed, values))


def _xyz(x: float, y: float) -> tuple[float, float, float]:
    return x / y, 1.0, (1 - x - y) / y


def _transpose(m: Matrix) -> Matrix:
    return [list(row) for row in zip(*m, strict=True)]


def _apply(m: Matrix, v: Sequence[float]) -> list[float]:
    return [sum(a * b for a, b in zip(row, v, strict=True)) for row in m]


def _multiply(a: Matrix, b: Matrix) -> Matrix:
    return _transpose([_apply(a, column) for column in _transpose(b)])


def _inverse(m: Matrix) -> Matrix:
    """Of a 3x3 matrix, by its cofactors: each row is the cross product of two columns, over the determinant."""
    a, b, c = _transpose(m)
    rows = [_cross(b, c), _cross(c, a), _cross(a, b)]
    determinant = sum(x * y for x, y in zip(a, rows[0], strict=True))
    return [[value / determinant for value in row] for row in rows]


def _cross(a: Sequence[float], b: Sequence[float]) -> list[float]:
    return [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]]
