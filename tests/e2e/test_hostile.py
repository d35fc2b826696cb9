"""More than a thousand broken and hostile images through every endpoint.

Each gives an image or a typed error; no process dies, and memory stays.
"""

import asyncio
import io
import resource
import signal
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from PIL import Image

from imagegen.errors import ImageGenError
from imagegen.inputs import png
from imagegen.inputs.decoders import Decoders
from imagegen.runpod import handler
from tests.e2e.test_server import running
from tests.support import until
from tests.support.hostile import GOOD, pictures, slow
from tests.support.images import from_base64, to_base64, to_bytes

PICTURES = dict(pictures())
ALLOWED = {"bad_reference", "payload_too_large"}
FIELDS = {"prompt": "make it green", "width": 64, "height": 64, "num_inference_steps": 1, "seed": 1}
#: What the model itself needs for the largest references is no growth.
LARGE = [to_bytes(Image.effect_noise(size, 50)) for size in ((1024, 1024), (2896, 362), (362, 2896))]
#: A promise is 2 s; the machine that tests may be busy.
SECONDS, MEGABYTES = 30, 100


def megabytes(pid="self"):
    """Resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


def test_there_are_enough():
    assert len(PICTURES) >= 1000
    assert len(set(PICTURES.values())) > 900


@pytest.fixture(scope="module")
def decoders():
    made = Decoders()
    yield made
    made.close()


def comparable(name):
    """A file as Pillow takes it: a JPEG with the end that may be missing, a PNG without the chunks that are not read,
    whose lengths and checksums do not matter."""
    data = PICTURES[name]
    return png.read(data).data if data.startswith(png.SIGNATURE) else data + b"\xff\xd9"


def load(decoders, name):
    """Loads an image with a decoder alone; the code of the error, or "loaded"."""
    try:
        loaded = decoders.submit(PICTURES[name], "images[0]", 20_000_000).result().image
    except ImageGenError as error:
        refused = error
    else:
        assert loaded.mode == "RGB" and loaded.width % 16 == loaded.height % 16 == 0, name
        with Image.open(io.BytesIO(comparable(name))) as plain:
            plain.load()  # what passes for an image is one
        return "loaded"
    assert refused.code in ALLOWED and refused.field == "images[0]" and len(refused.message) < 120, name
    assert name not in GOOD
    return refused.code


def load_all(decoders, names, capsys):
    outcomes, slowest, before = Counter(), (0.0, ""), megabytes()
    for name in names:
        begun = time.perf_counter()
        outcomes[load(decoders, name)] += 1
        slowest = max(slowest, (time.perf_counter() - begun, name))
    grown = megabytes() - before
    with capsys.disabled():
        print(f"\n{len(names)} pictures: {dict(outcomes)}, slowest {slowest[0]:.2f} s ({slowest[1]}), {grown:+.0f} MB")
    assert grown <= MEGABYTES
    assert slowest[0] < SECONDS
    return outcomes


@pytest.mark.slow  # hundreds of files at each endpoint
def test_each_is_an_image_or_a_typed_error(decoders, capsys):
    outcomes = load_all(decoders, list(PICTURES), capsys)
    assert outcomes["loaded"] > len(GOOD) and outcomes["bad_reference"] > len(PICTURES) / 3


def test_a_part_of_them_in_every_run(decoders, capsys):
    assert load_all(decoders, list(PICTURES)[::5], capsys)["bad_reference"] > 100


def judge(name, code, body, images):
    """What an endpoint answered: images, or an error of the contract."""
    if code == 200:
        assert from_base64(images[0]).size == (64, 64), name
        return "drawn"
    assert code in (200, 400, 413, 422), (name, code, body)
    error = body["error"] if isinstance(body["error"], dict) else body
    assert error["code"] in ALLOWED | {"invalid_input"}, (name, body)
    return error["code"]


@pytest.mark.slow  # hundreds of files at each endpoint
def test_every_http_endpoint_answers_each(tmp_path, capsys):
    """JSON, a form with a file, OpenAI's edits: against a server in a process of its own, whose memory is looked at."""
    outcomes, slowest = Counter(), (0.0, "", "")
    with running(tmp_path, "-m", "imagegen") as (process, url), httpx.Client(base_url=url, timeout=60) as client:

        def ask(endpoint, data):
            fields = {name: str(value) for name, value in FIELDS.items()}
            if endpoint == "json":
                answer = client.post("/edit", json={**FIELDS, "image": to_base64(data)})
                return answer, answer.json().get("images")
            if endpoint == "form":
                answer = client.post("/edit", data=fields, files={"image": ("a.webp", data, "image/webp")})
                return answer, answer.json().get("images")
            fields = {"prompt": "make it green", "seed": "1", "size": "64x64"}
            answer = client.post("/v1/images/edits", data=fields, files={"image": ("a.png", data, "image/png")})
            return answer, [item["b64_json"] for item in answer.json().get("data", [])]

        for endpoint in ("json", "form", "openai"):
            for data in LARGE:
                ask(endpoint, data)
        before = megabytes(process.pid)
        for name, data in PICTURES.items():
            for endpoint in ("json", "form", "openai"):
                begun = time.perf_counter()
                answer, images = ask(endpoint, data)
                slowest = max(slowest, (time.perf_counter() - begun, endpoint, name))
                outcomes[endpoint, judge(name, answer.status_code, answer.json(), images)] += 1
        grown = megabytes(process.pid) - before
        assert process.poll() is None
        assert ask("json", GOOD["jpeg"])[0].status_code == 200
    with capsys.disabled():
        print(f"\n{dict(outcomes)}, slowest {slowest}, +{grown:.0f} MB")
    for endpoint in ("json", "form", "openai"):
        assert outcomes[endpoint, "drawn"] > len(GOOD)
    assert grown <= MEGABYTES
    assert slowest[0] < SECONDS


