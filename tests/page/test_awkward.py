"""What is sent, dropped or set up in a way that a page easily stumbles over."""

import hashlib
import time

import httpx
import pytest
from PIL import Image
from playwright.sync_api import expect

from tests.page.conftest import DROP, generate, tiles, violations
from tests.server.conftest import serving
from tests.support import held_gpu, until
from tests.support.images import scene, to_base64
from tests.support.loras import SHIPPED

pytestmark = pytest.mark.slow

PROMPT = "a red circle on a blue background"
KEYS = {"old": "the-old-key-of-alice", "new": "the-new-key-of-alice"}


@pytest.fixture
def tab(browser):
    context = browser.new_context()
    yield context.new_page()
    context.close()


def submit(page, prompt=PROMPT):
    page.get_by_label("Prompt", exact=True).fill(prompt)
    page.get_by_role("button", name="Generate", exact=True).click()


def write_key(path, name, limits=""):
    path.write_text(f'[alice]\nsha256 = "{hashlib.sha256(KEYS[name].encode()).hexdigest()}"\n{limits}\n')


def enter_key(page, name):
    page.get_by_label("API key").fill(KEYS[name])
    page.get_by_role("button", name="Use this key").click()


@pytest.mark.parametrize("prompt", ["🟥" * 4000, "دائرة حمراء " * 300 + PROMPT], ids=["emoji", "right to left"])
def test_a_prompt_of_any_script_is_sent_whole(page, url, prompt):
    generate(page, prompt)
    sent = httpx.get(f"{url}/jobs").json()["jobs"][0]["input"]["prompt"]
    assert sent == prompt
    page.reload()
    page.get_by_role("button", name="Reuse settings").click()
    expect(page.get_by_label("Prompt", exact=True)).to_have_value(prompt)
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]


def test_a_prompt_that_is_too_long_is_not_cut_but_said(page):
    submit(page, "🟥" * 4001)
    expect(page.locator("#prompt-error")).to_contain_text("4001")
    assert page.get_by_label("Prompt", exact=True).evaluate("field => [...field.value].length") == 4001


def test_what_the_server_would_refuse_is_said_before_it_is_sent_and_good_files_are_taken(page):
    huge = Image.new("1", (6100, 6000))
    program = f"""async files => {{
      const transfer = new DataTransfer();
      for (const [data, name, type] of files) {{
        const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0));
        transfer.items.add(new File([bytes], name, {{ type }}));
      }}
      {DROP[DROP.index('document.getElementById("drop")') : DROP.rindex("}")]}
    }}"""
    good = to_base64(scene("circle", "red", "blue"))
    files = [
        ["AAAAGGZ0eXBoZWlj", "IMG_1.HEIC", "image/heic"],
        [to_base64(huge), "wall.png", "image/png"],
        [good, "circle.png", "image/png"],
    ]
    page.evaluate(program, files)
    said = page.locator("#images-error")
    expect(said).to_contain_text("IMG_1.HEIC is not an image that this browser can read. PNG, JPEG")
    expect(said).to_contain_text("wall.png has 36.6 megapixels; at most 36 are allowed.")
    expect(page.locator("#references img")).to_have_attribute("alt", "Reference 1: circle.png")
    page.evaluate(program, [[to_base64(bytes(21_000_000)), "scan.png", "image/png"]])
    expect(said).to_have_text("scan.png has 21 MB; at most 20 are allowed.")
    page.evaluate(DROP, [good, "second.png"])
    expect(said).to_be_empty()


def test_twenty_results_are_kept_in_reach(page, url):
    jobs = [httpx.post(f"{url}/jobs", json={"prompt": PROMPT, "width": 64, "height": 64}).json() for _ in range(20)]
    for job in jobs:
        until(lambda poll=url + job["poll_url"]: httpx.get(poll).json()["status"] == "succeeded")
    page.reload()
    expect(page.locator("#strip li")).to_have_count(20)
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]
    last = page.locator("#strip button").last
    last.focus()
    page.keyboard.press("Enter")
    expect(last).to_be_in_viewport()
    expect(last).to_have_attribute("aria-current", "true")


