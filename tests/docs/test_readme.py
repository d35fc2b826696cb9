"""Runs what the README, the quickstart and the API's pages show: commands, jobs, curl, Python, JavaScript."""

import asyncio
import base64
import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from imagegen.builder.micro.measure import background_colour, shape_colour
from imagegen.cli.inspect import read
from imagegen.cli.main import main
from imagegen.contract.responses import GenerateResponse
from imagegen.memory.plan import Gpu, gib
from imagegen.memory.planner import choose
from imagegen.models import get_model
from imagegen.runpod import handler
from tests.docs.pages import PAGES, blocks, commands, section
from tests.support import ROOT, until
from tests.support.images import opened, scene, to_base64

#: Pages whose every block is run here.
RUN = ("README.md", "docs/quickstart.md", "docs/api.md")
PLAN = "imagegen plan --gpu-gb 24 --capability 8.9"
README = commands("README.md")


def test_every_command_is_run_by_a_test():
    for page in RUN:
        assert {line.split()[0] for line in commands(page) if line != PLAN} <= {"make", "python", "imagegen", "curl"}
        assert {line for line in commands(page) if line.startswith("make")} <= {"make run", "make test", "make serve"}


def test_the_readme_can_be_read_at_once():
    assert len(PAGES["README.md"].splitlines()) <= 200
    assert README[:2] == ["make run", "make test"]
    assert (ROOT / "docs" / "micro.png").stat().st_size < 100_000


def test_what_the_pages_tell_to_open_is_there():
    for page in ("README.md", "ARCHITECTURE.md"):
        for path in re.findall(r"`((?:imagegen|tests|docs|deploy|benchmarks|scripts)/[\w./]*)`", PAGES[page]):
            assert (ROOT / path).exists(), f"{page}: {path}"
    for name, path in re.findall(
        r"`(\w+(?:\.\w+)?)` in `(imagegen/[\w/]+\.py)`", PAGES["README.md"] + PAGES["ARCHITECTURE.md"]
    ):
        last = name.rpartition(".")[2]
        assert re.search(
            rf"^\s*(?:async )?(?:def|class) {last}\b|^{last}\b", (ROOT / path).read_text(), re.MULTILINE
        ), name


def _with_slow(first, others):
    return [first, *(pytest.param(line, marks=pytest.mark.slow) for line in others)]


@pytest.mark.parametrize("command", _with_slow("make run", [line for line in README if line.startswith("python")]))
def test_a_command_leaves_an_image(command, tmp_path):
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
    (image,) = tmp_path.iterdir()
    assert str(image) in done.stdout


def test_the_plans_of_the_table_are_those_that_are_made(monkeypatch, capsys):
    assert PLAN in README and PLAN in commands("docs/models.md") and PLAN in commands("docs/local.md")
    monkeypatch.setenv("IMAGEGEN_MODEL", "klein-9b")
    assert main(PLAN.split()[1:]) == 0
    assert capsys.readouterr().out.strip() in " ".join(PAGES["docs/models.md"].split())
    cells = r"^\| (\d+) GB(, with bitsandbytes)? \| (\w+) \| (\w+) \| [^|]+ \| ([^|]+) \| (\d+) \|$"
    rows = re.findall(cells, PAGES["docs/models.md"], re.MULTILINE)
    assert len(rows) == 8
    for gigabytes, nf4, *shown in rows:
        plan = choose(get_model("klein-9b"), Gpu.of(int(gigabytes), (8, 9)), nf4=bool(nf4))
        side, _ = plan.largest((2064, 2064), [], plan.gpu.bytes)
        peak = f"{gib(plan.peak)} of {gib(plan.gpu.bytes)}"
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

        def ready():
            assert server.poll() is None, log_path.read_text()
            with contextlib.suppress(httpx.TransportError):
                return httpx.get(f"http://localhost:{free}/health").json()["status"] == "ready"

        until(ready, every=0.3)
        yield free
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(300)


