"""The pages of the documentation, and their code blocks."""

import re

from tests.support import ROOT

#: Pages that people follow, by their path in the repository.
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in (*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("docs/decisions/*.md")))
}


def blocks(page: str, languages: str = "sh") -> list[tuple[str, str]]:
    """A page's code blocks in these languages (a regular expression): each with its language."""
    return re.findall(rf"^```({languages})\n(.*?)^```", PAGES[page], re.MULTILINE | re.DOTALL)


def commands(page: str) -> list[str]:
    """The lines of a page's blocks of shell, one for each command."""
    return [line for _, block in blocks(page) for line in re.sub(r" \\\n +", " ", block).splitlines()]


def section(page: str, title: str) -> str:
    """What stands under a heading of the second level."""
    return PAGES[page].split(f"\n## {title}\n")[1].split("\n## ")[0]
