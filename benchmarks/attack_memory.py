"""All that callers may have at one time, against the bound on memory of docs/operations.md. Part of
`benchmarks.attack`."""

from __future__ import annotations

import contextlib
import functools
import http.server
import itertools
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from benchmarks.attacked import KEYS, Attacked, Peak, Row, server
from imagegen.engine.memory_bound import memory_bound
from imagegen.models import get_model
from imagegen.settings import Settings
from tests.support.images import to_base64, to_bytes

#: Less than the defaults, for a machine of 16 GB.
LIMITS = {"max_queue": 3, "max_images": 2, "max_body_mb": 60, "max_reference_mb": 15, "prompt_cache_mb": 0}
#: Twelve clients of two callers: more than there are places.
CLIENTS = 12
#: Pixels of a photo's side: nearly the largest; and where edits must end within half a minute.
SIDE, SHORT_SIDE = 5900, 1500


def rows(short: bool) -> Iterator[Row]:
    """Photos with masks, references by URL, large answers that nobody reads, and images that are slow, all at once."""
    environment = {f"IMAGEGEN_{name.upper()}": str(value) for name, value in LIMITS.items()}
    environment["IMAGEGEN_PRIVATE_HOSTS"] = "127.0.0.1"
    bound = sum(memory_bound(Settings(_env_file=None, **LIMITS), get_model("micro")).values()) / 1e6  # type: ignore[arg-type]
    with noise_server() as url, server(keys=True, **environment) as attacked:
        attacked.edit(to_bytes(Image.new("RGB", (64, 64))))
        bodies = [json.dumps(body).encode() for body in jobs(url, SHORT_SIDE if short else SIDE)]
        end = time.monotonic() + (30 if short else 90)
        with Peak(attacked.process.pid) as peak, ThreadPoolExecutor(CLIENTS) as threads:
            counts = list(threads.map(lambda number: send(attacked, bodies, number, end), range(CLIENTS)))
        outcome, _ = attacked.generate()
    attack = "photos with masks, references by URL and answers that nobody reads, at every limit"
    yield Row(attack, f"{peak.grown:+.0f} MB", f"under the computed bound of {bound:.0f} MB", peak.grown < bound)
    yield Row(
        f"{attack}: what is answered",
        f"{sum(counts)} with an image; the next job: {outcome}",
        "some meanwhile, and the next job",
        sum(counts) > 0 and outcome == "image",
    )


def jobs(url: str, side: int) -> list[dict[str, object]]:
    """Bodies of edits, each large in another way.

    Args:
        url: of a reference image.
        side: pixels of a photo's side.
    """
    noise = np.random.default_rng(1).integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)
    photo = to_base64(Image.fromarray(noise).resize((side, side)), "JPEG", quality=80)
    half = Image.new("L", (side, side))
    half.paste(255, (0, 0, side // 2, side))
    grey = to_base64(Image.effect_noise((3700, 3700), 90))  # 14 MB as a PNG
    common = {"prompt": "x", "num_inference_steps": 1, "num_images": 2}
    return [
        {**common, "images": [photo], "mask": to_base64(half), "mask_grow": 512},
        {**common, "images": [photo], "preserve": "auto"},
        {**common, "images": [url] * 4, "width": 64, "height": 64},
        {**common, "images": [grey] * 3, "width": 64, "height": 64},
    ]


def send(attacked: Attacked, bodies: list[bytes], number: int, end: float) -> int:
    """Sends one after the other until the end, and reads every third answer; how many of those were images."""
    passed = 0
    with contextlib.ExitStack() as unread:
        for turn in itertools.count(number):
            if time.monotonic() > end:
                return passed
            body, key = bodies[turn % len(bodies)], list(KEYS.values())[number % 2]
            head = f"POST /edit HTTP/1.1\r\nHost: localhost\r\nX-API-Key: {key}\r\nConnection: close\r\n"
            head += "Content-Type: application/json\r\n"
            with contextlib.suppress(OSError):
                client = socket.create_connection((attacked.host, attacked.port), timeout=10)
                client.settimeout(max(1, end - time.monotonic()))
                unread.enter_context(client)
                client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
                status = client.recv(12)
                passed += status.endswith(b"200")
                if not status.endswith(b"200"):
                    client.close()
                    time.sleep(0.5)
                elif turn % 3 == 0:
                    while client.recv(1_000_000) and time.monotonic() < end:
                        pass
    raise AssertionError


@contextlib.contextmanager
def noise_server() -> Iterator[str]:
    """The URL of a PNG of 14 MB."""
    data = to_bytes(Image.effect_noise((3700, 3700), 90))

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler))
    thread = threading.Thread(target=listening.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.server_address[1]}/noise.png"
    finally:
        listening.shutdown()
