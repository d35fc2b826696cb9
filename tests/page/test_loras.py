"""The LoRA adapters that a server offers, and what a job does with those that are chosen."""

import io
import json

import httpx
import pytest
from PIL import ExifTags, Image
from playwright.sync_api import expect

from imagegen.engine.lora_sources import list_entries
from tests.page.conftest import generate, saved, violations
from tests.server.conftest import serving
from tests.support import settings
from tests.support.loras import MICRO, SHIPPED

pytestmark = pytest.mark.slow

PROMPT = "a red circle on a blue background"


@pytest.fixture(scope="module")
def server():
    """Of a server with the miniature's own adapters."""
    with serving(loras=str(SHIPPED)) as (base, service):
        service.start().result()
        yield base


def image_of(page):
    return Image.open(io.BytesIO(saved(page, "Download")[1]))


def record_of(page):
    """What the image says of its own making."""
    return json.loads(image_of(page).getexif()[ExifTags.Base.ImageDescription])


def test_the_adapters_of_the_server_are_listed(page):
    names = list(list_entries(settings(loras=str(SHIPPED)), MICRO))
    assert names == ["frame", "ring"]
    assert [box.get_attribute("value") for box in page.get_by_role("checkbox").all()] == names
    expect(page.get_by_label("Scale of frame")).to_be_disabled()
    assert violations(page) == []
    generate(page, PROMPT)
    assert "loras" not in record_of(page)


def test_a_chosen_one_is_used_at_its_scale_and_taken_up_again(page, url):
    page.get_by_label("Seed", exact=True).fill("7")
    generate(page, PROMPT)
    plain = image_of(page).tobytes()
    page.get_by_role("checkbox", name="ring").check()
    generate(page)
    whole = image_of(page).tobytes()
    assert record_of(page)["loras"] == [{"name": "ring", "scale": 1.0}]
    page.get_by_label("Scale of ring").fill("0.5")
    page.get_by_role("checkbox", name="frame").check()
    generate(page)
    chosen = [{"name": "frame", "scale": 1.0}, {"name": "ring", "scale": 0.5}]
    assert record_of(page)["loras"] == chosen
    assert httpx.get(f"{url}/jobs").json()["jobs"][0]["input"]["loras"] == chosen
    assert len({plain, whole, image_of(page).tobytes()}) == 3
    for name in ("ring", "frame"):
        page.get_by_role("checkbox", name=name).uncheck()
    page.get_by_role("button", name="Reuse settings").click()
    expect(page.get_by_role("checkbox", name="ring")).to_be_checked()
    expect(page.get_by_label("Scale of ring")).to_have_value("0.5")


def test_a_link_brings_them_where_the_server_has_them(page, url):
    page.goto("about:blank")
    page.goto(f"{url}/#prompt=a&lora=0.5:ring&lora=1:of-another-server&lora=nonsense")
    expect(page.get_by_role("checkbox", name="ring")).to_be_checked()
    expect(page.get_by_label("Scale of ring")).to_have_value("0.5")
    expect(page.get_by_role("checkbox", name="frame")).not_to_be_checked()
    generate(page, PROMPT)
    page.get_by_text("Copy as").click()
    page.get_by_role("button", name="Link", exact=True).click()
    expect(page.locator("#status")).to_have_text("Copied.")
    assert page.evaluate("navigator.clipboard.readText()").endswith("&lora=0.5%3Aring")


def test_a_scale_that_the_server_refuses_is_said_beside_them(page):
    page.get_by_role("checkbox", name="ring").check()
    page.get_by_label("Scale of ring").fill("9")
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    page.get_by_role("button", name="Generate", exact=True).click()
    expect(page.locator("#loras-error")).to_contain_text("loras[0].scale")
