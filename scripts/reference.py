"""The reference pages that are written from the code: `.env.example` and docs/settings.md.

    python -m scripts.reference           (`make reference`)

Both come from imagegen/settings.py. tests/docs/test_reference.py fails where a committed file is not what this writes.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args, get_origin

from pydantic import AliasChoices
from pydantic.fields import FieldInfo

ROOT = Path(__file__).resolve().parents[1]
if not __package__:  # started by its path, which makes this folder the place of imports
    sys.path[0] = str(ROOT)

from imagegen.settings import sections

EXAMPLE_HEAD = """\
# Copy to .env and set what you need. An empty value means the default.
# Written from imagegen/settings.py by `make reference`: change it there.
"""
SETTINGS_HEAD = """\
# Settings

Every setting is an environment variable. A file `.env` in the working directory is read too; a variable of the
environment goes before it, and an empty value counts as unset. A value that is not allowed ends the start with an
error that names the variable. `.env.example` lists the same settings, ready to copy.

This page is written from `imagegen/settings.py` by `make reference`.
"""


def env_example() -> str:
    """`.env.example`: each variable with its default, under its description."""
    lines = [EXAMPLE_HEAD]
    for title, fields in sections().items():
        lines.append(f"\n# ---- {title} ----\n")
        for name, field in fields.items():
            described = " ".join(filter(None, [field.description, _sentence("Allowed", allowed(field)), _also(field)]))
            lines.append("".join(f"# {line}\n" for line in textwrap.wrap(described, 118, break_on_hyphens=False)))
            lines.append(f"{name}={default(field)}\n")
    return "".join(lines)


def settings_page() -> str:
    """docs/settings.md: a table for each section."""
    lines = [SETTINGS_HEAD]
    for title, fields in sections().items():
        lines.append(f"\n## {title}\n\n| variable | default | allowed | what it does |\n|---|---|---|---|\n")
        for name, field in fields.items():
            described = (
                " ".join(filter(None, [field.description, _also(field)])).replace("*", r"\*").replace("|", r"\|")
            )
            values = ", ".join(f"`{value}`" for value in choices(field)) or allowed(field)
            shown = f"`{default(field)}`" if default(field) else "unset"
            lines.append(f"| `{name}` | {shown} | {values} | {described} |\n")
    return "".join(lines)


#: What is written, by its path from the root of the repository.
FILES: dict[str, Callable[[], str]] = {".env.example": env_example, "docs/settings.md": settings_page}


def default(field: FieldInfo) -> str:
    """The default as a variable holds it; empty where it is unset."""
    value = field.default
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return "" if value is None else str(value)


def choices(field: FieldInfo) -> list[str]:
    """The values that a variable may have, where they can be listed."""
    if field.annotation is bool:
        return ["true", "false"]
    kinds = [field.annotation, *get_args(field.annotation)]
    return [str(value) for kind in kinds if get_origin(kind) is Literal for value in get_args(kind)]


def allowed(field: FieldInfo) -> str:
    """The values that a variable may have, in words; empty where any text will do."""
    if listed := choices(field):
        return ", ".join(listed)
    words = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
    bounds = {word: getattr(part, word) for part in field.metadata for word in words if hasattr(part, word)}
    if {"ge", "le"} <= bounds.keys():
        return f"{bounds['ge']} to {bounds['le']}"
    return ", ".join(f"{words[word]} {value}" for word, value in bounds.items())


def _also(field: FieldInfo) -> str:
    alias = field.validation_alias
    return f"{' and '.join(map(str, alias.choices[1:]))} works too." if isinstance(alias, AliasChoices) else ""


def _sentence(label: str, text: str) -> str:
    return f"{label}: {text}." if text else ""


def main() -> int:
    """Writes the files; prints those that changed."""
    for name, content in FILES.items():
        path = ROOT / name
        if not path.exists() or path.read_text() != content():
            path.write_text(content())
            print(f"written: {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
