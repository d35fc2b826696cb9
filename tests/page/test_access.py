"""Who uses the page without a mouse, without sight, or in another browser."""

import json
import subprocess
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.page.conftest import DROP, TOOLS, generate, tiles, violations, watch
from tests.support.images import scene, to_base64

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 1024, 390])
def test_axe_finds_no_violation_in_any_state(browser, url, width, scheme):
    context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme)
    page = context.new_page()
    page.goto(url)
    expect(page.locator("#service")).to_contain_text("micro")
    assert violations(page) == []
    if width < 500:
        page.get_by_role("button", name="Settings", exact=True).click()
    page.get_by_label("Images", exact=True).fill("2")
    generate(page, "a cat")
    assert violations(page) == []
    page.evaluate(DROP, [to_base64(scene("circle", "red", "blue")), "circle.png"])
    page.get_by_role("radio", name="Custom").check()
    page.get_by_label("Width").fill("100")
    page.get_by_role("button", name="Generate", exact=True).click()
    expect(page.locator("#height-error")).not_to_be_empty()
    page.get_by_text("Copy as").click()
    assert violations(page) == []
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Full screen").click()
    assert violations(page) == []
    page.keyboard.press("Escape")
    page.get_by_role("radio", name="Only a painted area").check()
    page.get_by_role("button", name="Paint the area").click()
    assert violations(page) == []
    page.keyboard.press("Escape")
    page.get_by_role("radio", name="Only new canvas").check()
    page.get_by_role("button", name="Pull the frame").click()
    assert violations(page) == []
    page.keyboard.press("Escape")
    page.get_by_role("radio", name="The whole image").check()
    page.get_by_role("radio", name="Auto").check()
    generate(page, "make the background green")
    page.get_by_role("button", name="Before and after").click()
    assert violations(page) == []
    page.get_by_role("button", name="Compare two").click()
    assert violations(page) == []
    page.get_by_role("button", name="Clear").click()
    assert violations(page) == []
    context.close()


def focused(page):
    return page.evaluate("document.activeElement.id || document.activeElement.textContent")


def test_a_first_image_by_keyboard_alone(page):
    for _ in range(20):
        page.keyboard.press("Tab")
        if focused(page) == "prompt":
            break
    page.keyboard.press("Control+a")
    page.keyboard.type("a green square on a white background")
    page.keyboard.press("Control+Enter")
    expect(tiles(page)).to_have_count(1)
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(focused(page))
    controls = {
        "choose",
        "num_images",
        "num_inference_steps",
        "seed",
        "die",
        "lock",
        "output_format",
        "go",
        "fold",
        "clear",
    }
    assert controls | {"Download", "Use as reference", "Copy as"} <= reached
    page.get_by_text("Copy as").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert focused(page) == "curl"
    page.keyboard.press("Escape")
    assert focused(page) == "Copy as"


def test_a_first_image_by_touch_alone(browser, url):
    context = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    page = context.new_page()
    page.goto(url)
    expect(page.locator("#service")).to_contain_text("micro")
    page.locator("#chips button").first.tap()
    page.get_by_role("button", name="Generate", exact=True).tap()
    expect(tiles(page)).to_have_count(1)
    page.get_by_role("button", name="Use as reference").tap()
    page.get_by_role("button", name="Settings", exact=True).tap()
    page.get_by_text("Only a painted area").tap()
    page.get_by_role("button", name="Paint the area").tap()
    box = page.locator(".paint canvas").bounding_box()
    page.touchscreen.tap(box["x"] + box["width"] / 4, box["y"] + box["height"] / 4)
    expect(page.get_by_role("button", name="Undo")).to_be_enabled()
    page.get_by_role("button", name="Use this mask").tap()
    expect(page.locator(".mask-thumb")).to_be_visible()
    context.close()


def test_what_the_first_load_asks_for(browser, url):
    """The figures of docs/benchmarks.md: requests, to others and in all, and bytes on the wire."""
    context = browser.new_context()
    page = context.new_page()
    page.problems = []
    watch(page, url)
    session = context.new_cdp_session(page)
    session.send("Network.enable")
    sizes = []
    session.on("Network.loadingFinished", lambda event: sizes.append(event["encodedDataLength"]))
    page.goto(url, wait_until="networkidle")
    print(f"{len(sizes)} requests, {sum(sizes) / 1e3:.1f} kB")
    assert page.problems == []
    assert sum(sizes) < 150e3
    context.close()


def test_it_works_in_firefox(url):
    command = [TOOLS / "bin" / "node", Path(__file__).parent / "firefox.mjs", TOOLS, url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["errors"] == []
    assert report["browser"].startswith("firefox/")
    assert report["status"].startswith("Done in")
    assert (report["tiles"], report["kept"], report["compared"]) == (2, 2, 2)
