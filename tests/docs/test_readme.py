"""Runs what the README shows: its commands, its jobs, its curl, and compares its answers with real ones."""

import asyncio
import base64
import contextlib
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from PIL import Image

from imagegen.cli.inspect import read
from imagegen.cli.main import main
from imagegen.contract.schemas import GenerateResponse
from imagegen.memory.plan import Card, gib
from imagegen.memory.planner import choose
from imagegen.models import get_model
from imagegen.runpod import handler
from tests.conftest import scene, to_base64
from tests.support import ROOT

TEXT = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


COMMANDS = [line for block in blocks("sh") for line in block.splitlines()]
PLAN = "python -m imagegen --plan --card-gb 24 --capability 8.9"
EXAMPLES = [json.loads(block) for block in blocks("json")]


def test_every_command_is_run_by_a_test():
    assert {line.split()[0] for line in COMMANDS} == {"make", "python", "curl", "docker"}  # docker: tests/image.py
    assert [line for line in COMMANDS if line.startswith("make")] == ["make run", "make test", "make serve"]


@pytest.mark.parametrize(
    "command", ["make run", *(line for line in COMMANDS if line.startswith("python") and line != PLAN)]
)
def test_a_command_leaves_a_picture(command, tmp_path):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        shlex.split(command),
        cwd=ROOT,
        env={**os.environ, "IMAGEGEN_OUTPUT_DIR": str(tmp_path), "PATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    (picture,) = tmp_path.iterdir()
    assert str(picture) in done.stdout


def test_the_plans_of_the_table_are_those_that_are_made(monkeypatch, capsys):
    assert PLAN in COMMANDS
    monkeypatch.setenv("IMAGEGEN_MODEL", "klein-9b")
    assert main(["plan", *PLAN.split()[4:]]) == 0
    assert capsys.readouterr().out.startswith("klein-9b: transformer fp8 8.8 GiB, text encoder bf16 9.7 GiB")
    cells = r"^\| (\d+) GB(, with bitsandbytes)? \| (\w+) \| (\w+) \| [^|]+ \| ([^|]+) \| (\d+) \|$"
    rows = re.findall(cells, TEXT, re.MULTILINE)
    assert len(rows) == 8
    for gigabytes, nf4, *shown in rows:
        plan = choose(get_model("klein-9b"), Card.of(int(gigabytes), (8, 9)), nf4=bool(nf4))
        side, _ = plan.largest((2064, 2064), [], plan.card.bytes)
        peak = f"{gib(plan.peak)} of {gib(plan.card.bytes)}"
        assert shown == [plan.transformer, plan.text_encoder, peak, str(side)]


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    """`make serve`, on a port of its own."""
    log_path = tmp_path_factory.mktemp("serve") / "log"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = str(probe.getsockname()[1])
    with log_path.open("w") as log:
        server = subprocess.Popen(
            ["make", "serve", f"PORT={free}"], cwd=ROOT, stdout=log, stderr=log, start_new_session=True
        )
    try:
        for _ in range(200):
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"http://localhost:{free}/health").json()["status"] == "ready":
                    break
            assert server.poll() is None, log_path.read_text()
            time.sleep(0.3)
        yield free
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(20)


@pytest.mark.slow  # curl may have to be installed
def test_curl_and_python_against_make_serve(port, tmp_path):
    for command in (line for line in COMMANDS if line.startswith("curl")):
        done = subprocess.run(
            shlex.split(command.replace("7000", port)),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        if "-o" not in command:
            assert json.loads(done.stdout)["images"]
    assert Image.open(tmp_path / "star.png").format == "PNG"
    assert json.loads((tmp_path / "answer.json").read_text())["images"]

    for block in blocks("python"):
        code = block.replace("7000", port)
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=60)
    assert Image.open(tmp_path / "circle.png").size == (128, 128)


def test_the_api_script_is_satisfied(port, tmp_path):
    command = [sys.executable, "-m", "scripts.test_api", "--url", f"http://localhost:{port}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stdout
    assert len(done.stdout.splitlines()) == 7
    assert len(list((tmp_path / "outputs").iterdir())) == 5
    nobody = [*command[:-1], "http://localhost:9"]
    done = subprocess.run(nobody, cwd=tmp_path, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 1


def test_the_jobs_and_answers_are_real(service, monkeypatch):
    monkeypatch.setattr(handler, "service", lambda: service)
    jobs = [example for example in EXAMPLES if "input" in example]
    answers = [example for example in EXAMPLES if "images" in example]
    errors = [example for example in EXAMPLES if "error" in example]
    (record,) = [example for example in EXAMPLES if "file" in example]
    assert (len(jobs), len(answers), len(errors)) == (2, 1, 1)

    outputs = []
    for job in jobs:
        if "images" in job["input"]:
            job["input"]["images"] = [to_base64(scene("circle", "red", "blue"))]
        outputs.append(asyncio.run(handler.handler({"id": "readme", **job})))
    assert all(output["images"] for output in outputs)
    assert set(answers[0]) == set(outputs[0])
    assert set(answers[0]["timings"]) == set(outputs[0]["timings"])
    shown, real = GenerateResponse.model_validate(answers[0]), GenerateResponse.model_validate(outputs[0])
    assert real.images[0].startswith(shown.images[0].rstrip("."))
    for field in ("urls", "seeds", "width", "height", "output_format", "model", "warnings"):
        assert getattr(shown, field) == getattr(real, field)

    assert read(base64.b64decode(real.images[0])) == {k: v for k, v in record.items() if k != "file"}

    mistake = {"input": {"prompt": "x", "width": 1000, "height": 512}}
    assert asyncio.run(handler.handler(mistake)) == errors[0]


def test_the_tables_name_every_field_and_code():
    from imagegen import errors, models
    from imagegen.contract.schemas import EditRequest

    inputs = TEXT.split("## A job's input")[1].split("\n## ")[0]
    for name in ("mode", *EditRequest.model_fields):
        assert re.search(rf"^\|.*`{name}`.*\|.*\|", inputs, re.MULTILINE), name
    output = TEXT.split("## The output")[1].split("\n## ")[0]
    for name in GenerateResponse.model_fields:
        assert f"`{name}`" in output
    codes = TEXT.split("## Errors")[1].split("\n## ")[0]
    for kind in errors.ImageGenError.__subclasses__():
        retryable = "yes" if kind.retryable else "no"
        assert re.search(rf"^\| `{kind.code}` \|.*\| {retryable} \|$", codes, re.MULTILINE), kind.code
    for spec in models.MODELS.values():
        row = next(line for line in TEXT.splitlines() if line.startswith(f"| `{spec.name}` |"))
        assert spec.licence in row
        assert ("gated" in row) == spec.gated
        assert f"| {spec.num_inference_steps}, {spec.guidance_scale} |" in row
        assert spec.page is None or f"({spec.page})" in row
