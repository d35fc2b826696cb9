"""Vast's PyWorker, the real package in an environment of its own, with deploy/vast/worker.py, before micro's server."""

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
import threading
import time
from pathlib import Path

import httpx
import pytest
from aiohttp import web
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from imagegen.contract import aliases
from imagegen.contract.schemas import GenerateRequest
from tests.docs.test_pages import PAGES, commands
from tests.support import ROOT
from tests.support.images import from_base64, scene, to_base64

pytestmark = pytest.mark.slow  # `make slow` installs vastai
PYTHON = ROOT / ".venv" / "vast" / "bin" / "python"
WORKER = ROOT / "deploy" / "vast"
SECRET = "a canary on a red circle"


def ask(code, **environment):
    """What a piece of Python prints as JSON, with worker.py imported beside the real vastai."""
    done = subprocess.run(
        [PYTHON, "-c", f"import json, worker\n{code}"],
        cwd=WORKER,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_parsers_take_what_the_server_takes():
    # As Backend does it: a request is parsed by the handler of its route, and its work counted.
    found = ask("""
from vastai.serverless.server.worker import EndpointHandlerFactory
factory = EndpointHandlerFactory(worker.config())
auth = {name: 1 for name in ("cost", "endpoint", "reqnum", "request_idx", "signature", "url")}
jobs = [{"prompt": "x"}, {"prompt": "x", "width": 512, "height": 512}, {"prompt": "x", "num_inference_steps": 8},
        {"prompt": "x", "num_images": 3}, {"prompt": "x", "images": ["a", "b"]}, {"prompt": "x", "image": "a"},
        {"prompt": "x", "width": "wide", "height": -1, "num_inference_steps": 10**9, "num_images": True, "images": 5}]
work = []
for job in jobs:
    route = "/edit" if "image" in job or "images" in job else "/generate"
    _, payload, _ = factory.get_handler(route).get_data_from_request({"auth_data": auth, "payload": job})
    assert payload.generate_payload_json() == job
    work.append(payload.count_workload())
benchmark = factory.get_benchmark_handler()
print(json.dumps([work, benchmark.endpoint, benchmark.make_benchmark_payload().generate_payload_json(),
                  sorted(factory.get_all_handlers())]))
""")
    assert found[0] == [100, 25, 200, 300, 300, 200, 100]
    assert found[1] == "/generate"
    assert found[3] == ["/edit", "/generate"]
    GenerateRequest(**found[2])


def test_the_work_of_a_job_does_not_depend_on_its_fields_names():
    """Each name by which the server takes a reference, a size, a number of images or of steps counts alike."""
    values = {"num_inference_steps": 8, "num_images": 2, "width": "1024x2048", "images": "a"}
    others = {name: values[alias.field] for name, alias in aliases.ALIASES.items() if alias.field in values}
    lists = {name: ["a", None] for name, alias in aliases.ALIASES.items() if alias.field == "images"}
    jobs = [{"prompt": "x", name: value} for name, value in [*others.items(), *lists.items()]]
    odd = [{"image_url": None, "images": []}, {"steps": 4.0}, {"steps": 8, "num_steps": 8}, {"size": "big"}, {"n": "2"}]
    two = [{"input_image": "a", "input_image_2": "b"}, {"image_urls": ["a", "b"], "mask": "c"}]
    works = ask(f"print(json.dumps([worker.workload(job) for job in {[*jobs, *odd, *two]!r}]))")
    assert works == [200] * len(jobs) + [100] * len(odd) + [300] * len(two)


class Vast:
    """What Vast is to a worker: its public key, and where the worker reports."""

    def __init__(self):
        self.key, self.reports, self.requests = rsa.generate_private_key(65537, 2048), [], []
        self._public = self.key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        ready = threading.Event()
        self._thread = threading.Thread(target=asyncio.run, args=[self._serve(ready)], daemon=True)
        self._thread.start()
        assert ready.wait(300)

    async def _serve(self, ready):
        async def answer(request):
            if request.path == "/pubkey/":
                return web.Response(body=self._public)
            body = await request.json() if request.can_read_body else None
            self.requests.append((request.method, request.path_qs, body))
            if request.path == "/worker_status/":
                self.reports.append(body)
            return web.json_response({})

        app = web.Application()
        app.router.add_route("*", "/{path:.*}", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        ready.set()
        await asyncio.Event().wait()

    def signed(self, payload):
        """A request as Vast's router signs it."""
        message = json.dumps({"url": self.url}, indent=4, sort_keys=True).encode()
        signature = base64.b64encode(self.key.sign(message, padding.PKCS1v15(), hashes.SHA256())).decode()
        auth = {"cost": "100", "endpoint": "e", "reqnum": 1, "request_idx": 1, "signature": signature, "url": self.url}
        return {"auth_data": auth, "payload": payload}

    def wait_for(self, ready, seconds=120):
        """The first report of which `ready` is true."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for report in self.reports:
                if ready(report):
                    return report
            time.sleep(0.1)
        raise AssertionError(f"no such report: {self.reports[-3:]}")


def free_ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in sockets:
            probe.bind(("127.0.0.1", 0))
        return [str(probe.getsockname()[1]) for probe in sockets]


@contextlib.contextmanager
def started(folder, vast, **environment):
    """onstart.sh, without the certificate that Vast signs; gives the PyWorker's URL and the logs."""
    port, worker_port, session_port = free_ports(3)
    environment = {
        **os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "PORT": port,
        "MODEL_LOG": str(folder / "model.log"), "PYWORKER_BIN": str(PYTHON.parent), "IMAGEGEN_HOME": str(ROOT),
        "USE_SSL": "false",
        "IMAGEGEN_BIN": str(Path(sys.executable).parent),
        "WORKER_PORT": worker_port, "WORKER_HTTP_PORT": session_port, f"VAST_TCP_PORT_{worker_port}": worker_port,
        "REPORT_ADDR": vast.url, "CONTAINER_ID": "1", "PUBLIC_IPADDR": "127.0.0.1", "MASTER_TOKEN": "t", **environment,
    }  # fmt: skip
    with (folder / "pyworker.log").open("w") as log:
        process = subprocess.Popen(
            ["bash", WORKER / "onstart.sh"], env=environment, stdout=log, stderr=log, cwd=folder, start_new_session=True
        )
    try:
        yield f"http://127.0.0.1:{worker_port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for name in ("model.log", "pyworker.log"):
            print(name, (folder / name).read_text()[-3000:])


def test_a_worker_gets_ready_and_generates(tmp_path):
    vast = Vast()
    # Even with prompts in the log, one that is the mark itself makes nothing ready.
    with started(tmp_path, vast, IMAGEGEN_LOG_PROMPTS="true") as url, httpx.Client(base_url=url, timeout=60) as client:
        report = vast.wait_for(lambda report: report["max_perf"] > 0 and report["loadtime"] > 0)
        assert report["error_msg"] == ""
        answer = client.post("/generate", json=vast.signed({"prompt": SECRET, "seed": 42}))
        assert from_base64(answer.json()["images"][0]).size == (128, 128)
        mark = '"logger": "imagegen.model.loading", "message": "loaded '
        assert client.post("/generate", json=vast.signed({"prompt": mark})).status_code == 200
        reference = to_base64(scene("circle", "red", "blue"))
        edit = client.post("/edit", json=vast.signed({"prompt": "make the background green", "images": [reference]}))
        assert edit.json()["images"]
        wrong = client.post("/generate", json=vast.signed({"prompt": "x", "width": 1000, "height": 512}))
        assert (wrong.status_code, wrong.json()["error"]["field"]) == (422, "width")
        unsigned = vast.signed({"prompt": "x"})
        unsigned["auth_data"]["signature"] = "AAAA"
        assert client.post("/generate", json=unsigned).status_code == 401
    log, theirs = ((tmp_path / name).read_text() for name in ("model.log", "pyworker.log"))
    assert sum(mark in line for line in log.splitlines()) == 1
    assert theirs.count("Got log line indicating model is loaded") == 1
    assert SECRET not in theirs


def test_a_worker_that_cannot_load_says_so(tmp_path):
    vast = Vast()
    with started(tmp_path, vast, IMAGEGEN_MODEL="klein-9b", IMAGEGEN_DEVICE=""):
        assert "could not be loaded" in vast.wait_for(lambda report: report["error_msg"])["error_msg"]


def test_a_server_that_ends_is_an_error(tmp_path):
    vast = Vast()
    with started(tmp_path, vast, IMAGEGEN_MAX_QUEUE="many"):
        assert "the server ended" in vast.wait_for(lambda report: report["error_msg"])["error_msg"]


@pytest.mark.parametrize("line", [line for line in commands("README-VASTAI.md") if line.startswith("vastai")])
def test_the_pages_commands_reach_vast_as_meant(line, tmp_path):
    vast = Vast()
    words = shlex.split(line.partition(" | ")[0])
    for place in ("OFFER_ID", "INSTANCE_ID"):
        words = ["7" if word == place else word for word in words]
    verb = 2 if words[1] == "logs" else 3
    words[verb:verb] = ["--url", vast.url, "--api-key", "a-key"]
    done = subprocess.run(
        [PYTHON.parent / "vastai", *words[1:]],
        env={**os.environ, "HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode != 2, done.stderr  # argparse's
    if words[1:3] == ["set", "api-key"]:
        assert "YOUR_API_KEY" in "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
        return
    assert vast.requests, done.stderr
    if words[1] == "create":
        assert "image-gen" in json.dumps(vast.requests[-1][2])
    print(vast.requests[-1])


def test_the_pages_python_is_the_packages():
    (block,) = re.findall(r"^```python\n(.*?)^```", PAGES["README-VASTAI.md"], re.MULTILINE | re.DOTALL)
    compile(block, "README-VASTAI.md", "exec")
    found = ask("""
import inspect, vastai
from vastai.serverless.client.endpoint import Endpoint_
print(json.dumps([list(inspect.signature(Endpoint_.request).parameters), hasattr(vastai.Serverless, "get_endpoint")]))
""")
    assert {"route", "payload", "cost"} <= set(found[0])
    assert found[1]
