import asyncio
import base64
import io
import random
import struct
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from imagegen.contract.requests import parse_job
from imagegen.errors import BadReference, PayloadTooLarge
from imagegen.inputs import jpeg
from imagegen.inputs.decoding import load_reference
from imagegen.models import MEGAPIXEL
from tests.support import ROOT
from tests.support.images import scene, to_base64, to_bytes

LIMIT = 1_000_000


def load(value: str, limit: int = LIMIT) -> Image.Image:
    return load_reference(value, "images[1]", limit).image


def colour_at(picture: Image.Image, x: int, y: int) -> np.ndarray:
    return np.asarray(picture)[y, x].astype(int)


PICTURE = scene("circle", "red", "blue")


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "AVIF"])
@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,", "DATA:;BASE64,"])
def test_a_picture_arrives_whole(file_format, prefix):
    loaded = load(prefix + to_base64(PICTURE, file_format))
    assert loaded.mode == "RGB"
    assert loaded.size == (128, 128)
    assert np.abs(np.asarray(loaded).astype(int) - np.asarray(PICTURE)).mean() < 3


def test_a_png_arrives_bit_for_bit():
    assert load(to_base64(PICTURE)).tobytes() == PICTURE.tobytes()


@pytest.mark.parametrize("padding", ["", "=", "=="])
def test_base64_is_taken_in_both_alphabets_and_with_any_padding(padding):
    """As mail, JSON Web Tokens, and code that adds one `=` too many write it."""
    assert load(base64.urlsafe_b64encode(PNG).decode().rstrip("=") + padding).tobytes() == PICTURE.tobytes()
    assert load("data:image/png;base64," + to_base64(PNG).rstrip("=") + padding).tobytes() == PICTURE.tobytes()
    assert set("-_") <= set(base64.urlsafe_b64encode(PNG).decode())


def test_base64_may_be_wrapped_in_lines():
    assert load(base64.encodebytes(to_bytes(PICTURE)).decode()).size == (128, 128)


