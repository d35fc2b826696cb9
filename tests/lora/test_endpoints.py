"""LoRA adapters at every endpoint: the same job is the same image, and the answer and the image's record name them."""

import asyncio
import io
import json
import os
import subprocess
import sys

import httpx
import openai
import pytest
from PIL import ExifTags, Image

from imagegen.cli.main import main
from imagegen.runpod import handler
from imagegen.settings import get_settings
from tests.jobs.test_bfl import poll
from tests.jobs.test_jobs import ended
from tests.server.conftest import serving
from tests.support import ROOT
from tests.support.images import from_base64, scene, to_base64, to_bytes
from tests.support.loras import SHIPPED

KEY = "a-key-of-the-tests"
JOB = {"prompt": "a red circle on a blue background", "seed": 42, "width": 64, "height": 64}
LORAS = [{"name": "frame", "scale": 0.75}, {"name": "ring", "scale": 1.0}]
REFERENCE = scene("circle", "red", "blue")
EDIT = {**JOB, "prompt": "make the circle green"}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """(base URL, service) of a worker with the miniature's adapters, and a broken one."""
    folder = tmp_path_factory.mktemp("loras")
    (folder / "short.safetensors").write_bytes((SHIPPED / "frame.safetensors").read_bytes()[:-5])
    options = {"loras": f"{SHIPPED},{folder}", "lora_rank": 16, "jobs_dir": tmp_path_factory.mktemp("jobs")}
    with serving(api_key=KEY, **options) as (url, service):
        service.start().result()
        yield url, service


@pytest.fixture(scope="module")
def client(server):
    with httpx.Client(base_url=server[0], timeout=60, headers={"Authorization": f"Bearer {KEY}"}) as open_client:
        yield open_client


@pytest.fixture(scope="module")
def ai(server):
    return openai.OpenAI(base_url=f"{server[0]}/v1", api_key=KEY, max_retries=0)


def record(image):
    return json.loads(image.getexif()[ExifTags.Base.ImageDescription])


def pixels(image, used=LORAS):
    """An image's pixels; its record names the adapters."""
    assert record(image).get("loras", []) == used
    return image.convert("RGB").tobytes()


@pytest.fixture(scope="module")
def wanted(client):
    """What the worker generates with the adapters, and what without; of an edit too."""
    made = {}
    for name, job in (("generate", JOB), ("edit", {**EDIT, "image": to_base64(REFERENCE)})):
        answer = client.post(f"/{name}", json={**job, "loras": LORAS}).json()
        assert answer["loras"] == LORAS
        made[name] = pixels(from_base64(answer["images"][0]))
        bare = client.post(f"/{name}", json=job).json()
        assert bare["loras"] == []
        assert pixels(from_base64(bare["images"][0]), []) != made[name]
    return made


def test_a_form_has_the_list_s_json(client, wanted):
    fields = {**{name: str(value) for name, value in EDIT.items()}, "loras": json.dumps(LORAS)}
    answer = client.post("/edit", data=fields, files={"image": ("a.png", to_bytes(REFERENCE), "image/png")}).json()
    assert answer["loras"] == LORAS
    assert pixels(from_base64(answer["images"][0])) == wanted["edit"]


def test_an_image_alone_has_them_in_its_record(client, wanted):
    image = client.post("/generate", json={**JOB, "loras": LORAS}, headers={"Accept": "image/png"})
    assert pixels(Image.open(io.BytesIO(image.content))) == wanted["generate"]


def test_a_stream_ends_with_them(client, wanted):
    with client.stream(
        "POST", "/generate", json={**JOB, "loras": LORAS}, headers={"Accept": "text/event-stream"}
    ) as response:
        last = json.loads([line for line in response.iter_lines() if line.startswith("data: ")][-1][6:])
    assert last["loras"] == LORAS
    assert pixels(from_base64(last["images"][0])) == wanted["generate"]


def test_openai_s_client_generates(ai, wanted):
    answer = ai.images.generate(prompt=JOB["prompt"], size="64x64", extra_body={"seed": 42, "loras": LORAS})
    assert answer.model_extra["loras"] == LORAS
    assert pixels(from_base64(answer.data[0].b64_json)) == wanted["generate"]


def test_openai_s_client_edits_by_a_form(ai, wanted):
    """The client writes a list of objects as `loras[][name]`; a form has the list's JSON."""
    answer = ai.images.edit(
        image=("a.png", to_bytes(REFERENCE), "image/png"),
        prompt=EDIT["prompt"],
        size="64x64",
        extra_body={"seed": 42, "loras": json.dumps(LORAS)},
    )
    assert answer.model_extra["loras"] == LORAS
    assert pixels(from_base64(answer.data[0].b64_json)) == wanted["edit"]


def test_openai_s_client_streams(ai, wanted):
    stream = ai.images.generate(
        prompt=JOB["prompt"], size="64x64", stream=True, partial_images=1, extra_body={"seed": 42, "loras": LORAS}
    )
    *_, last = stream
    assert last.model_extra["loras"] == LORAS
    assert pixels(from_base64(last.b64_json)) == wanted["generate"]


