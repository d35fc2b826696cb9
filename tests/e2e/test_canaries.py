"""Canaries in all that is private, through every endpoint as a process, at the loudest level: none sings in a log or an
error, whether the job is generated, refused, or meets a bug."""

import json
import os
import subprocess
import sys

import httpx
import pytest
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from tests.e2e.test_server import running
from tests.support import ROOT
from tests.support.images import scene, to_base64

#: Whatever a library can be asked to tell, it is asked to.
LOUD = {
    "LOG_LEVEL": "DEBUG",
    "RUNPOD_LOG_LEVEL": "DEBUG",
    "RUNPOD_DEBUG_LEVEL": "DEBUG",
    "TRANSFORMERS_VERBOSITY": "debug",
    "DIFFUSERS_VERBOSITY": "debug",
    "HF_DEBUG": "1",
    "PYTHONASYNCIODEBUG": "1",
}
SECRETS = {
    "HUGGING_FACE_TOKEN": "hf_canary0token",
    "IMAGEGEN_API_KEY": "canary-api-key-of-16",
    "RUNPOD_AI_API_KEY": "canary-runpod-key",
    "BUCKET_ENDPOINT_URL": "http://127.0.0.1:9/canary-bucket",
    "BUCKET_ACCESS_KEY_ID": "canary-access-key",
    "BUCKET_SECRET_ACCESS_KEY": "canary-secret-key",
    "IMAGEGEN_PRIVATE_HOSTS": "127.0.0.1:9",  # so that what leads there fails late, with all that is known of it
}
KEY = {"Authorization": "Bearer canary-api-key-of-16"}
S3 = {
    "accessId": "canary-id",
    "accessSecret": "canary-secret",
    "bucketName": "canary",
    "endpointUrl": "http://127.0.0.1:9",
}
URL = "http://canary:canary@127.0.0.1:9/canary.png?X-Amz-Signature=canary&token=canary"


def picture(file_format="PNG"):
    """A good reference whose metadata sing."""
    exif = Image.Exif()
    exif[0x010E] = exif[0x9286] = exif[0x013B] = "canary in exif"
    texts = PngInfo()
    for name in ("Comment", "XML:com.adobe.xmp", "canary"):
        texts.add_itxt(name, "canary in text", zip=True)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes() + b"canary in icc"
    options = {"PNG": {"pnginfo": texts}, "JPEG": {"comment": b"canary", "xmp": b"canary"}, "WEBP": {"xmp": b"canary"}}
    return to_base64(
        scene("circle", "red", "blue"), file_format, exif=exif, icc_profile=profile, **options[file_format]
    )


PROMPT = "a canary xylophone in quicksilver"
BROKEN = to_base64(b"\x89PNG\r\n\x1a\ncanary in a broken picture" * 20)
#: Jobs that are generated, and jobs that are refused for every part of them that is private.
GOOD = [
    {"prompt": PROMPT, "embed_prompt": True},
    {"prompt": PROMPT * 20, "num_images": 2, "output_format": "webp"},
    *({"prompt": PROMPT, "image": picture(kind), "output_format": "jpeg"} for kind in ("PNG", "JPEG", "WEBP")),
    {"prompt": PROMPT, "delivery": "url"},  # the store cannot be reached; the warning must not say where it is
]
BAD = [
    {"prompt": ["canary"]},
    {"prompt": "canary\x00"},
    {"prompt": "canary" * 1000},
    {"prompt": PROMPT, "width": 1000, "height": 512},
    {"prompt": PROMPT, "image": "canary!"},
    {"prompt": PROMPT, "image": BROKEN},
    *({"prompt": PROMPT, "image": url} for url in (URL, URL.replace("canary:canary@", ""), "https://canary.invalid/")),
    {"prompt": PROMPT, "image": "data:image/png,canary"},
    {"prompt": PROMPT, "images": [{"canary": URL}]},
    {"prompt": PROMPT, "timeout": 1, "num_inference_steps": 50, "num_images": 8, "width": 512, "height": 512},
]
#: A bug that repeats what it was given, in the thread that generates.
BUG = """
import sys
from imagegen.model.pipeline import FluxPipeline

def fail(self, prompt):
    try:
        raise KeyError(prompt)
    except KeyError as error:
        raise ValueError(prompt) from error

FluxPipeline.encode_prompt = fail
sys.argv = sys.argv[1:]
"""


