"""The reference pages that are written from the code.

    python -m scripts.reference           (`make reference`)

`.env.example` and docs/settings.md come from imagegen/setting_sections.py, docs/api-fields.md from the OpenAPI document
of the HTTP server, and so from imagegen/contract/schemas.py and the routes; docs/decisions/README.md lists the pages
beside it. tests/docs/test_reference.py fails where a committed file is not what this writes.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from pydantic import AliasChoices
from pydantic.fields import FieldInfo

ROOT = Path(__file__).resolve().parents[1]
if not __package__:  # started by its path, which makes this folder the place of imports
    sys.path[0] = str(ROOT)

from imagegen.server.main import create_app
from imagegen.setting_faults import allowed, choices
from imagegen.settings import Settings, sections

EXAMPLE_HEAD = """\
# Copy to .env and set what you need.
# Written from imagegen/setting_sections.py by `make reference`: change it there.
"""
SETTINGS_HEAD = """\
# Settings

Every setting is an environment variable. A file `.env` in the working directory is read too; a variable of the
environment goes before it. An empty value counts as unset (an empty `IMAGEGEN_API_KEY` in the environment is an error).
A value that is not allowed ends the start with an error that names the variable. `.env.example` lists the same,
ready to copy.

This page is written from `imagegen/setting_sections.py` by `make reference`.
"""


def env_example() -> str:
    """`.env.example`: each variable with its default, under its description."""
    lines = [EXAMPLE_HEAD]
    for title, fields in sections().items():
        lines.append(f"\n# ---- {title} ----\n")
        for name, field in fields.items():
            described = " ".join(filter(None, [field.description, _sentence("Allowed", allowed(field)), _also(field)]))
            lines.append("".join(f"# {line}\n" for line in textwrap.wrap(described, 118, break_on_hyphens=False)))
            lines.append(f"{name}={default(field)}\n" if default(field) else f"# {name}=\n")
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


API_HEAD = """\
# API fields

Every route and every field, as the server's OpenAPI document has them (`/docs` and `/openapi.json` of a running
server). [API](api.md) explains how they work together. A job's `input` on RunPod has the fields of `/generate` or
`/edit`, and `mode`.

This page is written from that document by `make reference`.

## Routes

| route | what it does |
|---|---|
"""


def api_page() -> str:
    """docs/api-fields.md: the routes, and a table for each kind of body."""
    document = FastAPI.openapi(create_app(Settings(_env_file=None)))
    routes = [
        (f"{method.upper()} {path}", route)
        for path, methods in document["paths"].items()
        for method, route in methods.items()
    ]
    lines = [API_HEAD]
    for name, route in routes:
        lines.append(f"| `{name}` | {_cell(route.get('description') or route['summary'] + '.')} |\n")
    bodies = {
        name: route["requestBody"]["content"]["application/json"]["schema"]
        for name, route in routes
        if "requestBody" in route
    }
    seen: dict[str, Any] = {}
    for name, schema in bodies.items():
        if not schema.get("properties"):
            continue
        lines.append(f"\n## {name}\n\n")
        if seen and len(seen.keys() & schema["properties"].keys()) == len(seen):
            lines.append("The fields of the route above, and:\n\n")
            schema = {**schema, "properties": {k: v for k, v in schema["properties"].items() if k not in seen}}
        lines.append(_fields(schema))
        seen = schema["properties"]
    for name, schema in document["components"]["schemas"].items():
        if name in ("EditResponse", "Error") or "server__openai" in name:
            continue
        described = _cell(schema.get("description", ""))
        lines.append(f"\n## {name.rsplit('__', 1)[-1]}\n\n{described}\n\n{_fields(schema)}")
    return "".join(lines)


def _fields(schema: dict[str, Any]) -> str:
    """The table of an object's fields."""
    rows = ["| field | type | default | what it is |\n|---|---|---|---|\n"]
    for name, field in schema.get("properties", {}).items():
        required = "required" if name in schema.get("required", []) else ""
        value = json.dumps(field["default"]) if field.get("default") is not None else ""
        shown = f"`{value}`" if value not in ("", "[]", "{}") else required
        rows.append(f"| `{name}` | {_type(field)} | {shown} | {_cell(field.get('description', ''))} |\n")
    return "".join(rows)


def _type(field: dict[str, Any]) -> str:
    """A field's type and bounds in words."""
    if "$ref" in field:
        name = field["$ref"].rsplit("/", 1)[-1].rsplit("__", 1)[-1]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in field:
        return " or ".join(_type(kind) for kind in field["anyOf"] if kind.get("type") != "null")
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if field.get("type") == "array":
        count = f"{field.get('minItems', 0)} to {field['maxItems']} " if "maxItems" in field else ""
        return f"list of {count}{_type(field['items'])}"
    text = {"number": "number", "integer": "integer", "boolean": "true or false"}.get(
        field.get("type", ""), field.get("type", "any")
    )
    if "maximum" in field:
        return f"{text}, {int(field.get('minimum', 0))} to {int(field['maximum'])}"
    return f"{text}, {field.get('minLength', 0)} to {field['maxLength']:,} characters" if "maxLength" in field else text


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")


DECISIONS_HEAD = """\
# Decisions

Why things are as they are, a short page for each decision. To add one, write a page whose first line is its title and
whose second paragraph is "Decided", the date and perhaps the occasion; then run `make reference`, which lists it.

| date | decision |
|---|---|
"""


def decisions_page() -> str:
    """docs/decisions/README.md: the list of the pages beside it."""
    lines = [DECISIONS_HEAD]
    for path in sorted((ROOT / "docs" / "decisions").glob("*.md")):
        if path.name != "README.md":
            text = path.read_text(encoding="utf-8")
            date = re.search(r"^Decided (\d{4}-\d{2}-\d{2})", text, re.MULTILINE)
            title = text.splitlines()[0].removeprefix("# ")
            lines.append(f"| {date[1] if date else ''} | [{title}]({path.name}) |\n")
    return "".join(lines)


#: What is written, by its path from the root of the repository.
FILES: dict[str, Callable[[], str]] = {
    ".env.example": env_example,
    "docs/settings.md": settings_page,
    "docs/api-fields.md": api_page,
    "docs/decisions/README.md": decisions_page,
}


def default(field: FieldInfo) -> str:
    """The default as a variable holds it; empty where it is unset."""
    value = field.default
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return "" if value is None else str(value)


def _also(field: FieldInfo) -> str:
    alias = field.validation_alias
    return f"{' and '.join(map(str, alias.choices[1:]))} works too." if isinstance(alias, AliasChoices) else ""


def _sentence(label: str, text: str) -> str:
    return f"{label}: {text}." if text else ""


def main() -> int:
    """Writes the files; prints those that changed."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    for name, content in FILES.items():
        path = ROOT / name
        if not path.exists() or path.read_text() != content():
            path.write_text(content())
            print(f"written: {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
