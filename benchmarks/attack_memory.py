"""All that callers may have at one time, against the bound on memory of docs/operations.md. Part of
`benchmarks.attack`.

A server with less than the default limits gets as many edits of the largest photos, bodies, downloads, adapters and
stored jobs as it takes, by two callers; some never read their answers. It ends once one job of each kind has had its
answer, after a minute at least.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import http.server
import ipaddress
import json
import re
import socket
import ssl
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
from PIL import Image

from benchmarks import attacked
from benchmarks.attacked import KEYS, Attacked, Peak, Row, server
from imagegen.engine.memory_bound import memory_bound
from imagegen.models import get_model
from tests.support import settings
from tests.support.images import to_base64, to_bytes
from tests.support.loras import random_tensors, save

#: Less than the defaults, for a machine of 16 GB.
LIMITS = {
    "max_queue": 3, "max_images": 2, "max_body_mb": 60, "max_reference_mb": 15, "prompt_cache_mb": 16,
    "lora_hosts": "127.0.0.1", "lora_cache_mb": 30,
}  # fmt: skip
#: Pixels of a photo's side: nearly the largest; and where few seconds are wanted.
SIDE, SHORT_SIDE = 5900, 1500
#: Seconds of the attack: at least, and until each kind of job has had its answer.
LEAST, MOST = 60, 240
SHORT_LEAST, SHORT_MOST = 10, 30
ADAPTERS = 8


class Kind(NamedTuple):
    """One kind of job: where it is sent, and bodies that take turns."""

    path: str
    bodies: list[bytes]


class Attack:
    """What all clients know.

    Args:
        attacked: the server.
        kinds: of jobs, by their names.
        least, most: seconds that it takes.
    """

    def __init__(self, attacked: Attacked, kinds: dict[str, Kind], least: float, most: float) -> None:
        self.attacked, self.kinds = attacked, kinds
        self.answered: Counter[str] = Counter()
        #: The most that was taken of each limit, as a part of it.
        self.taken: dict[str, float] = {}
        self._least, self._end = time.monotonic() + least, time.monotonic() + most

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        now = time.monotonic()
        return now > self._end or (now > self._least and all(self.answered[name] for name in self.kinds))

    def read(self, number: int) -> None:
        """A client that sends one kind of job again and again, and reads each answer."""
        name = list(self.kinds)[number % len(self.kinds)]
        kind = self.kinds[name]
        with httpx.Client(base_url=self.attacked.url, headers=key_of(number), timeout=MOST) as client:
            while not self.over:
                body = kind.bodies[sum(self.answered.values()) % len(kind.bodies)]
                with contextlib.suppress(httpx.HTTPError):
                    done = self._answered(client, kind.path, body)
                    self.answered[name] += done
                    time.sleep(0 if done else 0.5)

    def _answered(self, client: httpx.Client, path: str, body: bytes) -> bool:
        """Sends a job: whether it had an image for its answer."""
        with client.stream("POST", path, content=body, headers={"Content-Type": "application/json"}) as answer:
            if answer.status_code != 202:
                return answer.status_code == 200 and self._read_all(answer)
            job = f"/jobs/{json.loads(answer.read())['id']}"
        while client.get(job).json()["status"] in ("queued", "running") and not self.over:
            time.sleep(1)
        with client.stream("GET", f"{job}/images/0") as image:
            whole = image.status_code == 200 and self._read_all(image)
        client.delete(job)
        return whole

    def _read_all(self, answer: httpx.Response) -> bool:
        return all(not self.over for _ in answer.iter_raw())

    def never_read(self, number: int) -> None:
        """A client that sends jobs with large answers, and reads none: the server has to end each connection."""
        kind = list(self.kinds.values())[number % 2]
        head = f"POST {kind.path} HTTP/1.1\r\nHost: localhost\r\nX-API-Key: {key_of(number)['X-API-Key']}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(kind.bodies[0])}\r\n\r\n"
        while not self.over:
            with (
                contextlib.suppress(OSError),
                socket.create_connection((self.attacked.host, self.attacked.port)) as client,
            ):
                client.settimeout(5)
                client.sendall(head.encode() + kind.bodies[0])
                while not self.over:
                    with contextlib.suppress(TimeoutError):
                        if not client.recv(12, socket.MSG_PEEK).endswith(b"200"):
                            break
                    time.sleep(1)
            time.sleep(1)

    def watch(self) -> None:
        """Notes how much of each limit is taken."""
        sample = re.compile(r'^imagegen_(in_use|limit)\{limit="(\w+)"\} (\S+)', re.MULTILINE)
        while not self.over:
            with contextlib.suppress(httpx.HTTPError):
                text = httpx.get(f"{self.attacked.url}/metrics", headers=key_of(0), timeout=20).text
                found = {(kind, limit): float(value) for kind, limit, value in sample.findall(text)}
                for (kind, limit), value in found.items():
                    if kind == "in_use":
                        part = value / found["limit", limit]
                        self.taken[limit] = max(self.taken.get(limit, 0), part)
            time.sleep(0.2)


def key_of(number: int) -> dict[str, str]:
    """The headers of a client: every second one is of the other caller."""
    return {"X-API-Key": list(KEYS.values())[number % 2]}


def rows(short: bool) -> Iterator[Row]:
    """All kinds at once: what the server took, what was answered, and a job afterwards."""
    limits = settings(**LIMITS)
    bound = sum(memory_bound(limits, get_model("micro")).values()) / 1e6
    environment = {f"IMAGEGEN_{name.upper()}": str(value) for name, value in LIMITS.items()}
    environment["IMAGEGEN_PRIVATE_HOSTS"] = "127.0.0.1"
    least, most = (SHORT_LEAST, SHORT_MOST) if short else (LEAST, MOST)
    with tempfile.TemporaryDirectory() as folder:
        environment["SSL_CERT_FILE"] = str(certificate(Path(folder)))
        with files(Path(folder), limits.lora_rank) as url, server(keys=True, **environment) as victim:
            victim.edit(to_bytes(Image.new("RGB", (64, 64))))
            kinds = jobs(url, SHORT_SIDE if short else SIDE)
            attack = Attack(victim, kinds, least, most * attacked.patience)
            with Peak(victim.process.pid) as peak, ThreadPoolExecutor(len(kinds) + 3) as threads:
                clients: list[Callable[[int], None]] = [*[attack.read] * len(kinds), *[attack.never_read] * 2]
                ended = [threads.submit(client, number) for number, client in enumerate(clients)]
                ended.append(threads.submit(attack.watch))
                for one in ended:
                    one.result()
            outcome, _ = victim.generate()
    name = "every kind of large job at every limit"
    full = ", ".join(f"{limit} {part:.0%}" for limit, part in sorted(attack.taken.items()))
    yield Row(
        name,
        f"{peak.grown:+.0f} MB; taken of the limits: {full}",
        f"under the computed bound of {bound:.0f} MB",
        peak.grown < bound,
    )
    yield Row(
        f"{name}: what is answered",
        ", ".join(f"{attack.answered[name]} {name}" for name in kinds) + f"; the next job: {outcome}",
        "one of each at least, and the next job",
        all(attack.answered[name] for name in kinds) and outcome == "image",
    )


def jobs(url: str, side: int) -> dict[str, Kind]:
    """Each kind is large in another way; the answers of the first two are the largest.

    Args:
        url: of the folder of `files`.
        side: pixels of a photo's side.
    """
    noise = np.random.default_rng(1).integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)
    photo = to_base64(Image.fromarray(noise).resize((side, side)), "JPEG", quality=80)
    half = Image.new("L", (side, side))
    half.paste(255, (0, 0, side // 2, side))
    grey = to_base64(Image.effect_noise((3700, 3700), 90))  # 14 MB as a PNG
    small = {"prompt": "x", "num_inference_steps": 1, "width": 64, "height": 64}
    large = {"prompt": "x", "num_inference_steps": 1, "num_images": 2, "images": [photo]}

    def kind(path: str, *bodies: dict[str, object]) -> Kind:
        return Kind(path, [json.dumps(body).encode() for body in bodies])

    return {
        "photos with a mask": kind("/edit", {**large, "mask": to_base64(half), "mask_grow": 512}),
        "photos preserved": kind("/edit", {**large, "preserve": "auto"}),
        "stored photos": kind("/jobs", {**large, "num_images": 1, "preserve": "auto"}),
        "bodies of 56 MB": kind("/edit", {**small, "images": [grey] * 3}),
        "references by URL": kind("/edit", {**small, "images": [f"{url}/noise.png"] * 4}),
        "adapters by URL": kind(
            "/generate", *({**small, "loras": [{"url": f"{url}/{i}.safetensors"}]} for i in range(ADAPTERS))
        ),
    }


def certificate(folder: Path) -> Path:
    """A certificate for 127.0.0.1 with its key, in one file."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(address, critical=True)
        .sign(key, hashes.SHA256())
    )
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    file = folder / "certificate.pem"
    file.write_bytes(signed.public_bytes(serialization.Encoding.PEM) + key.private_bytes(*form))
    return file


@contextlib.contextmanager
def files(folder: Path, rank: int) -> Iterator[str]:
    """The URL of a folder with a PNG of 14 MB and adapters of the largest rank, by https."""
    (folder / "noise.png").write_bytes(to_bytes(Image.effect_noise((3700, 3700), 90)))
    for i in range(ADAPTERS):
        save(random_tensors(rank, seed=i), folder / f"{i}.safetensors")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def copyfile(self, source: Any, outputfile: Any) -> None:
            with contextlib.suppress(OSError):  # a download that was given up
                super().copyfile(source, outputfile)

    listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "certificate.pem")
    listening.socket = context.wrap_socket(listening.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=listening.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"https://127.0.0.1:{listening.server_address[1]}"
    finally:
        listening.shutdown()
