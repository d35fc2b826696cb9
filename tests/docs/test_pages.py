"""Runs what the pages show, as far as it runs without the platform and without a GPU; links lead somewhere."""

import contextlib
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import tomllib

import httpx
import pytest

from tests.docs.pages import PAGES, commands, section
from tests.support import ROOT, until
from tests.support.images import opened

#: Commands of the vast page are sent to a stand-in of Vast by tests/e2e/test_vast.py.
ELSEWHERE = {
    "imagegen": "tests/docs/test_readme.py",
    "vastai": "tests/e2e/test_vast.py",
    "make": "tests/docs/test_readme.py",
    "git": "a clone of this repository",
    "python3": "Python's own",
    "docker": "tests/image.py; compose.yaml: tests/deploy/test_image_files.py",
    "python": "handler.py: tests/docs/test_readme.py; scripts.plan_fleet: below; pip",
    "nvidia-smi": "a machine with a GPU",
    "sed": "the gateway: tests/deploy/test_gateway.py",
    "sudo": "a machine with a GPU; nginx: tests/deploy/test_gateway.py",
    "modal": "Modal; the application: tests/deploy/test_modal.py",
    "kubectl": "Kubernetes; the manifest: tests/e2e/test_ray.py",
}
#: What prints the same on any machine: how the command begins, and some of what is printed, as the page has it.
HERE = {
    "imagegen plan": ("bf16 9.7 GiB", "peak 21.3 GiB"),
    "python -m scripts.benchmark_vram --estimate": ("| 24 GB, 8.9 | fp8 | bf16 | embeddings | 18.7 GiB | 20.8 GiB |",),
}


def test_every_command_is_run_or_accounted_for():
    for page in PAGES:
        for line in commands(page):
            # `A=b command`, `export A=b`
            words = [word for word in line.split() if not re.match(r"[A-Z_]+=", word)]
            here = (*HERE, "curl", "export", ".venv/bin/uvicorn")
            later = (".venv/bin/pip install -q -e", ".venv/bin/serve run deploy.ray_serve:app")
            known = words[0] in ELSEWHERE or " ".join(words).startswith((*here, *later))
            assert known, f"{page}: {line}"


