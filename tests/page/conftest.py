"""The page in a real browser: Debian's chromium (`make slow` installs it)."""

from __future__ import annotations

import base64
import shutil
import sys
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import expect, sync_playwright

from imagegen.builder.micro.measure import background_colour, shape_colour
from tests.server.conftest import serving, unused_port  # noqa: F401 - tests here use that fixture too
from tests.support.images import from_base64

#: npm's packages and node (`make slow` installs them).
TOOLS = Path(sys.prefix) / "lint"

# Milliseconds for all that a page is expected to show or do: other processes may hold both cores for half a minute.
TIMEOUT = 120_000
expect.set_options(timeout=TIMEOUT)

DROP = """([data, name]) => {
  const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], name, { type: "image/png" }));
  document.getElementById("drop").dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true }));
}"""


@pytest.fixture(scope="package")
def browser():
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"], timeout=120_000
        )
        # Each page and context that a test opens has the bound: Playwright's own is 30 seconds.
        new_context, new_page = running.new_context, running.new_page

        def bounded(opened):
            opened.set_default_timeout(TIMEOUT)
            return opened

        running.new_context = lambda **options: bounded(new_context(**options))
        running.new_page = lambda **options: bounded(new_page(**options))
        yield running
        running.close()


@pytest.fixture(scope="package")
def served():
    with serving() as (base, service):
        service.start().result()
        yield base, service


@pytest.fixture(scope="package")
def server(served):
    return served[0]


@pytest.fixture
def service_of_page(served):
    """The service behind `page`."""
    return served[1]


@pytest.fixture
def url(server):
    """Of a server that keeps no job: a browser without a history would be given those of the tests before."""
    while jobs := httpx.get(f"{server}/jobs?limit=100").json()["jobs"]:
        for job in jobs:
            httpx.delete(f"{server}/jobs/{job['id']}")
    return server


@pytest.fixture
def options():
    """Of the browser's context; a test overrides it."""
    return {}


@pytest.fixture
def page(browser, url, options):
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"], **options)
    opened = context.new_page()
    opened.problems = []
    watch(opened, url)
    opened.goto(url)
    expect(opened.locator("#service")).to_contain_text("micro")
    yield opened
    assert opened.problems == []  # no script error, nothing that the policy refused, nothing asked of anyone else
    context.close()


def watch(opened, url):
    """Collects in `opened.problems` script errors, refusals of the policy and requests to others."""
    opened.on("pageerror", lambda error: opened.problems.append(str(error)))
    opened.on(
        "console",
        lambda said: "Content Security Policy" in said.text and opened.problems.append(said.text),
    )
    opened.on(
        "request",
        lambda request: request.url.startswith((url, "data:", "blob:")) or opened.problems.append(request.url),
    )


def generate(page, prompt=None):
    """Generates, and waits for the images."""
    if prompt is not None:
        page.get_by_label("Prompt", exact=True).fill(prompt)
    page.get_by_role("button", name="Generate", exact=True).click()
    expect(page.locator("#status")).to_contain_text("Done in")


def tiles(page):
    return page.locator("#view .tile")


def saved(page, name):
    """What a button saves, as (suggested name, bytes)."""
    with page.expect_download() as download:
        page.get_by_role("button", name=name, exact=True).first.click()
    return download.value.suggested_filename, download.value.path().read_bytes()


def colours(page):
    """The background's and the shape's colour of the chosen image on the canvas."""
    image = from_base64(base64.b64encode(saved(page, "Download")[1]).decode())
    return background_colour(image), shape_colour(image)


def violations(page):
    """What axe finds on the page as it is, by rule and element."""
    # As the browser's own, and not as a script of the page, whose policy would refuse it.
    page.context.new_cdp_session(page).send(
        "Runtime.evaluate", {"expression": (TOOLS / "node_modules/axe-core/axe.min.js").read_text()}
    )
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
    return [(rule["id"], node["target"], node["failureSummary"]) for rule in found for node in rule["nodes"]]
