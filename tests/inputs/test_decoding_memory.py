"""What a reference may cost to decode: photographs of large sensors, claims of a header, JPEGs cut short."""

import struct
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from imagegen.errors import BadReference
from imagegen.inputs import jpeg
from imagegen.inputs.decoding import load_reference
from tests.support import ROOT
from tests.support.images import scene, to_base64, to_bytes

LIMIT = 1_000_000


def load(value: str, limit: int = LIMIT) -> Image.Image:
    return load_reference(value, "images[1]", limit).image


PICTURE = scene("circle", "red", "blue")


BOMB = to_bytes(Image.new("1", (13_000, 13_000)))


@pytest.mark.parametrize("size", [(8160, 6144), (8064, 6448), (12000, 9000), (16320, 12240)])
def test_photographs_of_the_largest_sensors_are_decoded(size):
    """50, 52, 108 and 200 megapixels: at a fraction of their size, with the memory of one."""
    photograph = Image.linear_gradient("L").resize(size, Image.Resampling.NEAREST)
    data, memory = to_bytes(photograph, "JPEG"), []
    del photograph
    loaded = load_reference(data, "images[1]", 10**8, memory.append)
    rows = np.asarray(loaded.image)[:, :, 0].mean(1)
    assert np.abs(rows - np.linspace(0, 255, loaded.image.height)).max() < 3
    assert loaded.image.size == (1168, 880) or loaded.image.width * loaded.image.height > 950_000
    assert memory[0] < 250_000_000


def claims(data, width, height):
    """A JPEG whose header says another size."""
    place = next(data.index(marker) for marker in (b"\xff\xc0", b"\xff\xc2") if marker in data) + 5
    return data[:place] + struct.pack(">HH", height, width) + data[place + 4 :]


def test_a_jpeg_that_would_take_too_much_memory_is_refused_before_it_is_decoded():
    """All coefficients of a progressive one are kept until its end: 1.2 GB for 200 megapixels."""
    progressive, baseline = (to_bytes(PICTURE, "JPEG", progressive=value) for value in (True, False))
    with pytest.raises(BadReference, match=r"images\[1\]: needs 13\d\d MB to decode; 1000 MB are allowed"):
        load(to_base64(claims(progressive, 16320, 12240)))
    assert load(to_base64(claims(baseline, 16320, 12240)))  # an eighth of it, and most of it grey
    with pytest.raises(BadReference, match=r"has 16384x12240 pixels; 200 megapixels are allowed for this format"):
        load(to_base64(claims(baseline, 16384, 12240)))
    scan = baseline.index(b"\xff\xda")
    one = baseline[:scan] + b"\xff\xda\0\x08\x01" + baseline[scan + 5 :]  # its first scan has one component of three
    fill = baseline[:2] + b"\xff\xff\xff" + baseline[2:]
    found = {name: jpeg.keeps_coefficients(data) for name, data in locals().items() if isinstance(data, bytes)}
    assert found == {"progressive": True, "baseline": False, "one": True, "fill": False}
    assert not jpeg.keeps_coefficients(to_bytes(PICTURE.convert("L"), "JPEG"))
    assert jpeg.keeps_coefficients(baseline[:scan]) and jpeg.keeps_coefficients(b"\xff\xd8")


JPEGS = {
    "baseline": {},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_blocks": 3},
    "exact": {"quality": 100, "subsampling": 0},
}


@pytest.mark.parametrize("kind", JPEGS)
def test_a_jpeg_without_its_end_is_decoded_and_one_without_data_is_not(kind):
    photograph = Image.fromarray(np.random.default_rng(3).integers(0, 256, (96, 96, 3), np.uint8))
    data = to_bytes(photograph, "JPEG", **JPEGS[kind])
    wanted = load(to_base64(data)).tobytes()
    for missing in (1, 2):
        assert load(to_base64(data[:-missing])).tobytes() == wanted
    scan = data.rindex(b"\xff\xda") + 20
    restarts = [
        place for place in range(scan, len(data) - 4) if data[place] == 0xFF and 0xD0 <= data[place + 1] <= 0xD7
    ]
    for end in {*range(scan, len(data) - 4, 211), *restarts, *(place + 2 for place in restarts), len(data) - 6}:
        with pytest.raises(BadReference, match="broken or truncated"):
            load(to_base64(data[:end]))
    # Data behind the end, and none at all, change nothing.
    assert load(to_base64(data + b"trailing")).tobytes() == wanted


def test_a_claim_costs_no_memory():
    """20 KB that claim 13,000 x 13,000 are refused on their header."""
    assert len(BOMB) < 30_000
    outcome, grown = loaded_alone(to_base64(BOMB))
    assert "has 13000x13000 pixels" in outcome
    assert grown < 2_000  # of 169,000 that its pixels are


def test_a_large_image_is_in_memory_once():
    """Fifty megapixels with transparency and a palette; a copy of them as RGBA would be 200 MB."""
    size = (7000, 7000)
    picture = Image.new("P", size, 1)
    picture.putpalette([255, 0, 0, 0, 0, 255])
    outcome, grown = loaded_alone(to_base64(picture, transparency=0))
    assert outcome == "(0, 0, 255)"
    assert grown < 49_000 * 2 + 60_000


def loaded_alone(value):
    """Loads a reference in a process of its own: a pixel of it or the error, and by how many KB the process's peak
    grew. The peak of this one was raised by earlier tests, and `ru_maxrss` begins at the parent's."""
    done = subprocess.run(
        [sys.executable, "-c", PEAK],
        input=value,
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    outcome, grown = done.stdout.splitlines()
    return outcome, int(grown)


PEAK = """
import re, sys
from imagegen.errors import BadReference
from imagegen.inputs.decoding import load_reference

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])

value = sys.stdin.read()
before = peak()
try:
    print(load_reference(value, "images[0]", 10**8).image.getpixel((5, 5)))
except BadReference as error:
    print(error.message)
print(peak() - before)
"""