@pytest.mark.parametrize("line", [line for page in PAGES for line in commands(page) if "scripts.plan_fleet" in line])
def test_a_plan_is_what_its_page_says(line, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = [sys.executable, *shlex.split(line)[1:]]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = [row for row in done.stdout.splitlines() if row.startswith(("| as given", "| recommended"))]
    (page,) = [page for page in PAGES if line in PAGES[page]]
    for row in rows:
        assert row in PAGES[page]
    assert ("--png" in line) == bool(list(tmp_path.iterdir()))


@pytest.mark.parametrize("start", HERE)
def test_what_will_fit_is_what_the_page_says(start, tmp_path):
    (line,) = [line for line in commands("docs/local.md") if line.startswith(start)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "IMAGEGEN_MODEL": "klein-9b"}
    words = [sys.executable, *shlex.split(line.replace("imagegen plan", "python -m imagegen plan"))[1:]]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for said in HERE[start]:
        assert said in done.stdout


def test_no_command_hides_in_an_indented_block():
    """Those are for what is printed, and for arithmetic."""
    programs = r"^    (?:docker|curl|python|modal|kubectl|sudo|pip|make|export|vastai|nvidia-smi|git) .*"
    for page, text in PAGES.items():
        assert re.findall(programs, text, re.MULTILINE) == [], page


def test_runpods_page_and_form_allow_the_same_cuda():
    form = json.loads((ROOT / ".runpod" / "hub.json").read_text())["config"]["allowedCudaVersions"]
    (row,) = [line for line in PAGES["docs/runpod.md"].splitlines() if line.startswith("| CUDA versions |")]
    assert row.split("|")[2].strip() == ", ".join(form)
    assert f"CUDA version {', '.join(form)}" in section("docs/runpod.md", "Eight steps")


def test_no_placeholder_is_left_unexplained():
    """A word that the reader has to replace is said to be one, on the same page."""
    for page in ("docs/runpod.md", "README-VASTAI.md", "docs/modal.md", "docs/ray.md"):
        code = "\n".join(commands(page))
        text = re.sub(r"^```.*?^```", "", PAGES[page], flags=re.MULTILINE | re.DOTALL)
        names = r"\b(OWNER|REPOSITORY|YOU|YOUR_API_KEY|OFFER_ID|INSTANCE_ID|TEMPLATE_HASH|xxx|yyy|your-name)\b"
        for word in set(re.findall(names, code)):
            assert f"`{word}`" in text, f"{page}: {word}"


def test_every_page_is_in_the_sites_menu():
    menu = (ROOT / "mkdocs.yml").read_text()
    for path in (ROOT / "docs").glob("*.md"):
        assert f": {path.name}\n" in menu, f"{path.name}: name it under nav: in mkdocs.yml"


def test_extras_and_links_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for page, text in PAGES.items():
        assert set(re.findall(r"pip install [^\n]*-e '\.\[(\w+)\]'", text)) <= set(extras)
        for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
            if not link.startswith("http"):
                assert ((ROOT / page).parent / link).exists(), f"{page}: {link}"
        for page_of, anchor in re.findall(r"\]\(([^)#\s]*)#([^)]+)\)", text):
            if not page_of.startswith("http"):
                target = (ROOT / page).parent / page_of if page_of else ROOT / page
                titles = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
                anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
                assert anchor in anchors, f"{page}: {page_of}#{anchor}"
        for test in re.findall(r"`(tests/[\w/]+\.py)`", text):
            assert (ROOT / test).exists(), test


@pytest.fixture
def server(tmp_path):
    """The server of the page's way without Docker, at a port of its own; gives its address and key."""
    (line,) = [line for line in commands("README-VASTAI.md") if "uvicorn" in line]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    words = shlex.split(line.replace("7000", port).replace(".venv/bin/uvicorn", f"{sys.executable} -m uvicorn"))
    environment = {**os.environ, "IMAGEGEN_API_KEY": "a-key-of-the-test"}
    while "=" in words[0]:
        name, _, value = words.pop(0).partition("=")
        environment[name] = value
    process = subprocess.Popen(words, cwd=ROOT, env=environment)
    try:

        def ready():
            assert process.poll() is None
            with contextlib.suppress(httpx.TransportError):
                return httpx.get(f"http://localhost:{port}/health").json()["status"] == "ready"

        until(ready, every=0.2)
        yield f"localhost:{port}", "a-key-of-the-test"
    finally:
        process.terminate()
        process.wait(300)


@pytest.mark.slow  # curl may have to be installed
def test_the_first_image(server, tmp_path):
    address, key = server
    script = [line for line in commands("README-VASTAI.md") if line.startswith("curl")]
    script += [line for line in commands("docs/local.md") if line.startswith("curl")]
    environment = {**os.environ, "ADDRESS": address, "IMAGEGEN_API_KEY": key}
    outputs = []
    for line in script:
        line = line.replace("localhost:7000/generate", f'{address}/generate -H "X-API-Key: {key}"')
        done = subprocess.run(
            ["sh", "-c", line], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True, timeout=300
        )
        outputs.append(done.stdout)
    assert json.loads(outputs[0])["status"] == "ready"
    assert opened(tmp_path / "circle.png").size == (128, 128)
    assert opened(tmp_path / "green.png").size == (128, 128)


@pytest.mark.slow  # curl may have to be installed
def test_runpods_calls_against_its_api_on_this_machine(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [sys.executable, "handler.py", "--rp_serve_api", "--rp_api_port", port]
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "IMAGEGEN_MODEL": "micro"})
    lines = [line for line in commands("docs/runpod.md") if line.startswith(("curl", "python3", "export JOB_ID"))]
    assert len(lines) == 5
    script = "\n".join(lines).replace("https://api.runpod.ai/v2/$ENDPOINT_ID", f"http://localhost:{port}")
    script = script.replace(
        f"curl -s http://localhost:{port}/status", f"curl -s -X POST http://localhost:{port}/status"
    )
    try:

        def listens():
            assert process.poll() is None
            with contextlib.suppress(OSError), socket.create_connection(("localhost", int(port))):
                return True

        until(listens, every=0.2)
        subprocess.run(["sh", "-e", "-c", script], cwd=tmp_path, check=True, timeout=300)
        assert opened(tmp_path / "circle.png").size == (128, 128)
        done = json.loads((tmp_path / "status.json").read_text())
        assert done["status"] == "COMPLETED" and done["output"]["images"]
    finally:
        process.terminate()
        process.wait(300)