def environment(tmp_path, **changes):
    return {**os.environ, **LOUD, **SECRETS, "IMAGEGEN_OUTPUT_DIR": str(tmp_path / "outputs"), **changes}


def sings(text):
    """The lines with a canary. Only the operator's own file name of a setting may hold one, and none does."""
    return [line for line in text.splitlines() if "canary" in line.lower()]


def command_line(tmp_path, job, *before, **changes):
    """`handler.py --test_input` with a job in a file; what it printed."""
    path = tmp_path / "job.json"
    path.write_text(json.dumps(job))
    done = subprocess.run(
        [sys.executable, *before, "handler.py", "--test_input", str(path)],
        cwd=ROOT,
        env=environment(tmp_path, **changes),
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow  # a process for each, which loads the model
@pytest.mark.parametrize(
    ("level", "log_format"),
    [("DEBUG", "plain"), *((level, "json") for level in ("DEBUG", "INFO", "WARNING", "ERROR"))],
)
def test_a_job_of_the_command_line(tmp_path, level, log_format):
    fields = {"prompt": "a red circle", "image": picture(), "embed_prompt": True}
    job = {"id": "a-job", "input": {**fields, "prompt": PROMPT}, "s3Config": S3, "webhook": URL}
    status, printed = command_line(tmp_path, job, LOG_LEVEL=level, IMAGEGEN_LOG_FORMAT=log_format)
    assert status == 0, printed
    said = [line for line in printed.splitlines() if not line.startswith("warning: prompt:")]  # to the caller
    assert not sings("\n".join(said))
    assert ("a-job" in printed) == (level in ("DEBUG", "INFO"))


@pytest.mark.slow  # a process that loads the model
@pytest.mark.parametrize("level", ["DEBUG", "ERROR"])
def test_a_bug_on_the_command_line(tmp_path, level):
    (tmp_path / "bug.py").write_text(BUG + "import handler\nsys.exit(handler.main())")
    job = {"id": "a-job", "input": {"prompt": PROMPT}, "s3Config": S3}
    status, printed = command_line(tmp_path, job, str(tmp_path / "bug.py"), LOG_LEVEL=level, PYTHONPATH=str(ROOT))
    assert status == 1
    assert "internal error" in printed and "encode_prompt" in printed and "ValueError" in printed
    assert not sings(printed)


@pytest.mark.parametrize(
    ("level", "log_format"),
    [
        ("DEBUG", "json"),
        *(pytest.param(one, "plain", marks=pytest.mark.slow) for one in ("DEBUG", "INFO", "WARNING", "ERROR")),
    ],
)
def test_the_http_server(tmp_path, level, log_format):
    changes = {"LOG_LEVEL": level, "IMAGEGEN_LOG_FORMAT": log_format}
    with running(tmp_path, "-m", "imagegen", **environment(tmp_path, **changes)) as (process, url):
        with httpx.Client(base_url=url, headers=KEY, timeout=60) as client:
            drawn = [client.post("/edit" if "image" in job else "/generate", json=job) for job in GOOD]
            refused = [client.post("/edit" if "image" in job else "/generate", json=job) for job in BAD]
            refused += [client.post("/v1/images/generations", json={"prompt": PROMPT, "mask": "canary"})]
            refused += [
                client.post("/generate", content=b'{"prompt": "canary', headers={"Content-Type": "application/json"})
            ]
            refused += [client.get("/nowhere?api_key=canary"), client.get("/health?api_key=canary", headers={})]
            stream = client.post("/generate", json=GOOD[0], headers={"Accept": "text/event-stream"})
        refused.append(httpx.post(f"{url}/generate?key=canary", json=GOOD[0], headers={"X-API-Key": "canary-wrong"}))
        process.terminate()  # a request's line comes after its answer
        assert process.wait(60) == 0
    assert [answer.status_code for answer in [*drawn, stream]] == [200] * (len(GOOD) + 1)
    errors = "\n".join(answer.text for answer in refused)
    warnings = [warning for answer in drawn for warning in answer.json()["warnings"]]
    assert any("object store" in warning for warning in warnings)
    assert not sings("\n".join([errors, *(text for text in warnings if not text.startswith("prompt:"))]))
    log = (tmp_path / "log").read_text()
    assert not sings(log)
    assert not any(image[60:160] in log for answer in drawn for image in answer.json()["images"])
    if log_format == "json":
        # diffusers, asked to be loud, tells what it imports before anyone can stop it.
        lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
        told = {line.get("requestId"): line for line in lines if line["message"] == "request"}
        for answer in [*drawn, *(answer for answer in refused if answer.status_code != 200)]:
            line = told[answer.headers["x-request-id"]]
            assert line["status"] == answer.status_code
            outcome = answer.json()["error"]["code"] if answer.status_code != 200 else "ok"
            assert line["outcome"] == outcome
        drew = told[drawn[1].headers["x-request-id"]]
        assert {
            "mode": "generate",
            "model": "micro",
            "size": "128x128",
            "steps": 4,
            "images": 2,
        }.items() <= drew.items()
        assert drew["timings"]["denoise"] > 0


@pytest.mark.slow  # a process of its own that loads the model
def test_a_bug_in_the_http_server(tmp_path):
    (tmp_path / "bug.py").write_text(BUG + "from imagegen.__main__ import main\nsys.exit(main())")
    changes = {"PYTHONPATH": str(ROOT), "IMAGEGEN_SERVE": "http"}
    with running(tmp_path, str(tmp_path / "bug.py"), "imagegen", **environment(tmp_path, **changes)) as (_, url):
        answer = httpx.post(f"{url}/generate", json={"prompt": PROMPT}, headers=KEY)
    log = (tmp_path / "log").read_text()
    number = answer.json()["error"]["message"].split()[-1]
    assert answer.status_code == 500
    assert number in log and answer.headers["x-request-id"] in log and "KeyError" not in answer.text
    assert not sings(answer.text)
    assert not sings(log)


@pytest.mark.slow  # a process that loads the model
def test_runpods_own_logger(tmp_path):
    """The SDK at its loudest tells every output; through ours it tells that jobs start and end."""
    command = ["handler.py", "--rp_serve_api", "--rp_api_host", "127.0.0.1", "--rp_api_port", "PORT"]
    loudest = {"RUNPOD_ENDPOINT_ID": "an-endpoint", **environment(tmp_path)}
    with running(tmp_path, *command, health="/docs", **loudest) as (_, url):
        jobs = [{"input": job, "s3Config": S3} for job in (*GOOD, *BAD)]
        answers = [httpx.post(f"{url}/runsync", json=job, timeout=60).json() for job in jobs]
    assert [answer["status"] for answer in answers] == ["COMPLETED"] * len(GOOD) + ["FAILED"] * len(BAD)
    assert not sings("\n".join(answer["error"] for answer in answers if "error" in answer))
    log = (tmp_path / "log").read_text()
    assert not sings(log)
    assert answers[0]["output"]["images"][0][60:160] not in log
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    for answer in answers:
        ours = [line for line in lines if line.get("requestId") == answer["id"]]
        assert [line["message"] for line in ours if line["logger"] == "runpod"] == ["Started."]  # and not one more
        assert len([line for line in ours if line["message"] == "request"]) == 1


@pytest.mark.slow  # a process that loads the model
def test_prompts_are_told_where_the_operator_asks_for_it(tmp_path):
    status, printed = command_line(
        tmp_path, {"id": "a-job", "input": {"prompt": PROMPT}}, IMAGEGEN_LOG_PROMPTS="1", LOG_LEVEL="INFO"
    )
    assert status == 0
    assert f'prompt="{PROMPT}"' in printed
