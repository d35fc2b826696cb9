"""What of a reference is edited: a painted area, new canvas; and how the result is compared."""

import base64
import io

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect

from tests.page.conftest import DROP, generate, saved
from tests.support.images import scene, to_base64

pytestmark = pytest.mark.slow


@pytest.fixture
def photo(page):
    """A reference on the page, as an image."""
    photo = scene("circle", "red", "blue").resize((256, 256))
    page.evaluate(DROP, [to_base64(photo), "circle.png"])
    expect(page.locator("#references li")).to_have_count(1)
    return np.asarray(photo.convert("RGB")).astype(int)


def result(page):
    return np.asarray(Image.open(io.BytesIO(saved(page, "Download")[1])).convert("RGB")).astype(int)


def open_painter(page):
    page.get_by_role("radio", name="Only a painted area").check()
    page.get_by_role("button", name="Paint the area").click()
    return page.get_by_role("dialog", name="Mask"), page.locator(".paint canvas")


def painted(page):
    """The mask of the job as it would be sent."""
    page.get_by_role("button", name="Use this mask").click()
    source = page.locator(".mask-thumb").get_attribute("src")
    read = "async source => { const i = new Image(); i.src = source; await i.decode();"
    read += "const c = document.createElement('canvas'); c.width = i.width; c.height = i.height;"
    read += "c.getContext('2d').drawImage(i, 0, 0); return c.toDataURL(); }"
    data = page.evaluate(read, source)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data.partition(",")[2]))).convert("L"))


def stroke(page, canvas, *points):
    """Draws with the mouse, through points in shares of the canvas."""
    box = canvas.bounding_box()
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=4)
    page.mouse.up()


def test_a_painted_area_is_edited_and_the_rest_kept_to_the_bit(page, photo):
    _, canvas = open_painter(page)
    stroke(page, canvas, (0.1, 0.1), (0.3, 0.1))
    page.get_by_role("button", name="Use this mask").click()
    generate(page, "add a green star on the left")
    edited = result(page)
    assert edited.shape == photo.shape
    assert (edited[128:] == photo[128:]).all()
    page.get_by_role("button", name="Before and after").click()
    slider = page.get_by_label("How much of the first image is shown")
    slider.press("Home")
    assert page.locator(".slider .before").evaluate("e => e.style.clipPath") == "inset(0px 100% 0px 0px)"
    slider.press("End")
    assert page.locator(".slider .before").evaluate("e => e.style.clipPath") == "inset(0px 0% 0px 0px)"


def test_brush_erase_invert_undo_and_sizes_by_keys(page, photo):
    _, canvas = open_painter(page)
    stroke(page, canvas, (0.5, 0.5))
    count = (
        "c => c.getContext('2d').getImageData(0, 0, c.width, c.height).data.filter((v, i) => i % 4 === 3 && v).length"
    )
    small = canvas.evaluate(count)
    page.keyboard.press("]")
    page.keyboard.press("]")
    stroke(page, canvas, (0.5, 0.5))
    large = canvas.evaluate(count)
    assert large > 1.3 * small
    page.keyboard.press("Control+z")
    assert canvas.evaluate(count) == small
    page.keyboard.press("x")
    expect(page.get_by_role("button", name="Erase")).to_have_attribute("aria-pressed", "true")
    stroke(page, canvas, (0.5, 0.5))
    assert canvas.evaluate(count) < 20
    page.keyboard.press("i")
    mask = painted(page)
    assert mask.shape == (256, 256)
    assert (mask > 128).mean() > 0.98


def test_a_mask_is_painted_by_keyboard_alone(page, photo):
    open_painter(page)
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Space")
    page.keyboard.press("Shift+ArrowRight")
    mask = painted(page)
    assert 0.002 < (mask > 128).mean() < 0.2
    assert mask[118, 140] > 128


def test_a_mask_is_taken_up_again_and_an_empty_choice_is_explained(page, photo):
    page.get_by_role("radio", name="Only a painted area").check()
    page.get_by_role("button", name="Generate", exact=True).click()
    expect(page.locator("#mask-error")).to_contain_text("Paint the area")
    page.get_by_role("button", name="Paint the area").click()
    stroke(page, page.locator(".paint canvas"), (0.2, 0.2), (0.4, 0.4))
    first = painted(page)
    generate(page, "make the background green")
    page.get_by_role("radio", name="The whole image").check()
    page.get_by_role("button", name="Reuse settings").click()
    page.get_by_role("button", name="Change the mask").click()
    assert np.abs(painted(page).astype(int) - first).max() < 3


def test_the_frame_is_pulled_and_the_old_part_kept_to_the_bit(page, photo):
    page.get_by_role("radio", name="Only new canvas").check()
    page.get_by_role("button", name="Pull the frame").click()
    handle = page.locator(".handle.right:not(.top):not(.bottom)").bounding_box()
    x, y = handle["x"] + handle["width"] / 2, handle["y"] + handle["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 60, y, steps=4)
    page.mouse.up()
    pulled = int(page.get_by_label("Right").input_value())
    assert pulled > 0 and pulled % 8 == 0
    page.get_by_label("Right").fill("64")
    page.get_by_role("button", name="Use this frame").click()
    generate(page, "a red circle on a blue background")
    edited = result(page)
    assert edited.shape == (256, 320, 3)
    assert (edited[:, :256] == photo).all()
    page.get_by_role("button", name="Before and after").click()
    width = "async i => { await i.decode(); return i.naturalWidth; }"
    assert page.locator(".slider .before").evaluate(width) == 320  # laid out as the result is


def test_a_shape_alone_grows_the_canvas(page, photo):
    page.get_by_role("radio", name="Only new canvas").check()
    page.get_by_role("button", name="Generate", exact=True).click()
    expect(page.locator("#expand-error")).to_contain_text("Pull the frame")
    page.get_by_role("radio", name="3:2").check()
    generate(page, "a red circle on a blue background")
    assert result(page).shape == (256, 384, 3)


def test_what_the_edit_does_not_change_is_kept(page, photo):
    page.get_by_role("radio", name="Only what the edit changes").check()
    expect(page.get_by_role("radio", name="16:9")).to_be_disabled()
    generate(page, "make the circle green")
    assert (result(page) == photo).all(axis=2).mean() > 0.3


def test_strength_says_how_much_of_the_reference_may_change(page, photo):
    strength = page.get_by_label("Strength")
    expect(strength).to_have_value("1")
    strength.fill("0")
    expect(page.get_by_role("radio", name="16:9")).to_be_disabled()
    generate(page, "make the circle green")
    assert (result(page) == photo).all()
    strength.fill("0.8")
    generate(page)
    assert (result(page) != photo).any()
    page.get_by_role("radio", name="Only new canvas").check()
    expect(strength).to_have_count(0)  # there, nothing is there to begin at
    page.get_by_role("radio", name="Only a painted area").check()
    expect(strength).to_have_value("0.8")
    page.get_by_role("button", name="Paint the area").click()
    stroke(page, page.locator(".paint canvas"), (0.2, 0.5), (0.8, 0.5))
    page.get_by_role("button", name="Use this mask").click()
    generate(page)
    assert (result(page)[:64] == photo[:64]).all()
    strength.fill("0.2")
    page.get_by_role("button", name="Reuse settings").click()
    expect(strength).to_have_value("0.8")