@pytest.mark.slow  # hundreds of files at each endpoint
def test_runpods_handler_answers_each(service, monkeypatch, capsys):
    monkeypatch.setattr(handler, "service", lambda: service)
    outcomes, slowest = Counter(), (0.0, "")
    with asyncio.Runner() as runner:

        def ask(value):
            return runner.run(handler.handler({"id": "a-job", "input": {**FIELDS, "image": value}}))

        for data in LARGE:
            ask(to_base64(data))
        before = megabytes()
        for name, data in PICTURES.items():
            begun = time.perf_counter()
            answer = ask(to_base64(data))
            slowest = max(slowest, (time.perf_counter() - begun, name))
            outcomes[judge(name, 422 if "error" in answer else 200, answer, answer.get("images"))] += 1
        grown = megabytes() - before
        assert "error" not in ask(to_base64(GOOD["jpeg"]))
    with capsys.disabled():
        print(f"\n{dict(outcomes)}, slowest {slowest}, +{grown:.0f} MB")
    assert outcomes["drawn"] > len(GOOD)
    assert grown <= MEGABYTES
    assert slowest[0] < SECONDS


@pytest.mark.slow  # a process, and decoders that are busy for seconds
def test_sigterm_ends_a_server_whose_decoders_are_busy(tmp_path):
    """With images that would take minutes in a thread: their job is answered before its time for decoding is over, and
    nothing of the server remains."""
    body = {**FIELDS, "images": [to_base64(slow("PNG"))] * 4}
    with running(tmp_path, "-m", "imagegen") as (process, url), ThreadPoolExecutor() as threads:
        job = threads.submit(httpx.post, f"{url}/edit", json=body, timeout=120)
        until(lambda: len(descendants(process.pid)) > 4)
        left = descendants(process.pid)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
        answer = job.result()
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_ready")
    until(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in left))


def descendants(pid):
    found = [int(number) for number in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    for thread in Path(f"/proc/{pid}/task").iterdir():
        found += [int(number) for number in (thread / "children").read_text().split()]
    return sorted({*found, *(below for child in set(found) for below in descendants(child))})
