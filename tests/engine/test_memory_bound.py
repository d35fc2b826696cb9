"""The worker's bound on memory, and what is measured against it."""

import concurrent.futures
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from PIL import Image

from imagegen.engine.memory_bound import memory_bound
from imagegen.models import get_model
from tests.support import ROOT, settings, until
from tests.support.images import to_base64

KLEIN = get_model("klein-9b")


def test_the_page_has_the_figures_of_the_default_settings():
    text = (ROOT / "docs" / "operations.md").read_text()
    page = " ".join(text.split())
    table = text.split("| what | GB | less of it |")[1].split("\n\n")[0]
    rows = dict(re.findall(r"^\| ([A-Za-z ]+) \| ([\d.]+) \|", table, re.MULTILINE))
    bound = memory_bound(settings(), KLEIN)
    assert rows == {name: f"{size / 1e9:.1f}" for name, size in bound.items()}
    small = sum(memory_bound(settings(max_queue=4, max_images=2, max_body_mb=30), KLEIN).values())
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert f"use at most {sum(bound.values()) / 1e9:.1f} GB of main memory beside its model" in readme
    assert f"the sum is {small / 1e9:.1f} GB instead of {sum(bound.values()) / 1e9:.1f} GB" in page


@pytest.mark.parametrize(
    ("changes", "smaller"),
    [
        ({"max_body_mb": 20}, "bodies and references of stored jobs"),
        ({"max_reference_mb": 5}, "decoders and downloads"),
        ({"max_queue": 1}, "decoded references"),
        ({"max_images": 1}, "images in delivery and answers of stored jobs"),
        ({"jobs_max_mb": 10}, "stored jobs"),
        ({"prompt_cache_mb": 0}, "embeddings of prompts"),
    ],
)
def test_each_part_is_smaller_with_its_setting(changes, smaller):
    usual, less = memory_bound(settings(), KLEIN), memory_bound(settings(**changes), KLEIN)
    assert {name for name in usual if less[name] < usual[name]} == set(smaller.split(" and "))


def peak(process):
    """Bytes of main memory that a process and its children have had at most, each for itself."""
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    status = Path(f"/proc/{process}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024 + sum(map(peak, map(int, children)))


@pytest.mark.slow  # sends gigabytes over loopback
def test_seventeen_jobs_of_106_mb_at_once_take_less_than_a_gigabyte(tmp_path, free_tcp_port):
    """Each is sent again where it is refused, until its references are decoded; then its work is refused as too much,
    since micro would take minutes for them."""
    noise = to_base64(Image.effect_noise((4460, 4460), 90))  # 19.9 MB as a grey PNG
    body = json.dumps({"prompt": "x", "images": [noise] * 4}).encode()
    assert 100e6 < len(body) < 110e6
    url = f"http://127.0.0.1:{free_tcp_port}"
    environment = {"PORT": str(free_tcp_port), "IMAGEGEN_SERVE": "http", "IMAGEGEN_MAX_MEGAPIXEL_STEPS": "0.001"}
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "imagegen"], cwd=ROOT, env={**os.environ, **environment}, stdout=log, stderr=log
        )

    def is_ready():
        try:
            return httpx.get(f"{url}/health", timeout=20).status_code == 200
        except httpx.TransportError:
            return False

    def send(_):
        refused = 0
        while True:
            try:
                headers = {"Content-Type": "application/json"}
                answer = httpx.post(f"{url}/edit", content=body, headers=headers, timeout=120)
                # A busy machine can miss a decoder's deadline.
                if answer.status_code != 429 and "s to decode" not in answer.text:
                    return answer.json()["error"]["field"], refused
            except httpx.TransportError:  # closed before all of the body was sent
                pass
            refused += 1
            time.sleep(1)

    try:
        until(is_ready)
        at_rest = peak(server.pid)
        with concurrent.futures.ThreadPoolExecutor(17) as pool:
            results = list(pool.map(send, range(17)))
        taken = peak(server.pid) - at_rest
        print(f"{taken / 1e6:.0f} MB more than at rest; {sum(refused for _, refused in results)} tries were refused")
        assert {field for field, _ in results} == {"num_inference_steps"}
        assert taken < 1e9
    finally:
        server.kill()
        server.wait()
