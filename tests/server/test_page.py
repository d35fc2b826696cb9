"""The page's files over HTTP."""

import re
from pathlib import Path

import httpx
import pytest

from imagegen.server import page
from tests.server.conftest import serving

FOLDER = Path(page.__file__).parent / "studio"
FILES = sorted(str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def browser():
    """Of somebody without the key; the model is not loaded."""
    with (
        serving(api_key="key-of-sixteen-or-more", preload_models=False) as (url, _),
        httpx.Client(base_url=url, headers={"Accept": "text/html"}, timeout=300) as client,
    ):
        yield client


def test_the_page_may_run_and_style_its_own_files_alone(browser):
    answer = browser.get("/")
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert "unsafe" not in answer.headers["Content-Security-Policy"]
    assert not re.search(r"<script(?![^>]*src=)|<style|\son\w+=|style=|https?:", answer.text)


@pytest.mark.parametrize("name", FILES)
def test_its_files_need_no_key_and_are_never_stale(browser, name):
    first = browser.get(f"/studio/{name}")
    assert first.status_code == 200
    assert first.headers["Cache-Control"] == "no-cache"
    assert first.headers["X-Content-Type-Options"] == "nosniff"
    again = browser.get(f"/studio/{name}", headers={"If-None-Match": first.headers["ETag"]})
    assert again.status_code == 304


@pytest.mark.parametrize(
    "path", ["/studio/../page.py", "/studio/%2e%2e/page.py", "/studio/..%2fpage.py", "/studio/none.js"]
)
def test_nothing_else_is_served(browser, path):
    assert browser.get(path).status_code in (401, 404)


def test_no_file_of_the_page_names_another_server():
    for name in FILES:
        found = re.findall(r"https?://[^\s\"'`]+", (FOLDER / name).read_text())
        assert set(found) <= {"http://www.w3.org/2000/svg"}, name


@pytest.mark.parametrize(("encoding", "kilobytes"), [("gzip", 75), ("identity", 150)])
def test_all_files_of_the_page_are_small(browser, encoding, kilobytes):
    size = 0
    for name in FILES:
        with browser.stream("GET", f"/studio/{name}", headers={"Accept-Encoding": encoding}) as answer:
            assert answer.headers.get("Content-Encoding", "identity") in (encoding, "identity")
            size += sum(len(part) for part in answer.iter_raw())
    assert size < kilobytes * 1e3
