"""The wheel in an environment of its own, used from another folder: it brings the command, micro, the page and types.

The dependencies are those of the environment that runs the tests, read through a .pth file: installing all of them
takes minutes. The wheel alone is installed.
"""

import email
import json
import os
import site
import socket
import subprocess
import sys
import time
import zipfile

import httpx
import pytest
from PIL import Image

from imagegen.builder.micro.measure import background_colour, shape_colour
from tests.support import ROOT, until

pytestmark = pytest.mark.slow  # a build, an environment and three processes


#: Nothing of the checkout is seen.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def run(command, *arguments, cwd):
    return subprocess.run([command, *arguments], cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "is absent from the `packages` configuration" not in done.stdout + done.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def command(wheel, tmp_path_factory):
    """The console script in the new environment."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True, timeout=120)
    packages = next(folder.glob("lib/python*/site-packages"))
    arguments = ("-m", "pip", "install", "-q", "--no-deps", "--no-index", wheel)
    installed = run(folder / "bin" / "python", *arguments, cwd=folder)
    assert installed.returncode == 0, installed.stderr
    # Not addsitedir: the editable installation of this checkout is in a .pth file there, and stays out.
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    return folder / "bin" / "imagegen"


def test_the_wheel_holds_the_package_and_no_module_beside_it(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = (name for name in names if name.endswith("/METADATA"))
        described = email.message_from_bytes(archive.read(metadata))
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"imagegen"}
    wanted = ("py.typed", "micro/model_index.json", "micro/transformer/diffusion_pytorch_model.safetensors")
    assert {f"imagegen/{name}" for name in (*wanted, "server/studio/index.html", "server/studio/main.js")} <= set(names)
    assert not [name for name in names if "/tests/" in name or "__pycache__" in name]
    assert wheel.stat().st_size < 10e6
    assert described["Author"]
    assert described["Requires-Python"] == ">=3.11"
    assert described.get_all("Project-URL")
    versions = [value.rpartition(" ")[2] for value in described.get_all("Classifier") if ":: Python :: 3." in value]
    assert versions == ["3.11", "3.12", "3.13"]


def test_it_generates_from_another_folder(command, tmp_path):
    done = run(command, "generate", "a red circle on a blue background", "-o", "a.png", "--seed", "42", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "a.png") as image:
        assert (background_colour(image), shape_colour(image)) == ("blue", "red")


def test_its_code_is_the_wheels(command, tmp_path):
    code = "import imagegen; print(imagegen.__file__)"
    done = run(command.with_name("python"), "-c", code, cwd=tmp_path)
    assert done.stdout.startswith(str(command.parents[1])), done.stdout + done.stderr


def test_its_worker_runs_a_job_and_says_where_there_is_no_queue(command, tmp_path):
    done = run(command, "worker", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("error: RUNPOD_WEBHOOK_GET_JOB is not set")
    job = json.dumps({"input": {"prompt": "a red circle", "seed": 1}})
    done = run(command, "worker", "--test_input", job, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "outputs" / "micro-1.png").exists()


def test_its_server_has_the_page(command, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with (tmp_path / "log").open("w") as log:
        words = [command, "serve", "--port", str(port)]
        process = subprocess.Popen(words, cwd=tmp_path, env=ENVIRONMENT, stdout=log, stderr=log)
    try:
        answers = []

        def page():
            time.sleep(0.2)
            assert process.poll() is None, (tmp_path / "log").read_text()
            try:
                answers.append(httpx.get(f"http://127.0.0.1:{port}/", headers={"Accept": "text/html"}))
            except httpx.TransportError:
                return False
            return True

        until(page)
        assert "<title>" in answers[-1].text
    finally:
        process.terminate()
        process.wait(300)