def test_a_job_that_waits(client, wanted):
    accepted = client.post("/jobs", json={**JOB, "loras": LORAS})
    done = ended(client, accepted.json()["id"])
    assert done["input"]["loras"] == LORAS
    assert done["result"]["loras"] == LORAS
    image = client.get(done["result"]["urls"][0])
    assert pixels(Image.open(io.BytesIO(image.content))) == wanted["generate"]


def test_bfl_s_routes(client, wanted):
    fields = {**JOB, "output_format": "png", "loras": LORAS}
    accepted = client.post("/v1/flux-2-klein-9b", json=fields, headers={"x-key": KEY}).json()
    done = poll(accepted["polling_url"])
    assert done["status"] == "Ready", done
    assert done["result"]["loras"] == LORAS
    image = client.get(done["result"]["sample"])
    assert pixels(Image.open(io.BytesIO(image.content))) == wanted["generate"]


def test_runpod_s_handler(server, monkeypatch, wanted):
    monkeypatch.setattr(handler, "service", lambda: server[1])
    output = asyncio.run(handler.handler({"id": "a", "input": {**JOB, "mode": "generate", "loras": LORAS}}))
    assert output["loras"] == LORAS
    assert pixels(from_base64(output["images"][0])) == wanted["generate"]
    edit = {**EDIT, "mode": "edit", "image": to_base64(REFERENCE), "loras": LORAS}
    assert pixels(from_base64(asyncio.run(handler.handler({"input": edit}))["images"][0])) == wanted["edit"]
    theirs = {"prompt": JOB["prompt"], "size": "64x64", "seed": 42, "loras": LORAS}
    output = asyncio.run(handler.handler({"input": {"openai_route": "/v1/images/generations", "openai_input": theirs}}))
    assert output["loras"] == LORAS
    assert pixels(from_base64(output["data"][0]["b64_json"])) == wanted["generate"]
    wrong = asyncio.run(handler.handler({"input": {**JOB, "loras": [{"name": "brand"}]}}))
    assert (wrong["code"], wrong["field"]) == ("invalid_input", "loras[0].name")


def command(*arguments):
    get_settings.cache_clear()
    return main(["generate", str(JOB["prompt"]), "--seed", "42", "--width", "64", "--height", "64", *arguments])


def test_the_command_line_at_a_server(server, tmp_path, monkeypatch, capsys, wanted):
    monkeypatch.chdir(tmp_path)
    there = ["--url", server[0], "--api-key", KEY]
    assert command("--lora", "frame:0.75", "--lora", "ring", "-o", "a.png", *there) == 0
    assert capsys.readouterr().out.splitlines()[1:3] == ["lora frame  scale 0.75", "lora ring  scale 1"]
    with Image.open("a.png") as image:
        assert pixels(image) == wanted["generate"]
    assert command("--lora", "brand:-1", *there) == 1
    assert "loras[0].name: 'brand' is not known; known are frame, ring" in capsys.readouterr().err
    assert command("--lora", "frame:5", *there) == 1
    assert "loras[0].scale: 5.0 is out of bounds (-4 to 4)" in capsys.readouterr().err


@pytest.mark.slow  # a process that loads the model
def test_the_command_line_with_a_model_of_its_own(tmp_path, wanted):
    chosen = {"MODEL": "micro", "DEVICE": "cpu", "LORAS": str(SHIPPED), "LORA_RANK": "16", "OUTPUT_DIR": str(tmp_path)}
    job = [
        str(JOB["prompt"]),
        "--seed",
        "42",
        "--width",
        "64",
        "--height",
        "64",
        "--lora",
        "frame:.75",
        "--lora",
        "ring:1",
    ]
    subprocess.run(
        [sys.executable, "-m", "imagegen", "generate", *job, "-o", tmp_path / "a.png"],
        env={**os.environ, **{f"IMAGEGEN_{name}": value for name, value in chosen.items()}},
        cwd=ROOT,
        check=True,
    )
    with Image.open(tmp_path / "a.png") as image:
        assert pixels(image) == wanted["generate"]


@pytest.mark.parametrize("route", ["/generate", "/jobs", "/v1/images/generations", "/v1/flux-2-klein-9b"])
def test_a_broken_adapter_is_an_error_of_the_contract_at_each(client, route):
    answer = client.post(route, json={"prompt": "a circle", "loras": [{"name": "short"}]}, headers={"x-key": KEY})
    if route == "/jobs":
        error = ended(client, answer.json()["id"])["error"]
        assert (error["code"], error["field"]) == ("bad_lora", "loras[0].name")
    elif "flux" in route:
        assert poll(answer.json()["polling_url"])["status"] == "Error"
    else:
        assert answer.status_code == (400 if route.startswith("/v1") else 422)  # OpenAI's own
        assert "short has 182" in answer.text


def test_what_is_loaded_is_listed(client):
    assert client.get("/capabilities").json()["loras"] == [
        {"name": "frame", "rank": 5, "layers": 32},
        {"name": "ring", "rank": 5, "layers": 32},
        {"name": "short", "fault": "has 182299 bytes of 182304"},
    ]
