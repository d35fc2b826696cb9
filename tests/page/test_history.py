"""The history: built from the server's jobs where the browser has none, shared by tabs, and deleted."""

import hashlib

import httpx
import pytest
from playwright.sync_api import expect

from tests.page.conftest import DROP, generate, tiles
from tests.server.conftest import serving
from tests.support import ROOT, held_gpu
from tests.support.images import scene, to_base64

pytestmark = pytest.mark.slow

STUDIO = ROOT / "imagegen" / "server" / "studio"

KEYS = {name: f"the-key-of-{name}" * 2 for name in ("alice", "bob")}
PROMPTS = ["a green square on a white background", "a red circle on a blue background"]


@pytest.fixture(scope="module")
def keyed(tmp_path_factory):
    """A server with a key for each caller."""
    file = tmp_path_factory.mktemp("keys") / "keys.toml"
    hashes = {name: hashlib.sha256(key.encode()).hexdigest() for name, key in KEYS.items()}
    file.write_text("".join(f'[{name}]\nsha256 = "{one}"\n' for name, one in hashes.items()))
    with serving(api_keys_file=file) as (base, service):
        service.start().result()
        yield base


@pytest.fixture
def visit(browser, keyed):
    """Opens the page in a browser of its own, with a caller's key."""
    contexts = []

    def open_page(name):
        context = browser.new_context()
        contexts.append(context)
        page = context.new_page()
        page.goto(keyed)
        expect(page.locator("#key-error")).to_have_text("This server needs its API key.")
        page.get_by_label("API key").fill(KEYS[name])
        page.get_by_label("API key").press("Enter")
        expect(page.locator("#service")).to_contain_text("ready")
        return page

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture
def alice(keyed):
    """A client with alice's key; her jobs are gone afterwards."""
    with httpx.Client(base_url=keyed, headers={"X-API-Key": KEYS["alice"]}, timeout=60) as client:
        yield client
        for job in client.get("/jobs").json()["jobs"]:
            client.delete(f"/jobs/{job['id']}")


def strip(page):
    return page.locator("#strip li")


def test_a_browser_without_a_history_gets_the_jobs_of_its_key(visit, alice):
    page = visit("alice")
    page.get_by_label("Images", exact=True).fill("2")
    generate(page, PROMPTS[0])
    generate(page, PROMPTS[1])
    other = visit("alice")
    expect(strip(other)).to_have_count(2)
    expect(tiles(other)).to_have_count(2)
    names = [one.get_attribute("title") for one in other.locator("#strip button").all()]
    assert names == [f"{prompt} (2 images)" for prompt in reversed(PROMPTS)]
    other.locator("#strip button").last.click()
    other.get_by_role("button", name="Reuse settings").click()
    expect(other.get_by_label("Prompt", exact=True)).to_have_value(PROMPTS[0])
    expect(other.get_by_label("Images", exact=True)).to_have_value("2")
    other.reload()
    expect(strip(other)).to_have_count(2)
    expect(strip(visit("bob"))).to_have_count(0)


def test_a_store_that_was_deleted_is_filled_again(visit, alice):
    page = visit("alice")
    generate(page, PROMPTS[0])
    page.evaluate("indexedDB.deleteDatabase('imagegen')")  # done once the page is left
    page.reload()
    expect(strip(page)).to_have_count(1)
    page.reload()
    expect(strip(page)).to_have_count(1)


def test_an_edit_from_the_server_says_that_its_references_are_gone(visit, alice):
    page = visit("alice")
    page.evaluate(DROP, [to_base64(scene("circle", "red", "blue")), "circle.png"])
    generate(page, "make the circle green")
    other = visit("alice")
    expect(tiles(other)).to_have_count(1)
    expect(other.get_by_role("button", name="Four variations")).to_have_count(0)
    expect(other.get_by_text("Copy as")).to_have_count(0)
    other.get_by_role("button", name="Reuse settings").click()
    expect(other.locator("#images-error")).to_contain_text("no longer has the reference images")


def test_clear_asks_and_deletes_here_and_at_the_server(visit, alice):
    page = visit("alice")
    page.get_by_label("Images", exact=True).fill("2")
    generate(page, PROMPTS[0])
    page.get_by_role("button", name="Clear").click()
    question = page.get_by_role("dialog", name="Delete 2 images, here and at the server?")
    question.get_by_role("button", name="Cancel").click()
    expect(strip(page)).to_have_count(1)
    page.get_by_role("button", name="Clear").click()
    with page.expect_response(lambda answer: answer.request.method == "DELETE"):
        question.get_by_role("button", name="Delete").click()
    expect(strip(page)).to_have_count(0)
    assert alice.get("/jobs").json()["jobs"] == []


def test_a_second_tab_leaves_a_job_to_the_tab_that_follows_it(page, url, service_of_page):
    page.get_by_label("Steps").fill("50")
    page.get_by_label("Images", exact=True).fill("8")
    page.get_by_role("radio", name="Custom").check()
    for side in ("Width", "Height"):
        page.get_by_label(side).fill("256")
    with held_gpu(service_of_page, after=3):
        page.get_by_label("Prompt", exact=True).fill(PROMPTS[0])
        page.get_by_role("button", name="Generate", exact=True).click()
        expect(page.locator("#status")).to_contain_text("Step ")
        patient = (STUDIO / "tabs.js").read_text().replace("PATIENCE = 300;", "PATIENCE = 120_000;")
        assert "120_000" in patient  # the first tab may answer late on a machine that does much else
        page.context.route("**/tabs.js", lambda route: route.fulfill(body=patient, content_type="text/javascript"))
        second = page.context.new_page()
        second.add_init_script(
            "new BroadcastChannel('imagegen').onmessage = ({ data }) => data.follows && (window.answered = true)"
        )
        second.goto(url)
        expect(second.locator("#service")).to_contain_text("micro")
        second.wait_for_function("window.answered")
        second.wait_for_timeout(1000)  # in which it would have begun to follow
        expect(second.get_by_role("button", name="Cancel")).to_be_hidden()
        expect(second.get_by_role("button", name="Generate", exact=True)).to_be_enabled()
        page.context.unroute("**/tabs.js")
        page.close()
        second.reload()
        expect(second.locator("#status")).to_contain_text("Step ")  # its tab is closed
        second.get_by_role("button", name="Cancel").click()
        expect(second.locator("#status")).to_have_text("Cancelled.")


NO_DATABASE = "Object.defineProperty(window, 'indexedDB', {get() { throw new DOMException('no', 'SecurityError'); }});"
NO_SESSION = NO_DATABASE.replace("indexedDB", "sessionStorage")
NO_ROOM = """IDBObjectStore.prototype.put = new Proxy(IDBObjectStore.prototype.put, {
  apply(put, store, args) { const sent = put.apply(store, args); store.transaction.abort(); return sent; } });"""


@pytest.mark.parametrize("refusal", [NO_DATABASE + NO_SESSION, NO_ROOM], ids=["private window", "no room"])
def test_a_browser_that_keeps_nothing_is_worked_in_and_says_so(browser, url, refusal):
    context = browser.new_context()
    context.add_init_script(refusal)
    page = context.new_page()
    errors = []
    page.on("pageerror", lambda error: errors.append(error))
    page.goto(url)
    expect(page.locator("#service")).to_contain_text("micro")
    generate(page, PROMPTS[0])
    expect(page.locator("#history-note")).to_contain_text("does not keep images")
    generate(page, PROMPTS[1])
    expect(page.locator(f"#strip button[title='{PROMPTS[0]}']").first).to_be_visible()
    assert errors == []
    context.close()