PNG = to_bytes(PICTURE)
BOMB = to_bytes(Image.new("1", (13_000, 13_000)))


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("", "is empty"),
        ("not base64!", "is not base64"),
        ("aGVsbG8hI", "is not base64"),  # one character is too many, or three are missing
        (base64.b64encode(b"hello, world").decode(), "is not an image; PNG, JPEG, WebP and AVIF are allowed"),
        (to_base64(PICTURE, "GIF"), "is a GIF; PNG, JPEG, WebP and AVIF are allowed"),
        (to_base64(PICTURE, "BMP"), "is a BMP; PNG, JPEG, WebP and AVIF are allowed"),
        (to_base64(PICTURE, "TIFF"), "is a TIFF; PNG, JPEG, WebP and AVIF are allowed"),
        (to_base64(b"\n <html><body>404</body></html>"), "is HTML or XML; PNG, JPEG, WebP and AVIF are allowed"),
        (to_base64(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(500)), "is a HEIC, or another format"),
        (base64.b64encode(PNG[: len(PNG) // 2]).decode(), "broken or truncated"),
        (base64.b64encode(PNG[:40]).decode(), "broken or truncated"),  # not even its header is complete
        (base64.b64encode(to_bytes(PICTURE, "JPEG")[:600]).decode(), "broken or truncated"),
        (base64.b64encode(BOMB).decode(), "has 13000x13000 pixels; 50 megapixels are allowed"),
        (to_base64(Image.new("1", (20000, 10000))), "has 20000x10000 pixels; 50 megapixels are allowed"),
        (to_base64(Image.new("1", (7072, 7071))), "has 7072x7071 pixels; 50 megapixels are allowed"),
        (to_base64(Image.new("RGB", (900, 100))), "900x100 is too long and thin"),
        ("data:image/png;base64", "data: URI"),
        ("data:image/png,abc", "data: URI"),
        ("file:///etc/passwd", "is not base64"),
    ],
)
def test_what_is_no_picture_is_named(value, says):
    with pytest.raises(BadReference) as caught:
        load(value)
    assert caught.value.field == "images[1]"
    assert caught.value.message.startswith("images[1]: ")
    assert says in caught.value.message


def test_too_many_bytes_are_refused_before_decoding():
    with pytest.raises(PayloadTooLarge, match=r"images\[1\]: is about 3\.0 MB; 1 MB are allowed"):
        load("A" * 4_000_000)
    with pytest.raises(BadReference):  # and not because of their number
        load("A" * 1_000_000)


def test_every_truncation_is_an_error_of_the_contract():
    for data in (PNG, to_bytes(PICTURE, "JPEG"), to_bytes(PICTURE, "WEBP")):
        for end in range(1, len(data) - 12, max(1, len(data) // 40)):
            with pytest.raises(BadReference):
                load(base64.b64encode(data[:end]).decode())


def test_a_photo_is_turned_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    lying = Image.new("RGB", (192, 96), "blue")
    lying.paste((255, 0, 0), (0, 0, 96, 96))
    upright = load(to_base64(lying, "PNG", exif=exif))
    assert upright.size == (96, 192)
    assert colour_at(upright, 48, 20).tolist() == [255, 0, 0]
    assert colour_at(upright, 48, 170).tolist() == [0, 0, 255]


def test_transparency_lies_on_white_and_hides_what_is_under_it():
    clear = Image.new("RGBA", (128, 128), (255, 0, 0, 0))
    clear.paste((0, 0, 255, 255), (64, 0, 128, 128))
    for picture in (clear, clear.quantize()):
        loaded = load(to_base64(picture))
        assert colour_at(loaded, 10, 10).tolist() == [255, 255, 255]
        assert colour_at(loaded, 100, 100).tolist() == [0, 0, 255]


def test_sixteen_bit_grey_is_scaled_and_not_clipped():
    grey = Image.fromarray(np.full((128, 128), 65535 // 4, dtype=np.uint16))
    assert colour_at(load(to_base64(grey)), 5, 5).tolist() == pytest.approx([64] * 3, abs=1)


def test_every_value_of_sixteen_bit_grey_is_rounded_to_the_nearest_of_eight():
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    loaded = np.asarray(load(to_base64(Image.fromarray(values))))
    wanted = np.round(values.astype(float) * 255 / 65535)
    assert np.array_equal(loaded, np.repeat(wanted[..., None], 3, -1))


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1", "CMYK"])
def test_every_mode_becomes_rgb(mode):
    picture = PICTURE.convert(mode)
    loaded = load(to_base64(picture, "JPEG" if mode == "CMYK" else "PNG"))
    assert (loaded.mode, loaded.size) == ("RGB", (128, 128))


def test_an_embedded_profile_is_applied():
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    # The same profile with its primaries for red and blue exchanged.
    swapped = srgb.replace(b"rXYZ", b"????").replace(b"bXYZ", b"rXYZ").replace(b"????", b"bXYZ")
    plain, seen = load(to_base64(PICTURE, icc_profile=srgb)), load(to_base64(PICTURE, icc_profile=swapped))
    assert colour_at(plain, 64, 64) == pytest.approx([220, 38, 38], abs=2)
    assert colour_at(seen, 64, 64) == pytest.approx([38, 38, 220], abs=25)
    assert load(to_base64(PICTURE, icc_profile=b"not a profile")).tobytes() == PICTURE.tobytes()


def test_broken_exif_does_not_spoil_a_good_picture():
    exif = Image.Exif()
    exif[0x0112] = 3
    exif[0x010E] = "a description"
    exif[0x0131] = "a camera"
    good = bytearray(to_bytes(PICTURE, "JPEG", exif=exif))
    begin = good.index(b"Exif") + 6
    rng = random.Random(1)
    for _ in range(400):
        broken = good.copy()
        for _ in range(rng.randint(1, 6)):
            broken[rng.randrange(begin, begin + len(exif.tobytes()) - 6)] = rng.randrange(256)
        assert load(base64.b64encode(bytes(broken)).decode()).size == (128, 128)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_pillows(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = scene("triangle", "red", "blue", x=0.3).resize((192, 96))
    saved = to_bytes(picture, "PNG", exif=exif)
    wanted = ImageOps.exif_transpose(Image.open(io.BytesIO(saved))).convert("RGB")
    assert load(base64.b64encode(saved).decode()).tobytes() == wanted.tobytes()


@pytest.mark.parametrize(
    "size",
    [
        (4000, 3000),
        (1030, 1030),
        (30, 40),
        (513, 77),
        (500, 63),
        (64, 512),
        (17, 136),
        (700, 500),
        (1020, 680),
        (720, 1279),
    ],
)
def test_a_reference_is_resized_and_never_cropped(size):
    picture = Image.new("RGB", size, "white")
    for corner, colour in ((0, "red"), (1, "blue")):
        patch = Image.new("RGB", (-(-size[0] // 4), -(-size[1] // 4)), colour)
        picture.paste(patch, (size[0] - patch.width, size[1] - patch.height) if corner else (0, 0))
    loaded = load(to_base64(picture), 50_000_000)
    width, height = loaded.size
    assert width % 16 == height % 16 == 0
    assert width * height <= MEGAPIXEL
    assert width / height == pytest.approx(size[0] / size[1], rel=0.15)
    assert colour_at(loaded, 2, 2) == pytest.approx([255, 0, 0], abs=60)
    assert colour_at(loaded, width - 3, height - 3) == pytest.approx([0, 0, 255], abs=60)


def test_the_model_takes_what_comes_out():
    from diffusers.pipelines.flux2.image_processor import Flux2ImageProcessor

    for size in ((17, 136), (520, 65), (5000, 625), (3000, 4000), (1, 1)):
        loaded = load(to_base64(Image.new("RGB", size)), 50_000_000)
        Flux2ImageProcessor.check_image_input(loaded)
        # Its own resizing would have nothing left to do.
        assert Flux2ImageProcessor._resize_if_exceeds_area(loaded) is loaded


@pytest.mark.parametrize("file_format", ["PNG", "WEBP", "MPO"])
def test_of_several_frames_the_first_is_used_with_a_warning(service, file_format):
    """An animation, or a phone's JPEG with a second picture behind the first."""
    more = [scene("star", "green", "white"), scene("star", "blue", "white")]
    sent = to_base64(PICTURE, file_format, save_all=True, append_images=more)
    loaded = load_reference(sent, "images[1]", LIMIT)
    assert np.abs(np.asarray(loaded.image).astype(int) - np.asarray(PICTURE)).mean() < 4
    assert loaded.warnings == ["images[1]: has 3 frames; only the first is used"]
    job = {"prompt": "make the circle green " + "please " * 40, "images": [to_base64(PICTURE), sent]}
    warnings = asyncio.run(service.run(parse_job(job))).warnings
    assert warnings[0] == loaded.warnings[0] and warnings[1].startswith("prompt:")


def test_a_transparent_first_frame_is_explained():
    clear = Image.new("RGBA", (128, 128), (255, 0, 0, 0))
    animated = to_base64(clear, "WEBP", save_all=True, append_images=[PICTURE.convert("RGBA")])
    for value, note in (
        (animated, ["has 2 frames; only the first is used", "its first frame is fully transparent, so the model sees"]),
        (to_base64(clear), ["it is fully transparent, so the model sees only white"]),
        (to_base64(clear.quantize()), ["it is fully transparent, so the model sees only white"]),
    ):
        loaded = load_reference(value, "images[1]", LIMIT)
        assert loaded.image.getextrema() == ((255, 255),) * 3
        assert len(loaded.warnings) == len(note)
        assert all(text.startswith(f"images[1]: {said}") for text, said in zip(loaded.warnings, note, strict=True))
    clear.putpixel((127, 127), (0, 0, 0, 1))
    assert load_reference(to_base64(clear), "images[1]", LIMIT).warnings == []


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


def test_a_large_picture_is_in_memory_once():
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
