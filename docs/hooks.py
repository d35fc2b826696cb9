"""What mkdocs runs while it builds the site: the pages of the repository's root are added, and links are rewritten.

Every page links as it does on GitHub, by paths inside the repository. Here a link to another page becomes one inside
the site; a link to a source file leads to the repository (`repo_url`), or is shown as its path where that is unset.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
#: Pages outside docs/, by their place in the site.
ROOT_PAGES = {
    "index.md": "README.md",
    "architecture.md": "ARCHITECTURE.md",
    "security.md": "SECURITY.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "vast.md": "README-VASTAI.md",
}
_IN_SITE = {repository: site for site, repository in ROOT_PAGES.items()}
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
_FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages of the repository's root."""
    for site, repository in ROOT_PAGES.items():
        files.append(File.generated(config, site, content=(ROOT / repository).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrites the links of a page, outside its code blocks."""
    here = page.file.src_uri
    source = ROOT_PAGES.get(here, f"docs/{here}")

    def rewritten(match: re.Match[str]) -> str:
        mark, text, target = match.groups()
        path, hash_, anchor = target.partition("#")
        if not path or "://" in path or path.startswith("mailto:"):
            return match[0]
        repository = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        site = _IN_SITE.get(repository, repository.removeprefix("docs/"))
        if files.get_file_from_path(site) is not None:
            relative = posixpath.relpath(site, posixpath.dirname(here) or ".")
            return f"{mark}[{text}]({relative}{hash_}{anchor})"
        if not (ROOT / repository).exists():
            return match[0]  # mkdocs says that there is no such page
        if config.repo_url:
            return f"{mark}[{text}]({config.repo_url.rstrip('/')}/blob/main/{repository}{hash_}{anchor})"
        return text if text.strip("`") == repository else f"{text} (`{repository}`)"

    parts = _FENCE.split(markdown)
    return "".join(part if part.startswith("```") else _LINK.sub(rewritten, part) for part in parts)
