"""Writes the screenshots of docs/studio.md from a running server: python -m scripts.page_screenshots URL [FOLDER].

The server serves the miniature and has no job yet: `IMAGEGEN_LORAS=imagegen/micro/loras make serve`. Needs Debian's
chromium.
"""

from __future__ import annotations

import argparse
import io
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

_WIDE, _MIDDLE, _PHONE = (1440, 900), (1024, 768), (390, 844)
_QUALITY = 80


def main() -> None:
    """Takes the eight screenshots."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="of the running server")
    parser.add_argument("folder", nargs="?", type=Path, default=Path("docs/studio"), help="default: docs/studio")
    args = parser.parse_args()
    url, folder = args.url, args.folder
    folder.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        _wide(browser, url, folder)
        page = _open(browser, url, _WIDE, "dark")
        _generate(page, "a big yellow star at the top on a purple background")
        _save(page, folder / "dark.webp")
        page = _open(browser, url, _MIDDLE, "light")
        _generate(page, "a cat")
        _save(page, folder / "warning.webp")
        page = _open(browser, url, _PHONE, "light")
        _generate(page, "a green square on the left and an orange triangle on the right on a white background")
        _save(page, folder / "phone.webp")
        browser.close()


def _wide(browser: Browser, url: str, folder: Path) -> None:
    page = _open(browser, url, _WIDE, "light")
    _save(page, folder / "start.webp")
    _generate(page, "a red circle on a blue background")
    page.get_by_role("button", name="Four variations").click()
    expect(page.locator("#view .tile")).to_have_count(4, timeout=60_000)
    _save(page, folder / "variations.webp")
    page.get_by_role("button", name="Use as reference").click()
    page.get_by_role("radio", name="Only a painted area").check()
    page.get_by_role("button", name="Paint the area").click()
    box = page.locator(".paint canvas").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 0.1 * box["width"], box["y"] + 0.15 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 0.2 * box["height"], steps=6)
    page.mouse.up()
    _save(page, folder / "mask.webp")
    page.get_by_role("button", name="Use this mask").click()
    page.get_by_role("radio", name="Only new canvas").check()
    page.get_by_role("button", name="Pull the frame").click()
    page.get_by_label("Right", exact=True).fill("96")
    page.get_by_label("Left", exact=True).fill("32")
    _save(page, folder / "outpaint.webp")
    page.get_by_role("button", name="Cancel", exact=True).last.click()
    page.get_by_role("radio", name="The whole image").check()
    _generate(page, "make the background green")
    page.get_by_role("button", name="Before and after").click()
    _save(page, folder / "before-after.webp")


def _open(browser: Browser, url: str, size: tuple[int, int], scheme: str) -> Page:
    width, height = size
    viewport = {"width": width, "height": height}
    page = browser.new_context(viewport=viewport, color_scheme=scheme).new_page()  # type: ignore[arg-type]
    page.goto(url)
    expect(page.locator("#service")).to_contain_text("ready")
    return page


def _generate(page: Page, prompt: str) -> None:
    page.get_by_label("Prompt", exact=True).fill(prompt)
    if page.locator("#settings").is_visible():
        page.get_by_label("Seed", exact=True).fill("42")
    page.get_by_role("button", name="Generate", exact=True).click()
    expect(page.locator("#status")).to_contain_text("Done in", timeout=60_000)


def _save(page: Page, path: Path) -> None:
    page.wait_for_timeout(300)
    Image.open(io.BytesIO(page.screenshot())).save(path, "WEBP", quality=_QUALITY, method=6)


if __name__ == "__main__":
    main()
