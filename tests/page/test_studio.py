"""Working with the images of a visit."""

import io
import re
import zipfile

import httpx
import pytest
from playwright.sync_api import expect

from tests.page.conftest import DROP, generate, saved, tiles
from tests.support.images import scene, to_base64

pytestmark = pytest.mark.slow


def test_four_variations_side_by_side_and_all_of_them_as_a_zip(page):
    generate(page, "a red circle on a blue background")
    page.get_by_role("button", name="Four variations").click()
    expect(tiles(page)).to_have_count(4)
    boxes = [tiles(page).nth(i).bounding_box() for i in range(4)]
    assert len({(round(box["x"]), round(box["y"])) for box in boxes}) == 4
    name, data = saved(page, "Download 4 images")
    assert name.endswith(".zip")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        assert len(archive.namelist()) == 4
        seeds = [int(re.search(r"micro-(\d+)\.png", one)[1]) for one in archive.namelist()]
        assert seeds == list(range(seeds[0], seeds[0] + 4))
        assert len({archive.read(one) for one in archive.namelist()}) == 4
    _, data = saved(page, "Download all")
    assert len(zipfile.ZipFile(io.BytesIO(data)).namelist()) == 5


def test_an_image_is_chosen_and_opened_zoomed_and_moved(page):
    page.get_by_label("Images", exact=True).fill("2")
    generate(page, "a red circle on a blue background")
    seed = page.get_by_role("button", name=re.compile("^Seed ")).text_content()
    tiles(page).nth(1).click()
    assert page.get_by_role("button", name=re.compile("^Seed ")).text_content() != seed
    tiles(page).nth(1).click()
    viewer = page.get_by_role("dialog", name="Full screen")
    image = viewer.locator("img")
    fitted = viewer.locator("output").text_content()
    page.keyboard.press("+")
    assert viewer.locator("output").text_content() != fitted
    box = image.bounding_box()
    page.mouse.move(400, 300)
    page.mouse.down()
    page.mouse.move(450, 340)
    page.mouse.up()
    moved = image.bounding_box()
    assert (moved["x"] - box["x"], moved["y"] - box["y"]) == pytest.approx((50, 40), abs=1)
    before = image.bounding_box()["width"]
    page.mouse.wheel(0, -100)
    assert image.bounding_box()["width"] == pytest.approx(1.25 * before, rel=0.01)
    source = image.get_attribute("src")
    page.keyboard.press("0")
    page.keyboard.press("ArrowLeft")
    assert image.get_attribute("src") != source
    page.keyboard.press("Escape")
    expect(viewer).to_have_count(0)


def test_two_of_the_strip_are_compared(page):
    generate(page, "a red circle on a blue background")
    generate(page, "a green square on a white background")
    generate(page, "a yellow star on a purple background")
    page.get_by_role("button", name="Compare two").click()
    page.get_by_role("button", name="a red circle on a blue background").last.click()
    page.locator("#strip").get_by_role("button", name="a green square on a white background").click()
    expect(page.locator(".slider img")).to_have_count(2)
    assert page.locator(".slider .before").get_attribute("alt") == "a red circle on a blue background"
    box = page.locator(".slider").bounding_box()
    page.mouse.click(box["x"] + box["width"] * 0.25, box["y"] + box["height"] / 2)
    assert float(page.get_by_role("slider").input_value()) == pytest.approx(25, abs=1)


def test_references_are_ordered_by_dragging_and_a_result_is_dragged_to_them(page):
    for colour in ("red", "green", "yellow"):
        page.evaluate(DROP, [to_base64(scene("circle", colour, "white")), f"{colour}.png"])
    expect(page.locator("#references li")).to_have_count(3)
    first, last = (page.locator("#references img").nth(i).bounding_box() for i in (0, 2))
    page.mouse.move(first["x"] + 20, first["y"] + 20)
    page.mouse.down()
    page.mouse.move(last["x"] + 30, last["y"] + 30, steps=5)
    page.mouse.up()
    names = [page.locator("#references img").nth(i).get_attribute("alt") for i in range(3)]
    assert names == ["Reference 1: green.png", "Reference 2: yellow.png", "Reference 3: red.png"]
    generate(
        page, "the circle of image 1, the circle of image 2 and the circle of image 3 on the background of image 1"
    )
    tiles(page).first.drag_to(page.locator("#drop"))
    expect(page.locator("#references li")).to_have_count(4)


def test_an_image_is_pasted(page):
    page.evaluate(
        """data => {
          const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0));
          const transfer = new DataTransfer();
          transfer.items.add(new File([bytes], "", { type: "image/png" }));
          const options = { clipboardData: transfer, bubbles: true, cancelable: true };
          document.dispatchEvent(new ClipboardEvent("paste", options));
        }""",
        to_base64(scene("circle", "red", "white")),
    )
    expect(page.locator("#references img")).to_have_attribute("alt", "Reference 1: pasted image")


