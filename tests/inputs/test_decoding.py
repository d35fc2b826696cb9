"""References as they are sent: base64, formats, orientation, transparency, profiles, sizes; what is none is named."""

import asyncio
import base64
import io
import random
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from imagegen.contract.requests import parse_job
from imagegen.errors import BadReference, PayloadTooLarge
from imagegen.inputs.decoding import load_reference
from imagegen.models import MEGAPIXEL
from tests.support.images import scene, to_base64, to_bytes

LIMIT = 1_000_000


def load(value: str, limit: int = LIMIT) -> Image.Image:
    return load_reference(value, "images[1]", limit).image


def colour_at(picture: Image.Image, x: int, y: int) -> np.ndarray:
    return np.asarray(picture)[y, x].astype(int)


PICTURE = scene("circle", "red", "blue")


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "AVIF"])
@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,", "DATA:;BASE64,"])
def test_an_image_arrives_whole(file_format, prefix):
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


def test_base64_of_a_data_uri_may_be_percent_encoded():
    assert load("data:image/png;base64," + quote(to_base64(PNG), safe="")).tobytes() == PICTURE.tobytes()


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
def test_what_is_no_image_is_named(value, says):
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


def test_broken_exif_does_not_spoil_a_good_image():
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
    """An animation, or a phone's JPEG with a second image behind the first."""
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
