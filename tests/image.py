"""The image: built and run, by docker or by what IMAGE_BUILDER names. `make image-test`; too long for a place among the
others, whose names begin with test_.

A builder takes `DIR TAG [--build-arg ...]` to build, `--run TAG COMMAND` to run, and `--sealed TAG COMMAND` to run
without a network on a read-only root with a tmpfs at /tmp; it keeps its images where buildah finds them.
"""

import base64
import gzip
import io
import json
import os
import shutil
import subprocess
import tarfile

import pytest
from PIL import Image

from tests.builder.test_bake import repository
from tests.support.hub import Hub, serve

#: A build takes longer than a test may: it installs torch.
pytestmark = pytest.mark.timeout(7200)

BUILDER = os.environ.get("IMAGE_BUILDER")
TAG = "image-gen:test"
#: A build of torch without CUDA: a twentieth of the bytes.
TORCH_INDEX = os.environ.get("TORCH_INDEX") or "https://download.pytorch.org/whl/cpu"
SECRET = "hf_canary_of_the_image_test"


def build(tag, secret, *arguments):
    command = [BUILDER, ".", tag] if BUILDER else ["docker", "build", ".", "-t", tag, "--network", "host"]
    arguments = ["--build-arg", f"TORCH_INDEX={TORCH_INDEX}", "--secret", f"id=hf_token,src={secret}", *arguments]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def run(*command, sealed=True, tag=TAG, timeout=300):
    """What a command in the image says; `sealed`: without a network, on a read-only root."""
    if BUILDER:
        start = [BUILDER, "--sealed" if sealed else "--run", tag]
    else:
        seal = ["--network=none", "--read-only", "--tmpfs=/tmp:exec"] if sealed else []
        start = ["docker", "run", "--rm", *seal, tag]
    done = subprocess.run([*start, *command], capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="session")
def secret(tmp_path_factory):
    path = tmp_path_factory.mktemp("secret") / "hf_token"
    path.write_text(SECRET)
    return path


@pytest.fixture(scope="session", autouse=True)
def built(secret):
    build(TAG, secret, "--build-arg", "MODEL=micro")


def save(tag, path):
    """The image as one file: its layers, configuration and history."""
    if BUILDER:
        command = ["buildah", "push", "-q", tag, f"docker-archive:{path}"]
        subprocess.run(command, check=True, env={**os.environ, "STORAGE_DRIVER": "vfs"})
    else:
        subprocess.run(["docker", "save", tag, "-o", path], check=True)
    return path


def holds(path, text):
    """Whether a file holds some bytes, in whatever is packed in it."""
    sought, tail = text.encode(), b""
    with tarfile.open(path) as archive:
        for member in archive:
            stream = archive.extractfile(member)
            if stream is None:
                continue
            if stream.read(2) == b"\x1f\x8b":  # docker may save layers as they are pushed
                stream.seek(0)
                stream = gzip.GzipFile(fileobj=stream)
            stream.seek(0)
            while block := stream.read(1 << 24):
                if sought in tail + block:
                    return True
                tail = block[-len(sought) :]
    return False


def test_the_job_of_the_readme_is_generated_on_a_sealed_machine():
    output = run("sh", "-c", "python handler.py --test_input && base64 -w0 /tmp/outputs/micro-42.png")
    said, _, picture = output.rpartition("\n")
    assert "/tmp/outputs/micro-42.png  128x128  seed 42" in said
    drawn = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB")
    red, _, blue = drawn.getpixel((64, 64))
    assert red > 150 > blue, "a red circle"
    red, _, blue = drawn.getpixel((4, 4))
    assert blue > 150 > red, "on a blue background"


SERVE = """
import base64, json, os, signal, subprocess, sys, time, urllib.error, urllib.request
PORT = sys.argv[1]
os.environ["PORT"] = PORT
def ask(path, body=None):
    request = urllib.request.Request(f"http://127.0.0.1:{PORT}{path}", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)
begun = time.monotonic()
early = subprocess.run([sys.executable, "-m", "imagegen", "health"], stdout=subprocess.DEVNULL).returncode
server = subprocess.Popen([sys.executable, "-m", "imagegen"])
health = {}
while health.get("status") != "ready" and time.monotonic() - begun < 200:
    time.sleep(0.1)
    try:
        health = ask("/health")
    except urllib.error.URLError:
        pass
answer = ask("/generate", json.dumps({"prompt": "a red circle on a blue background", "seed": 42}).encode())
seconds = time.monotonic() - begun
healthy = subprocess.run([sys.executable, "-m", "imagegen", "health"], stdout=subprocess.DEVNULL).returncode
server.send_signal(signal.SIGTERM)
print(json.dumps({"uid": os.getuid(), "health": health, "images": answer["images"], "healthcheck": [early, healthy],
                  "status": server.wait(60), "seconds": seconds}))
"""