def test_the_history_outlives_a_reload_and_gives_its_settings_back(page):
    page.get_by_label("Seed", exact=True).fill("7")
    page.get_by_role("radio", name="16:9").check()
    generate(page, "a green square on a white background")
    page.get_by_label("Prompt", exact=True).fill("something else")
    page.reload()
    expect(tiles(page)).to_have_count(1)
    page.get_by_role("button", name="Reuse settings").click()
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("a green square on a white background")
    expect(page.get_by_label("Seed", exact=True)).to_have_value("7")
    expect(page.get_by_role("radio", name="16:9")).to_be_checked()
    page.get_by_role("button", name="Remove", exact=True).click()
    expect(page.locator("#strip li")).to_have_count(0)


def test_two_tabs_keep_each_their_images(page, url):
    other = page.context.new_page()
    other.goto(url)
    generate(page, "a green square on a white background")
    generate(other, "a red circle on a blue background")
    other.reload()
    expect(other.locator("#strip li")).to_have_count(2)
    other.close()


def test_what_python_is_given_is_a_text_whatever_it_says(page):
    program = """async (prompt) => {
        const { python } = await import("/studio/snippets.js");
        return python({ references: [] }, { mode: "generate", prompt });
    }"""
    for word in ("true", "constructor"):
        assert f'"prompt": "{word}"' in page.evaluate(program, word)


def test_a_link_carries_the_settings_where_no_server_sees_them(page, url):
    generate(page, "a small white circle on a green gradient")
    page.get_by_text("Copy as").click()
    page.get_by_role("button", name="Link", exact=True).click()
    expect(page.locator("#status")).to_have_text("Copied.")
    link = page.evaluate("navigator.clipboard.readText()")
    assert link.startswith(f"{url}/#prompt=")
    opened = page.context.new_page()
    asked = []
    opened.on("request", lambda request: asked.append(request.url))
    opened.goto(link)
    expect(opened.get_by_label("Prompt", exact=True)).to_have_value("a small white circle on a green gradient")
    assert not [one for one in asked if "prompt" in one.partition("#")[0]]
    opened.goto(url)
    opened.goto(f"{url}/#prompt=a&seed=x&nonsense=1&width=128")
    opened.reload()
    expect(opened.get_by_label("Width")).to_have_value("128")
    expect(opened.get_by_label("Seed", exact=True)).to_have_value("")


def test_a_seed_is_kept_or_new_each_time(page):
    generate(page, "a red circle on a blue background")
    first = page.get_by_role("button", name=re.compile("^Seed ")).text_content().split()[1]
    page.get_by_role("button", name="Keep this seed").click()
    expect(page.get_by_label("Seed", exact=True)).to_have_value(first)
    page.get_by_role("button", name="Keep this seed").click()
    expect(page.get_by_label("Seed", exact=True)).to_have_value("")
    generate(page)
    assert page.get_by_role("button", name=re.compile("^Seed ")).text_content() != f"Seed {first}"


def test_what_the_model_can_do_is_offered(page):
    expect(page.locator("#demo")).to_contain_text("Demo model: micro")
    page.get_by_role("button", name="a small white circle on a green gradient").click()
    generate(page)
    expect(page.locator("#warnings li")).to_have_count(0)
    generate(page, "a cat")
    expect(page.locator("#warnings li")).to_contain_text("micro does not know")
    warning, image = page.locator("#warnings").bounding_box(), tiles(page).first.bounding_box()
    assert warning["y"] + warning["height"] <= image["y"]
    page.get_by_role("button", name="Use as reference").click()
    expect(page.get_by_role("button", name="make the background green")).to_be_visible()


def test_a_base_model_is_given_guidance_and_what_not_to_show(page, url):
    """No base model runs here: the page is told that this one is, and what it then sends is looked at."""
    expect(page.get_by_label("Guidance")).to_be_hidden()

    def as_base_model(route):
        known = route.fetch().json()
        route.fulfill(json={**known, "defaults": {**known["defaults"], "guidance_scale": 4.0}})

    page.route("**/capabilities", as_base_model)
    page.reload()
    page.get_by_label("Guidance").fill("3.5")
    page.get_by_label("What it should not show").fill("7")
    generate(page, "a red circle on a blue background")
    sent = httpx.get(f"{url}/jobs").json()["jobs"][0]["input"]
    assert (sent["guidance_scale"], sent["negative_prompt"]) == (3.5, "7")