def test_a_key_that_is_changed_while_the_page_is_open_is_asked_for_again(tab, tmp_path):
    file = tmp_path / "keys.toml"
    write_key(file, "old")
    with serving(api_keys_file=file) as (url, service):
        service.start().result()
        tab.goto(url)
        expect(tab.locator("#key-error")).to_have_text("This server needs its API key.")
        submit(tab)
        expect(tab.get_by_label("API key")).to_be_focused()
        enter_key(tab, "new")
        expect(tab.locator("#key-error")).to_contain_text("was refused")
        assert violations(tab) == []
        enter_key(tab, "old")
        generate(tab, PROMPT)
        write_key(file, "new")
        submit(tab)
        expect(tab.locator("#key-error")).to_contain_text("was refused")
        enter_key(tab, "new")
        expect(tab.locator("#key-row")).to_be_hidden()
        generate(tab)


def test_a_limit_of_the_key_counts_down_and_is_not_called_a_full_queue(tab, tmp_path, monkeypatch):
    write_key(tmp_path / "keys.toml", "old", "requests_per_minute = 1")
    with serving(api_keys_file=tmp_path / "keys.toml") as (url, service):
        service.start().result()
        tab.goto(url)
        enter_key(tab, "old")
        expect(tab.locator("#service")).to_contain_text("ready")
        now = time.time() // 60 * 60 + 1
        monkeypatch.setattr(time, "time", lambda: now)  # both are of one minute of the clock
        submit(tab)
        expect(tab.locator("#status")).to_contain_text("Done in")
        submit(tab)
        expect(tab.locator("#status")).to_contain_text("Your share of the server is used up. Next try in")
        tab.get_by_role("button", name="Cancel").click()
        expect(tab.locator("#status")).to_have_text("Cancelled.")


def test_a_store_that_is_full_is_said_in_the_servers_words(tab):
    long = {"prompt": "x", "num_inference_steps": 50, "num_images": 8, "width": 512, "height": 512}
    with serving(jobs_max_mb=0.003) as (url, service):
        service.start().result()
        tab.goto(url)
        with held_gpu(service):
            # A job takes 2 KB until it has ended.
            job = f"{url}/jobs/{httpx.post(f'{url}/jobs', json=long).json()['id']}"
            until(lambda: httpx.get(job).json()["status"] == "running")
            submit(tab)
            expect(tab.locator("#error")).to_contain_text("the store of jobs is full; try again later")
            expect(tab.get_by_role("button", name="Generate", exact=True)).to_be_enabled()
            assert httpx.delete(job).json()["status"] == "cancelled"


def test_a_server_that_comes_back_as_another_one_shows_what_that_one_can_do(tab, unused_port):
    with serving(listen=unused_port, max_images=2) as (url, service):
        service.start().result()
        tab.goto(url)
        expect(tab.get_by_label("Images", exact=True)).to_have_attribute("max", "2")
        expect(tab.get_by_role("checkbox")).to_have_count(0)
        tab.get_by_role("radio", name="16:9").check()
    expect(tab.locator("#notice")).to_contain_text("connection to the server is lost")
    with serving(listen=unused_port, loras=str(SHIPPED)) as (url, service):
        service.start().result()
        expect(tab.get_by_role("checkbox")).to_have_count(2)
        expect(tab.get_by_label("Images", exact=True)).to_have_attribute("max", "8")
        expect(tab.get_by_role("radio", name="16:9")).to_be_checked()
        generate(tab, PROMPT)


@pytest.mark.parametrize(("width", "height"), [(720, 450), (320, 256)], ids=["200 %", "400 %"])
def test_enlarged_it_is_read_and_worked_without_scrolling_sideways(browser, url, width, height):
    context = browser.new_context(
        viewport={"width": width, "height": height}, forced_colors="active", reduced_motion="reduce"
    )
    page = context.new_page()
    page.goto(url)
    expect(page.locator("#service")).to_contain_text("micro")
    generate(page, PROMPT)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.get_by_role("button", name="Settings", exact=True).click()
    page.get_by_role("radio", name="16:9").check()
    generate(page)
    image = tiles(page).first
    expect(image).to_be_in_viewport()
    context.close()
