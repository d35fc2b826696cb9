"""The page in a real browser: Debian's chromium."""

import json
import re
import shutil
import subprocess

import httpx
import pytest
from playwright.sync_api import expect, sync_playwright

from imagegen.builder.micro.measure import background_colour, shape_colour
from tests.conftest import from_base64, scene, to_base64, to_bytes
from tests.server.conftest import serving

pytestmark = pytest.mark.slow  # `make slow` installs chromium

DROP = """([data, name]) => {
  const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], name, { type: "image/png" }));
  document.getElementById("drop").dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true }));
}"""


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(scope="module")
def url():
    with serving() as (base, service):
        service.start().result()
        yield base


@pytest.fixture
def page(browser, url):
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    opened = context.new_page()
    opened.problems = []
    opened.on("pageerror", lambda error: opened.problems.append(str(error)))
    opened.on(
        "request",
        lambda request: request.url.startswith((url, "data:", "blob:")) or opened.problems.append(request.url),
    )
    opened.goto(url)
    yield opened
    assert opened.problems == []  # no script error, and nothing asked of anyone else
    context.close()


def drawn(page, number=0):
    source = page.locator("#results figure img").nth(number).get_attribute("src")
    picture = from_base64(source.partition(",")[2])
    return background_colour(picture), shape_colour(picture)


def test_draw_a_prompt(page):
    expect(page.locator("#service")).to_contain_text("micro")
    page.get_by_label("Prompt").fill("a green square on a white background")
    page.get_by_label("Seed", exact=True).fill("5")
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(page.locator("#results figure")).to_have_count(1)
    assert drawn(page) == ("white", "green")
    expect(page.locator("#status")).to_contain_text("Done in")
    expect(page.get_by_role("button", name="seed 5")).to_be_visible()
    expect(page.locator(".result .dim").first).to_contain_text("denoise")
    with page.expect_download() as download:
        page.get_by_role("link", name="download").click()
    assert download.value.suggested_filename == "micro-5.png"


def test_edit_a_dropped_file_and_use_the_result_again(page):
    page.evaluate(DROP, [to_base64(scene("circle", "red", "blue")), "circle.png"])
    expect(page.locator("#references li")).to_have_count(1)
    page.get_by_label("Prompt").fill("make the background green")
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(page.locator("#results figure")).to_have_count(1)
    assert drawn(page) == ("green", "red")
    page.get_by_role("button", name="use as reference").click()
    expect(page.locator("#references li")).to_have_count(2)
    page.get_by_role("button", name="Move reference 2 forward").click()
    expect(page.locator("#references img").first).to_have_attribute("alt", re.compile("micro-"))
    page.get_by_role("button", name="Remove reference 1").click()
    expect(page.locator("#references li")).to_have_count(1)


def test_files_are_chosen_and_a_fifth_is_refused(page):
    files = [
        {"name": f"{i}.png", "mimeType": "image/png", "buffer": to_bytes(scene("star", "red", "white"))}
        for i in range(5)
    ]
    page.locator("#files").set_input_files(files)
    expect(page.locator("#references li")).to_have_count(4)
    expect(page.locator("#images-error")).to_contain_text("At most 4")


def test_a_job_is_cancelled_and_its_gpu_is_free(page, url):
    page.get_by_label("Steps").fill("50")
    page.get_by_label("Pictures", exact=True).fill("8")
    page.get_by_label("Width").fill("512")
    page.get_by_label("Height").fill("512")
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(page.locator("#status")).to_have_text(re.compile(r"Step \d+ of 400"))
    expect(page.locator("#preview")).to_be_visible()
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#status")).to_have_text("Cancelled.")
    expect(page.get_by_role("button", name="Draw", exact=True)).to_be_enabled()
    assert httpx.get(f"{url}/health").json()["queue"]["running"] == 0


