"""Clients of pip and npm, in the environment that `make clients` makes, against a server and a RunPod endpoint here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from imagegen.builder.micro.measure import background_colour, shape_colour
from tests.server.conftest import serving
from tests.support.runpod_queue import RunPodQueue

CLIENTS = Path(sys.prefix) / "clients"
KEY = "the-key-of-this-server"
ALIASES = "gpt-image-1, dall-e-3"


@pytest.fixture(scope="session")
def server():
    """The base URL of a server with a key, and names for clients that know no others."""
    with serving(api_key=KEY, model_aliases=ALIASES) as (url, service):
        service.start().result()
        yield url


@pytest.fixture(scope="session")
def endpoint(tmp_path_factory):
    """The base URL of RunPod's API, of an endpoint "endpoint" with one worker."""
    with RunPodQueue() as queue, queue.worker(tmp_path_factory.mktemp("worker") / "log"):
        yield f"{queue.url}/v2"


@pytest.fixture
def run(tmp_path, server):
    """Runs a program in an empty folder in which the clients' packages are found; gives what it prints."""

    def run_program(language: str, text: str) -> str:
        text = text.replace("http://localhost:7000", server)
        (tmp_path / "node_modules").is_symlink() or (tmp_path / "node_modules").symlink_to(CLIENTS / "node_modules")
        name, command = {
            "python": ("program.py", [CLIENTS / "bin" / "python"]),
            "js": ("program.mjs", [CLIENTS / "bin" / "node"]),
            "sh": ("program.sh", ["bash", "-e"]),
        }[language]
        (tmp_path / name).write_text(text)
        done = subprocess.run(
            [*command, name],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=240,
            env={**os.environ, "PYTHONPATH": "", "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    return run_program


def shows(picture):
    """The background's and the shape's colour."""
    return background_colour(picture), shape_colour(picture)
