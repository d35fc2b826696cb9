"""The page's words: every language has all of them, and the browser chooses."""

import re
from pathlib import Path

import pytest
from playwright.sync_api import expect

from imagegen.server import page as page_module

FOLDER = Path(page_module.__file__).parent / "studio"
ENTRY = re.compile(r'^  (\w+):\s*(\[.*?\]|".*?"),$', re.M | re.S)


def table(language):
    text = (FOLDER / "strings" / f"{language}.js").read_text()
    return dict(ENTRY.findall(text))


@pytest.mark.parametrize("language", ["de", "es"])
def test_each_language_has_every_word_with_the_same_values(language):
    english, other = table("en"), table(language)
    assert list(other) == list(english)
    for key, words in english.items():
        assert set(re.findall(r"\{\w+\}", other[key])) == set(re.findall(r"\{\w+\}", words)), key
        assert other[key].startswith("[") == words.startswith("["), key


def test_every_word_is_used_and_every_used_word_is_there():
    sources = "".join(path.read_text() for path in FOLDER.rglob("*") if path.suffix in (".js", ".html"))
    used = set(re.findall(r'\bt\("(\w+)"|data-t(?:-\w+)?="(\w+)"', sources))
    used = {first or second for first, second in used} | set(re.findall(r't\(wrongKey \? "(\w+)"', sources))
    words = table("en")
    assert used - set(words) == set()
    prefixes = ("status_", "change_", "key_")  # made of a state
    sides = {"left", "top", "right", "bottom"}
    assert {key for key in set(words) - used if not key.startswith(prefixes)} <= sides


@pytest.mark.slow
@pytest.mark.parametrize(("locale", "word"), [("de-AT", "Erzeugen"), ("es-MX", "Generar"), ("ja-JP", "Generate")])
def test_the_browser_chooses_the_language(browser, url, locale, word):
    context = browser.new_context(locale=locale)
    opened = context.new_page()
    opened.goto(url)
    expect(opened.locator("#go")).to_have_text(word)
    assert opened.evaluate("document.documentElement.lang") == (locale[:2] if locale != "ja-JP" else "en")
    context.close()