def test_the_server_is_ready_generates_and_ends():
    # A builder's sealed machine has no loopback either.
    answer = json.loads(run("python", "-c", SERVE, "17000", sealed=not BUILDER).splitlines()[-1])
    print(f"\nfrom the start in the container to the first picture over HTTP: {answer['seconds']:.1f} s")
    assert answer["uid"] == 10001
    assert answer["health"]["model"] == "micro"
    assert Image.open(io.BytesIO(base64.b64decode(answer["images"][0]))).size == (128, 128)
    assert answer["healthcheck"] == [1, 0]
    assert answer["status"] == 0


SEALED = """
import asyncio, httpx
from imagegen.server.main import app
async def main():
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=200) as client:
            while (health := (await client.get("/health")).json())["status"] != "ready":
                assert health["status"] in ("starting", "loading"), health
                await asyncio.sleep(0.1)
            answer = await client.post("/generate", json={"prompt": "a green star"})
            print(answer.status_code, len(answer.json()["images"]))
asyncio.run(main())
"""


def test_the_server_generates_on_a_sealed_machine():
    assert run("python", "-c", SEALED).splitlines()[-1] == "200 1"


def test_nothing_in_it_can_be_changed_by_the_worker():
    script = """
import os, pathlib
assert os.getuid() == 10001, os.getuid()
for place in ("/app", "/opt/venv", "/usr", "/etc", "/"):
    for folder, _, _ in os.walk(place) if place in ("/app",) else [(place, [], [])]:
        assert not os.access(folder, os.W_OK), folder
print(os.access(os.environ["HF_HOME"], os.W_OK), os.environ["HOME"])
"""
    assert run("python", "-c", script, sealed=False).split() == ["True", "/tmp"]


def test_code_is_compiled_and_what_it_was_built_from_stays_outside():
    listed = run("find", "/app", "/opt/huggingface", "-type", "f").split()
    assert "/app/imagegen/engine/__pycache__/service.cpython-311.pyc" in listed
    assert "/app/imagegen/micro/model_index.json" in listed
    assert not [path for path in listed if "/tests/" in path or "/.git" in path or "/builder/micro/" in path]
    assert run("cat", "/app/.env") == "IMAGEGEN_MODEL=micro\n"


def test_the_secret_is_nowhere_in_the_image(tmp_path):
    archive = save(TAG, tmp_path / "image.tar")
    assert holds(archive, "IMAGEGEN_MODEL=micro"), "this finds what is there"
    assert not holds(archive, SECRET)


def test_a_gated_model_is_baked_with_the_secret_and_without_leaving_it(secret, tmp_path):
    """klein-9b as far as the hub's stand-in can say; its weights are the miniature's."""
    hub = Hub(repository(tmp_path))
    hub.tokens = {SECRET: 200}
    with serve(hub) as url:
        build("image-gen:baked", secret, "--build-arg", "PRECISION=fp8", "--build-arg", f"HF_ENDPOINT={url}")
    assert len([name for name, _ in hub.gets if name.endswith(".safetensors")]) == 4
    check = "cat /app/.env && python -m imagegen.weights.manifest /opt/huggingface/hub/models--*/snapshots/*"
    assert run("sh", "-c", check, tag="image-gen:baked") == "IMAGEGEN_MODEL=klein-9b\n"
    script = """
from imagegen.models import get_model
from imagegen.weights.sources import find_weights
from imagegen.settings import get_settings
print(find_weights(get_model(get_settings().model), get_settings()))
"""
    assert "/snapshots/" in run("python", "-c", script, tag="image-gen:baked")
    assert not holds(save("image-gen:baked", tmp_path / "image.tar"), SECRET)


@pytest.fixture(scope="session", autouse=True)
def _tools():
    assert BUILDER or shutil.which("docker"), "docker, or a builder that IMAGE_BUILDER names"
