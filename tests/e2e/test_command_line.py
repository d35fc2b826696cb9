"""`python handler.py` as a user runs it: what is printed, which file comes out, which status."""

import contextlib
import json
import os
import pty
import re
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from imagegen.builder.micro.measure import background_colour, shape_colour
from tests.support import ROOT
from tests.support.images import opened, scene, to_base64


def handler_py(*arguments, cwd=ROOT, **environment):
    return subprocess.run(
        [sys.executable, ROOT / "handler.py", *arguments],
        cwd=cwd,
        env={**os.environ, **{name: str(value) for name, value in environment.items()}},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.slow  # a process of its own that loads the model
def test_bare_it_generates_what_test_input_asks_for(tmp_path):
    """With --test_input too: below, where a person watches, and in tests/docs."""
    done = handler_py(IMAGEGEN_OUTPUT_DIR=tmp_path)
    assert done.returncode == 0, done.stderr
    path, size, _, seed = done.stdout.splitlines()[0].split()
    assert (size, seed) == ("128x128", "42")
    assert all(f"{stage} " in done.stdout for stage in ("queue", "denoise", "decode", "total"))
    picture = opened(path)
    assert Path(path).parent == tmp_path
    assert background_colour(picture) == "blue"
    assert shape_colour(picture) == "red"
    assert "%|" not in done.stderr  # a bar is for a person, and not for a log


@pytest.mark.slow  # a process of its own that loads the model
def test_a_job_as_json(tmp_path):
    job = {"input": {"prompt": "a green square on a white background", "seed": 1, "output_format": "webp"}}
    done = handler_py("--test_input", json.dumps(job), IMAGEGEN_OUTPUT_DIR=tmp_path)
    assert done.returncode == 0, done.stderr
    assert background_colour(opened(tmp_path / "micro-1.webp")) == "white"


@pytest.mark.slow  # a process of its own that loads the model
def test_an_edit_from_a_file(tmp_path):
    images = [to_base64(scene("circle", "red", "blue"))]
    job = {
        "input": {"mode": "edit", "prompt": "make the background green", "images": images, "num_images": 2, "seed": 3}
    }
    (tmp_path / "job.json").write_text(json.dumps(job))
    done = handler_py("--test_input", "job.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "outputs").iterdir()) == ["micro-3.png", "micro-4.png"]
    assert len(re.findall(r"^outputs/micro-\d\.png  128x128  seed \d$", done.stdout, re.MULTILINE)) == 2


@pytest.mark.slow  # a process of its own that loads the model
def test_a_person_who_watches_sees_bars(tmp_path):
    here, there = pty.openpty()
    termios.tcsetwinsize(there, (24, 100))
    process = subprocess.Popen(
        [sys.executable, "handler.py", "--test_input"],
        cwd=ROOT,
        env={**os.environ, "IMAGEGEN_OUTPUT_DIR": str(tmp_path)},
        stdout=subprocess.DEVNULL,
        stderr=there,
    )
    os.close(there)
    seen = b""
    with contextlib.suppress(OSError):  # the terminal is closed with the process
        while data := os.read(here, 4096):
            seen += data
    os.close(here)
    assert process.wait(30) == 0
    assert b"loading weights" in seen
    assert b"steps: 100%" in seen


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ('{"input": {"prompt": " "}}', "error: invalid_input: prompt: is blank"),
        (
            '{"input": {"prompt": "x", "width": 1000, "height": 512}}',
            "width: 1000 is not a multiple of 16 (64 to 1024)",
        ),
        pytest.param(  # it loads the model
            '{"input": {"prompt": "x", "image": "rubbish!"}}',
            "error: bad_reference: images[0]: is not base64",
            marks=pytest.mark.slow,
        ),
        ("{}", "error: invalid_input: input: is missing"),
        ("[]", "error: invalid_input: input: is missing"),
        ('{"input": null}', "input: must be an object with a prompt, and not null"),
        ('{"input": ', "error: --test_input: is not JSON"),
        ("[" * 5000, "error: --test_input: is not JSON"),
        ("nowhere.json", "error: nowhere.json: cannot be read"),
    ],
)
def test_a_failure_is_one_clear_line_and_status_1(tmp_path, source, says):
    done = handler_py("--test_input", source, LOG_LEVEL="WARNING", IMAGEGEN_OUTPUT_DIR=tmp_path)
    assert done.returncode == 1
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"IMAGEGEN_MODEL": "klein-9c"}, "known are klein-9b, klein-9b-kv"),
        (
            {"IMAGEGEN_MODEL": "klein-9b", "HUGGING_FACE_TOKEN": "", "HF_TOKEN": ""},
            "https://huggingface.co/black-forest-labs/FLUX.2-klein-9B",
        ),
        ({"IMAGEGEN_REQUEST_TIMEOUT": "soon"}, "error: IMAGEGEN_REQUEST_TIMEOUT: "),
    ],
)
def test_a_wrong_setup_says_what_to_do(tmp_path, environment, says):
    done = handler_py("--test_input", LOG_LEVEL="WARNING", HF_HOME=tmp_path, **environment)
    assert done.returncode == 1
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


@pytest.mark.parametrize("command", [["handler.py", "--rp_serve_api"], ["-m", "imagegen"]])
def test_half_an_object_store_is_named_at_start(command):
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, "BUCKET_NAME": "pictures", "BUCKET_ACCESS_KEY_ID": "canary"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: BUCKET_ENDPOINT_URL: is missing")
    assert "canary" not in done.stderr


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    done = handler_py("--test_input", IMAGEGEN_OUTPUT_DIR=tmp_path / "file" / "outputs")
    assert done.returncode == 1
    assert "outputs: images cannot be written there (NotADirectoryError)" in done.stderr.splitlines()[-1]
