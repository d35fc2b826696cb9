import base64
import io
import random

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from imagegen.errors import BadReference, PayloadTooLarge
from imagegen.jobs import MEGAPIXEL
from imagegen.references import load_reference
from tests.conftest import scene, to_base64, to_bytes

LIMIT = 1_000_000


def load(value: str, limit: int = LIMIT) -> Image.Image:
    return load_reference(value, "images[1]", limit)


def colour_at(picture: Image.Image, x: int, y: int) -> np.ndarray:
    return np.asarray(picture)[y, x].astype(int)


PICTURE = scene("circle", "red", "blue")


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,", "DATA:;BASE64,"])
def test_a_picture_arrives_whole(file_format, prefix):
    loaded = load(prefix + to_base64(PICTURE, file_format))
    assert loaded.mode == "RGB"
    assert loaded.size == (128, 128)
    assert np.abs(np.asarray(loaded).astype(int) - np.asarray(PICTURE)).mean() < 3


def test_a_png_arrives_bit_for_bit():
    assert load(to_base64(PICTURE)).tobytes() == PICTURE.tobytes()


def test_base64_may_be_wrapped_in_lines():
    assert load(base64.encodebytes(to_bytes(PICTURE)).decode()).size == (128, 128)


PNG = to_bytes(PICTURE)
BOMB = to_bytes(Image.new("1", (13_000, 13_000)))
ANIMATION = to_bytes(PICTURE, "WEBP", save_all=True, append_images=[scene("star", "green", "white")])


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("", "is empty"),
        ("not base64!", "is not base64"),
        ("aGVsbG8", "is not base64"),  # padding is missing
        (base64.b64encode(b"hello, world").decode(), "is not a picture; PNG, JPEG and WebP are allowed"),
        (to_base64(PICTURE, "GIF"), "is not a picture"),
        (to_base64(PICTURE, "BMP"), "is not a picture"),
        (base64.b64encode(PNG[: len(PNG) // 2]).decode(), "broken or truncated"),
        (base64.b64encode(PNG[:40]).decode(), "is not a picture"),  # not even its header is whole
        (base64.b64encode(to_bytes(PICTURE, "JPEG")[:600]).decode(), "broken or truncated"),
        (base64.b64encode(BOMB).decode(), "13000x13000 pixels are too many; 50 megapixels are allowed"),
        (to_base64(Image.new("1", (20000, 10000))), "its pixels are too many; 50 megapixels are allowed"),
        (to_base64(Image.new("1", (8000, 8000))), "8000x8000 pixels are too many; 50 megapixels are allowed"),
        (base64.b64encode(ANIMATION).decode(), "animation"),
        (to_base64(Image.new("RGB", (900, 100))), "900x100 is too long and thin"),
        ("data:image/png;base64", "data: URI"),
        ("data:image/png,abc", "data: URI"),
        ("https://example.com/a.png", "URLs are not fetched"),
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


def test_a_phones_jpeg_of_several_frames_gives_its_first():
    file = io.BytesIO()
    PICTURE.save(file, "MPO", save_all=True, append_images=[scene("star", "green", "white")])
    loaded = load(base64.b64encode(file.getvalue()).decode())
    assert np.abs(np.asarray(loaded).astype(int) - np.asarray(PICTURE)).mean() < 4
