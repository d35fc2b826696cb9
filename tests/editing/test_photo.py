"""Edits at the photo's own size: which pixels are kept, whatever the model has made of the rest."""

import time

import numpy as np
import pytest
from PIL import Image, ImageDraw

from imagegen.contract.schemas import EditRequest
from imagegen.editing import photo as editing
from imagegen.editing.mask import weights
from imagegen.editing.region import choose_region
from imagegen.errors import InvalidInput
from imagegen.models import get_model
from tests.editing.photos import photo

KLEIN, MICRO = get_model("klein-9b"), get_model("micro")


def disc(size, box):
    mask = Image.new("L", size)
    ImageDraw.Draw(mask).ellipse(box, fill=255)
    return mask


def request(**fields):
    return EditRequest(**{"prompt": "a face", "images": ["x"], **fields})


@pytest.mark.parametrize("spec", [KLEIN, MICRO], ids=lambda spec: spec.name)
@pytest.mark.parametrize(
    ("size", "box"),
    [
        ((64, 64), (20, 20, 40, 40)), ((131, 117), (0, 0, 9, 9)), ((1000, 300), (900, 100, 999, 299)),
        ((1024, 1024), (0, 0, 1023, 1023)), ((2000, 3000), (700, 1200, 900, 1500)), ((512, 80), (1, 1, 3, 3)),
    ],
)  # fmt: skip
def test_what_the_mask_and_its_feather_leave_is_the_photos_own(spec, size, box):
    picture, mask = photo(*size), disc(size, box)
    edit = editing.plan_edit(request(mask="x"), picture, mask, spec)
    left, top, right, bottom = edit.region.box
    assert 0 <= left < right <= size[0]
    assert 0 <= top < bottom <= size[1]
    width, height = edit.region.size
    assert edit.crop.size == (width, height)
    assert width % 16 == height % 16 == 0
    assert width * height <= spec.size**2
    result = edit.finish(Image.new("RGB", edit.crop.size, "red"))
    alpha = weights(mask, size, invert=False, grow=None, feather=None)
    before, after = np.asarray(picture), np.asarray(result.image)
    assert np.array_equal(after[alpha == 0], before[alpha == 0])
    assert (after[alpha == 255] != before[alpha == 255]).any(axis=-1).mean() > 0.9
    assert alpha[np.asarray(mask) > 0].min() == 255  # all that was selected is edited


def test_a_small_part_of_a_large_photo_is_generated_pixel_for_pixel():
    alpha = np.zeros((4000, 6000), np.uint8)
    alpha[1000:1200, 3000:3300] = 255
    region = choose_region(alpha, KLEIN)
    assert region.size == region.crop_size == (1024, 1024)
    left, top, right, bottom = region.box
    assert left < 3000 < 3300 < right
    assert top < 1000 < 1200 < bottom


def test_grow_and_feather_are_pixels_of_the_photo():
    mask = disc((200, 200), (90, 90, 109, 109))
    plain = weights(mask, (200, 200), invert=False, grow=0, feather=0)
    assert np.array_equal(plain, np.asarray(mask))
    grown = weights(mask, (200, 200), invert=False, grow=10, feather=0)
    assert abs((grown[100] == 255).sum() - 40) <= 1
    faded = weights(mask, (200, 200), invert=False, grow=0, feather=20)
    row = faded[100].astype(int)
    assert (row == 255).sum() >= 18
    assert abs((row > 0).sum() - 60) <= 4  # twenty more on each side
    assert (np.diff(row[:100]) >= 0).all()
    inverted = weights(mask, (200, 200), invert=True, grow=0, feather=0)
    assert np.array_equal(inverted, 255 - plain)


def test_a_large_grow_costs_no_more_than_a_small_one():
    """Nobody can stop the thread that computes it."""
    mask = disc((1000, 1000), (450, 450, 549, 549))

    def cost(reach):
        begun = time.process_time()
        alpha = weights(mask, (1000, 1000), invert=False, grow=reach, feather=reach)
        return time.process_time() - begun, alpha

    cost(10)
    small, large = cost(10), cost(512)
    assert large[1].all()
    assert large[0] < 50 * small[0]


