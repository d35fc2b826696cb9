"""The page: from a prompt or references to images."""

import base64
import json
import re
import subprocess

import httpx
import pytest
from playwright.sync_api import expect

from tests.page.conftest import DROP, colours, generate, saved, tiles
from tests.server.conftest import serving
from tests.support import held_gpu
from tests.support.images import scene, to_base64, to_bytes

pytestmark = pytest.mark.slow


def test_generate_from_a_prompt(page):
    page.get_by_label("Seed", exact=True).fill("5")
    generate(page, "a green square on a white background")
    expect(tiles(page)).to_have_count(1)
    assert colours(page) == ("white", "green")
    expect(page.get_by_role("button", name="Seed 5", exact=True)).to_be_visible()
    expect(page.locator("#facts")).to_contain_text("denoise")
    assert saved(page, "Download")[0] == "micro-5.png"


def test_edit_a_dropped_file_and_use_the_result_again(page):
    page.evaluate(DROP, [to_base64(scene("circle", "red", "blue")), "circle.png"])
    expect(page.locator("#references li")).to_have_count(1)
    page.get_by_label("Seed", exact=True).fill("1")
    generate(page, "make the background green")
    assert colours(page) == ("green", "red")
    page.get_by_role("button", name="Use as reference").click()
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


def test_a_file_that_is_no_image_is_named(page):
    page.locator("#files").set_input_files([{"name": "a.png", "mimeType": "image/png", "buffer": b"no image"}])
    expect(page.locator("#images-error")).to_contain_text("a.png is not an image")


def test_a_job_is_cancelled_and_its_gpu_is_free(page, service_of_page):
    page.get_by_label("Steps").fill("50")
    page.get_by_label("Images", exact=True).fill("8")
    page.get_by_role("radio", name="Custom").check()
    page.get_by_label("Width").fill("256")
    page.get_by_label("Height").fill("256")
    with held_gpu(service_of_page, after=20):
        page.get_by_role("button", name="Generate", exact=True).click()
        expect(page.locator("#status")).to_have_text(re.compile(r"Step \d+ of 400"))
        expect(page.locator("#view .preview")).to_be_visible()
        page.get_by_role("button", name="Cancel").click()
        expect(page.locator("#status")).to_have_text("Cancelled.")
    expect(page.get_by_role("button", name="Generate", exact=True)).to_be_enabled()
    page.wait_for_function("fetch('health').then(r => r.json()).then(h => h.queue.running === 0)")


def test_an_error_stands_beside_its_field(page):
    page.get_by_role("radio", name="Custom").check()
    page.get_by_label("Width").fill("200")
    page.get_by_label("Height").fill("128")
    page.get_by_role("button", name="Generate", exact=True).click()
    expect(page.locator("#width-error")).to_contain_text("width: 200 is not a multiple of 16")
    expect(page.get_by_label("Width")).to_have_attribute("aria-invalid", "true")
    expect(page.get_by_label("Width")).to_be_focused()
    page.get_by_role("radio", name="Auto").check()
    page.get_by_label("Prompt", exact=True).fill("")
    page.get_by_role("button", name="Generate", exact=True).click()
    expect(page.locator("#prompt-error")).to_contain_text("prompt: is missing or empty")
    expect(page.locator("#width-error")).to_be_empty()


def test_a_seed_that_is_no_number_is_named(page):
    page.get_by_label("Seed", exact=True).fill("abc")
    page.get_by_role("button", name="Generate", exact=True).click()
    expect(page.locator("#seed-error")).to_have_text("seed: must be an integer, and not 'abc'")


def test_the_key_is_asked_for_and_a_wrong_one_is_told_from_none(browser):
    with serving(api_key="key-of-sixteen-or-more") as (base, service):
        service.start().result()
        opened = browser.new_page()
        opened.goto(base)
        expect(opened.locator("#key-error")).to_contain_text("needs its API key")
        opened.get_by_label("API key").fill("wrong-key-of-sixteen")
        opened.get_by_label("API key").press("Tab")
        expect(opened.locator("#key-error")).to_contain_text("refused")
        opened.get_by_label("API key").fill("key-of-sixteen-or-more")
        opened.get_by_label("API key").press("Tab")
        expect(opened.locator("#key-row")).to_be_hidden()
        generate(opened, "a red circle")
        expect(tiles(opened)).to_have_count(1)
        opened.close()


def test_copied_jobs_are_the_same_image(page, url):
    page.get_by_role("button", name="New seed").click()
    generate(page)
    image = base64.b64encode(saved(page, "Download")[1]).decode()

    def copied(name):
        page.evaluate("navigator.clipboard.writeText('')")
        page.get_by_text("Copy as").click()
        page.get_by_role("button", name=name, exact=True).click()
        page.wait_for_function("navigator.clipboard.readText().then(text => text !== '')")
        return page.evaluate("navigator.clipboard.readText()")

    job = json.loads(copied("RunPod job"))["input"]
    assert job.pop("mode") == "generate"
    assert httpx.post(f"{url}/generate", json=job).json()["images"] == [image]
    done = subprocess.run(["sh", "-c", copied("curl")], capture_output=True, check=True, timeout=60)
    assert json.loads(done.stdout)["images"] == [image]
