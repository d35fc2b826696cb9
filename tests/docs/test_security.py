"""SECURITY.md promises nothing without a test."""

import ast
import re

from tests.support import ROOT

TABLES = (ROOT / "SECURITY.md").read_text().split("\n## Promises\n")[1].split("\n## ")[0]
PROMISES = re.findall(r"^\| (?!promise|---)(.+?) \| (.+?) \|$", TABLES, re.MULTILINE)


def names_in(path):
    """The names of a file's tests."""
    tree = ast.parse((ROOT / path).read_text())
    return {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    }


def test_every_promise_names_a_test_that_exists():
    assert len(PROMISES) > 20
    for promise, test in PROMISES:
        named = re.fullmatch(r"`(tests/[\w/]+\.py)::(test_\w+)`", test)
        assert named, promise
        path, name = named.groups()
        assert (ROOT / path).is_file(), f"{promise}: there is no {path}"
        assert name in names_in(path), f"{promise}: {path} has no {name}"


def test_readme_and_contributing_show_the_way_to_it():
    assert "SECURITY.md" in (ROOT / "README.md").read_text()