def test_an_error_stands_beside_its_field(page):
    page.get_by_label("Width").fill("1000")
    page.get_by_label("Height").fill("512")
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(page.locator("#width-error")).to_have_text("width: 1000 is not a multiple of 16 (64 to 1024)")
    expect(page.get_by_label("Width")).to_have_attribute("aria-invalid", "true")
    expect(page.get_by_label("Width")).to_be_focused()
    page.get_by_label("Width").fill("")
    page.get_by_label("Height").fill("")
    page.get_by_label("Prompt").fill("")
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(page.locator("#prompt-error")).to_contain_text("prompt: is empty")


def test_copied_jobs_are_the_same_picture(page, url):
    page.get_by_role("button", name="Draw a seed").click()
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(page.locator("#results figure")).to_have_count(1)
    source = page.locator("#results figure img").get_attribute("src").partition(",")[2]
    page.get_by_role("button", name="copy as job JSON").click()
    expect(page.get_by_role("button", name="copied")).to_be_visible()
    job = json.loads(page.evaluate("navigator.clipboard.readText()"))["input"]
    assert job.pop("mode") == "generate"
    assert httpx.post(f"{url}/generate", json=job).json()["images"] == [source]
    page.get_by_role("button", name="copy as curl").click()
    page.wait_for_function("navigator.clipboard.readText().then(text => text.startsWith('curl'))")
    command = page.evaluate("navigator.clipboard.readText()")
    done = subprocess.run(["sh", "-c", command], capture_output=True, check=True, timeout=60)
    assert json.loads(done.stdout)["images"] == [source]


def test_a_seed_that_is_no_number_is_named_and_not_drawn(page):
    page.get_by_label("Seed", exact=True).fill("abc")
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(page.locator("#seed-error")).to_have_text("seed: must be an integer, and not 'abc'")


def test_the_keyboard_is_enough(page):
    page.get_by_label("Prompt").focus()
    page.keyboard.press("Control+Enter")
    expect(page.locator("#results figure")).to_have_count(1)
    reached = set()
    page.get_by_label("Prompt").focus()
    for _ in range(30):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.textContent"))
    assert {
        "choose",
        "aspect_ratio",
        "num_images",
        "width",
        "height",
        "seed",
        "die",
        "num_inference_steps",
        "go",
    } <= reached
    assert "download" in reached
    # Whatever can be used has a name for those who do not see it.
    unnamed = (
        "[...document.querySelectorAll('input,select,textarea,button')]"
        ".filter(e => !(e.labels?.length || e.ariaLabel || e.textContent.trim())).length"
    )
    assert page.evaluate(unnamed) == 0


def test_the_page_asks_for_the_key(browser):
    with serving(api_key="key-of-sixteen-or-more") as (base, service):
        service.start().result()
        opened = browser.new_page()
        opened.goto(base)
        expect(opened.locator("#key-error")).to_contain_text("API key")
        opened.get_by_label("API key").fill("key-of-sixteen-or-more")
        opened.get_by_label("API key").press("Tab")
        opened.get_by_role("button", name="Draw", exact=True).click()
        expect(opened.locator("#results figure")).to_have_count(1)
        opened.close()


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")])
def test_it_fits_the_window(browser, url, width, scheme, tmp_path):
    context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme)
    opened = context.new_page()
    opened.goto(url)
    opened.evaluate(DROP, [to_base64(scene("circle", "red", "blue")), "circle.png"])
    opened.get_by_label("Prompt").fill("make the background green")
    opened.get_by_label("Pictures", exact=True).fill("2")
    opened.get_by_role("button", name="Draw", exact=True).click()
    expect(opened.locator("#results figure")).to_have_count(2)
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    shapes = "[...document.querySelectorAll('figure img')].map(i => i.clientWidth / i.clientHeight)"
    assert opened.evaluate(shapes) == pytest.approx([1, 1], abs=0.02)
    expect(opened.locator("#preview")).to_be_hidden()
    opened.screenshot(path=tmp_path / f"{width}-{scheme}.png", full_page=True)
    background, ink = opened.evaluate(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    )
    lightness = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (background, ink)]
    assert (lightness[0] > lightness[1]) == (scheme == "light")
    context.close()