def test_a_mask_of_the_photos_shape_is_resized():
    mask = disc((100, 50), (40, 20, 60, 30))
    alpha = weights(mask, (1000, 500), invert=False, grow=0, feather=0)
    assert alpha.shape == (500, 1000)
    assert alpha[250, 500] == 255
    assert alpha[100, 100] == 0


@pytest.mark.parametrize(
    ("mask", "invert", "message"),
    [
        (Image.new("L", (100, 100)), False, "mask: selects nothing; white or transparent"),
        (Image.new("L", (100, 100), 255), True, "mask: selects nothing; black"),
        (Image.new("L", (100, 60), 255), False, "mask: is 100x60 and the first reference 100x100"),
    ],
)
def test_masks_that_cannot_be_used_are_errors_that_say_why(mask, invert, message):
    with pytest.raises(InvalidInput, match=message) as caught:
        editing.plan_edit(request(mask="x", mask_invert=invert), photo(100, 100), mask, MICRO)
    assert caught.value.field == "mask"


@pytest.mark.parametrize(
    ("fields", "size", "place"),
    [
        ({"expand": {"left": 30, "bottom": 10}}, (130, 90), (30, 0)),
        ({"fit": "expand", "aspect_ratio": "16:9"}, (143, 80), (21, 0)),
        ({"fit": "expand", "aspect_ratio": "1:1"}, (100, 100), (0, 10)),
    ],
)
def test_an_expanded_canvas_holds_the_photo_to_the_bit(fields, size, place):
    picture = photo(100, 80)
    edit = editing.plan_edit(request(**fields), picture, None, MICRO)
    assert edit.size == size
    result = edit.finish(Image.new("RGB", edit.crop.size, "red")).image
    (x, y), after = place, np.asarray(result)
    assert np.array_equal(after[y : y + 80, x : x + 100], np.asarray(picture))
    new = np.ones(after.shape[:2], bool)
    new[y : y + 80, x : x + 100] = False
    assert (after[new] == (255, 0, 0)).all(axis=-1).mean() > 0.95


def test_limits_name_their_field():
    picture = photo(400, 300)
    with pytest.raises(InvalidInput, match="expand: 8592x8492 pixels are too many") as caught:
        editing.plan_edit(request(expand={"left": 8192, "top": 8192}), picture, None, KLEIN)
    assert caught.value.field == "expand"
    with pytest.raises(InvalidInput, match="fit: the reference has the shape 4:3 already"):
        editing.plan_edit(request(fit="expand", aspect_ratio="4:3"), picture, None, KLEIN)
    large = Image.new("RGB", (6000, 4000))
    with pytest.raises(InvalidInput, match="num_images: 4 images of 6000x4000 are too many; 3 are allowed"):
        editing.plan_edit(request(mask="x", num_images=4), large, large.convert("L"), KLEIN)


def test_a_photo_may_be_as_long_and_thin_as_a_reference():
    for spec in (MICRO, KLEIN):
        for size in ((64, 512), (512, 64), (2000, 250)):
            edit = editing.plan_edit(request(mask="x"), photo(*size), Image.new("L", size, 255), spec)
            assert edit.region.size[0] * edit.region.size[1] <= spec.size**2
    with pytest.raises(InvalidInput, match="^expand: 8272x64 is too long and thin; at most 8:1 is allowed$"):
        editing.plan_edit(request(expand={"left": 8192}), photo(80, 64), None, MICRO)


def test_preserve_keeps_what_has_not_changed():
    picture = photo(200, 200, 5)
    edit = editing.plan_edit(request(preserve="auto"), picture, None, MICRO)
    generated = edit.crop.copy()
    ImageDraw.Draw(generated).ellipse((40, 40, 80, 80), fill="red")
    result = edit.finish(generated)
    before, after = np.asarray(picture), np.asarray(result.image)
    assert (after == before).all(axis=-1).mean() > 0.8
    assert tuple(after[94, 94]) == (255, 0, 0)
    assert "the rest is the reference's own" in result.warnings[0]
