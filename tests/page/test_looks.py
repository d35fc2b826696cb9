"""The page in windows of several sizes, light and dark."""

import re

import pytest
from playwright.sync_api import expect

from tests.page.conftest import DROP, generate, tiles
from tests.support.images import scene, to_base64

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(1440, 900), (1024, 768), (390, 844)])
def test_it_fits_the_window(browser, url, width, height, scheme):
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    opened = context.new_page()
    opened.goto(url)
    expect(opened.locator("#service")).to_contain_text("micro")
    opened.evaluate(DROP, [to_base64(scene("circle", "red", "blue")), "circle.png"])
    if width < 500:
        opened.get_by_role("button", name="Settings", exact=True).click()
    opened.get_by_label("Images", exact=True).fill("2")
    generate(opened, "make the background green")
    expect(tiles(opened)).to_have_count(2)
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    image = tiles(opened).first.bounding_box()
    assert image["y"] + image["height"] < height  # the result is seen without scrolling
    background, ink = opened.evaluate(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    )
    lightness = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (background, ink)]
    assert (lightness[0] > lightness[1]) == (scheme == "light")
    context.close()
