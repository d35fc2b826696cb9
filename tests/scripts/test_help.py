"""Every program explains itself: by its path, as a module, from another folder, with no model and nothing optional."""

import os
import re
import subprocess
import sys

import pytest

from tests.support import ROOT

PROGRAMS = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in ("scripts", "benchmarks", "imagegen")
    for path in (ROOT / folder).rglob("*.py")
    if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
    and path.name != "decoder_server.py"  # a child of the worker, which no person starts
)
#: A model that cannot be loaded, and no packages of `make slow` and `make fuzz`.
WITHOUT = "import sys; sys.modules.update(dict.fromkeys(('ray', 'atheris', 'modal', 'bitsandbytes'))); "


def run(*command, cwd):
    environment = {**os.environ, "MODEL": "/nowhere", "IMAGEGEN_MODEL_PATH": "/nowhere", "PYTHONPATH": str(cwd)}
    return subprocess.run(
        [sys.executable, *command], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )


def undescribed(text):
    """The options of a help text that have no words beside or under them."""
    lines = text.splitlines()
    options = [i for i, line in enumerate(lines) if re.match(r"  (-{1,2}\w|[a-zA-Z]\w*$|[a-z]\w*  )", line)]
    return [
        lines[i]
        for i in options
        if not re.search(r"\S {2,}\S", lines[i].strip())
        and not (i + 1 < len(lines) and lines[i + 1].startswith(" " * 8))
    ]


def test_there_are_programs():
    assert {"scripts/benchmark_vram.py", "scripts/test_api.py", "benchmarks/gpu.py"} <= set(PROGRAMS)


def of_users(paths):
    """The programs, of which the benchmarks and the trainers are marked slow: most import torch before they read their
    options."""
    slow = ("benchmarks/", "imagegen/builder/micro/")
    return [pytest.param(path, marks=[pytest.mark.slow] if path.startswith(slow) else []) for path in paths]


@pytest.mark.parametrize("path", of_users(PROGRAMS))
def test_a_program_explains_itself_as_a_module(path):
    module = path.removesuffix(".py").removesuffix("/__main__").replace("/", ".")
    code = f"{WITHOUT}import runpy; sys.argv[1:] = ['--help']; runpy.run_module({module!r}, run_name='__main__')"
    done = run("-c", code, cwd=ROOT)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    assert done.stdout.startswith("usage:")
    assert undescribed(done.stdout) == []


@pytest.mark.parametrize(
    "path", of_users([path for path in PROGRAMS if not path.startswith("imagegen/")] + ["handler.py"])
)
def test_a_program_runs_by_its_path_from_another_folder(path, tmp_path):
    done = run(str(ROOT / path), "--help", cwd=tmp_path)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    assert done.stdout.startswith("usage:")
    assert not list(tmp_path.iterdir())


def test_an_option_without_words_is_found():
    assert undescribed(
        "options:\n  -h, --help  show\n  --bare\n  --long-name X\n                words\n  --last N\n"
    ) == [
        "  --bare",
        "  --last N",
    ]