def _run(words, folder):
    if words[0] == "imagegen":
        words = [sys.executable, "-m", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{words[-1]}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.slow  # curl and node may have to be installed
@pytest.mark.parametrize("page", RUN)
def test_a_pages_examples_run_in_their_order(page, port, tmp_path):
    node = shutil.which("node") or shutil.which("node", path=ROOT / ".venv" / "lint" / "bin")
    assert node, "the examples in JavaScript need node; `make lint` brings one"
    ran = 0
    for language, block in blocks(page, "sh|python|javascript"):
        code = block.replace("7000", port)
        if language == "python":
            _run([sys.executable, "-c", code], tmp_path)
        elif language == "javascript":
            out = _run([node, "--input-type=module", "-e", code], tmp_path)
            assert "42" in out  # the seed
        else:
            elsewhere = r"^(?:make|python|imagegen) .*"
            _run(["sh", "-e", "-c", re.sub(elsewhere, "", code, flags=re.MULTILINE)], tmp_path)
        ran += 1
    assert ran > 2


@pytest.mark.slow
def test_the_readmes_edit_changes_the_colour_and_keeps_the_circle(port, tmp_path):
    for line in (line for line in README if line.startswith("curl")):
        _run(["sh", "-c", line.replace("7000", port)], tmp_path)
    for name, colour in (("circle.png", "red"), ("green.png", "green")):
        image = opened(tmp_path / name).convert("RGB")
        assert image.size == (128, 128)
        assert background_colour(image) == "blue", name
        assert shape_colour(image) == colour, name


@pytest.mark.slow  # two processes that load the model
def test_the_command_line_of_the_readme(tmp_path):
    for line in (line for line in README if line.startswith(("imagegen generate", "imagegen edit"))):
        _run(shlex.split(line), tmp_path)
    assert background_colour(opened(tmp_path / "green.png").convert("RGB")) == "blue"
    assert shape_colour(opened(tmp_path / "green.png").convert("RGB")) == "green"


def test_the_api_script_is_satisfied(ready, tmp_path):
    command = [sys.executable, "-m", "scripts.test_api", "--url", ready[0]]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stdout
    assert len(done.stdout.splitlines()) == 8
    assert len(list((tmp_path / "outputs").iterdir())) == 6
    nobody = [*command[:-1], "http://localhost:9"]
    done = subprocess.run(nobody, cwd=tmp_path, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 1


def _examples(page):
    return [json.loads(block) for _, block in blocks(page, "json")]


def test_the_jobs_and_answers_are_real(service, monkeypatch):
    monkeypatch.setattr(handler, "service", lambda: service)
    examples = _examples("README.md")
    jobs = [example for example in examples if "input" in example]
    (shown_answer,) = [example for example in examples if "images" in example]
    (shown_error,) = _examples("docs/api.md")
    (record,) = _examples("docs/provenance.md")
    assert len(jobs) == 2

    outputs = []
    for job in jobs:
        if "images" in job["input"]:
            job["input"]["images"] = [to_base64(scene("circle", "red", "blue"))]
        outputs.append(asyncio.run(handler.handler({"id": "readme", **job})))
    assert all(output["images"] for output in outputs)
    assert set(shown_answer) == set(outputs[0])
    assert set(shown_answer["timings"]) == set(outputs[0]["timings"])
    shown, real = GenerateResponse.model_validate(shown_answer), GenerateResponse.model_validate(outputs[0])
    assert real.images[0].startswith(shown.images[0].rstrip("."))
    for field in ("urls", "seeds", "width", "height", "output_format", "model", "warnings"):
        assert getattr(shown, field) == getattr(real, field)

    assert read(base64.b64decode(real.images[0])) == {k: v for k, v in record.items() if k != "file"}

    mistake = {"input": {"prompt": "x", "width": 1000, "height": 512}}
    assert asyncio.run(handler.handler(mistake)) == shown_error


def test_the_tables_name_every_field_code_and_model():
    from imagegen import errors, models
    from imagegen.contract.schemas import EditRequest

    request = section("docs/api.md", "A request")
    for name in ("mode", *EditRequest.model_fields):
        assert re.search(rf"^\|.*`{name}`.*\|.*\|", request, re.MULTILINE), name
    answer = section("docs/api.md", "An answer")
    for name in GenerateResponse.model_fields:
        assert f"`{name}`" in answer
    codes = section("docs/api.md", "Errors")
    for kind in errors.ImageGenError.__subclasses__():
        retryable = "yes" if kind.retryable else "no"
        row = rf"^\| `{kind.code}` \| {kind.status} \|.*\| {retryable} \|$"
        assert re.search(row, codes, re.MULTILINE), kind.code
    table = section("docs/models.md", "Models")
    for spec in models.MODELS.values():
        row = next(line for line in table.splitlines() if line.startswith(f"| `{spec.name}` |"))
        assert spec.licence in row
        assert ("gated" in row) == spec.gated
        assert f"| {spec.num_inference_steps}, {spec.guidance_scale} |" in row
        assert spec.page is None or f"({spec.page})" in row


def test_the_events_of_the_page_are_those_of_a_stream(client):
    shown = set(re.findall(r"^\| `(\w+)` \| ", section("docs/api.md", "Event stream"), re.MULTILINE))
    body = {"prompt": "a red circle", "images": [to_base64(scene("circle", "red", "blue"))], "seed": 1}
    text = client.post("/edit?previews=true", json=body, headers={"Accept": "text/event-stream"}).text
    assert set(re.findall(r"^event: (\w+)$", text, re.MULTILINE)) | {"error"} == shown
    for name, keys in (("queued", {"id", "place"}), ("step", {"step", "total", "seconds_left", "preview"})):
        data = re.search(rf"^event: {name}\ndata: (.*)$", text, re.MULTILINE)[1]
        assert set(json.loads(data)) == keys
        assert all(f'"{key}"' in section("docs/api.md", "Event stream") for key in keys)


def test_the_metrics_of_the_page_are_those_of_the_server(client):
    text = client.get("/metrics").text
    real = set(re.findall(r"^# TYPE (imagegen_\w+) (?:counter|gauge|histogram)$", text, re.MULTILINE))
    real = {name for name in real if not name.endswith("_created")}
    shown = set(re.findall(r"^\| `(imagegen_\w+)", section("docs/operations.md", "Metrics"), re.MULTILINE))
    assert shown == real
