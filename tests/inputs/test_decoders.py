"""References are decoded in processes that can be killed: nothing that one does costs more than its own job."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from imagegen.errors import BadReference, NotReady, PayloadTooLarge
from imagegen.inputs import decoders as module
from imagegen.inputs.decoder_server import receive, send
from imagegen.inputs.decoders import Decoders
from tests.inputs.test_formats import CASES
from tests.support import until
from tests.support.hostile import scans, slow
from tests.support.images import scene, to_base64, to_bytes

PICTURE = scene("circle", "red", "blue")
PNG = to_bytes(PICTURE)
LIMIT = 20_000_000


@pytest.fixture
def decoders(monkeypatch):
    """Decoders that may use the processor for two seconds. A machine on which they stand still is no fault."""
    monkeypatch.setattr(module, "CPU_SECONDS", 2)
    for name in ("SECONDS", "_START_SECONDS", "_CONTROL_SECONDS"):
        monkeypatch.setattr(module, name, 600.0)
    made = Decoders()
    yield made
    made.close()


@pytest.fixture
def patient(monkeypatch):
    """Decoders that may take long: what is made to be slow stays until it is killed, on a busy machine too."""
    monkeypatch.setattr(module, "CPU_SECONDS", 600)
    for name in ("SECONDS", "_START_SECONDS", "_CONTROL_SECONDS"):
        monkeypatch.setattr(module, name, 600.0)
    made = Decoders()
    yield made
    made.close()


def load(decoders, value, limit=LIMIT):
    return decoders.submit(value, "images[1]", limit).result()


def children(pid):
    return [int(number) for number in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def server(decoders):
    return decoders._server._process.pid


def test_a_reference_comes_back_as_it_is(decoders):
    for value in (PNG, to_base64(PNG), "data:image/png;base64," + to_base64(PNG)):
        loaded = load(decoders, value)
        assert loaded.image.tobytes() == PICTURE.tobytes() and loaded.warnings == []
    loaded = load(decoders, CASES["webp, animated"][0])
    assert loaded.warnings == ["images[1]: has 2 frames; only the first is used"]


def test_every_format_is_decoded_without_files(patient):
    """Nothing that a decoder needs is imported, or opened, after the files are out of reach."""
    for name, (data, wanted) in CASES.items():
        off = np.abs(np.asarray(load(patient, data).image).astype(float) - wanted).max()
        assert off <= 2, name
    assert load(patient, to_bytes(PICTURE, "AVIF")).image.size == (128, 128)
    large = load(patient, to_bytes(PICTURE.resize((2048, 2048)), "WEBP")).image  # libwebp starts a thread for it
    assert large.size == (1024, 1024)


def test_errors_come_back_as_they_are(decoders):
    with pytest.raises(BadReference, match=r"images\[1\]: is a GIF; PNG, JPEG, WebP and AVIF are allowed") as caught:
        load(decoders, to_bytes(PICTURE, "GIF"))
    assert caught.value.field == "images[1]"
    with pytest.raises(PayloadTooLarge, match=r"images\[1\]: is about 3\.0 MB; 2\.5 MB are allowed"):
        load(decoders, "A" * 4_000_000, 2_500_000)
    with pytest.raises(PayloadTooLarge, match=r"images\[1\]: is 4\.0 MB; 1 MB are allowed"):
        load(decoders, b"A" * 4_000_000, 1_000_000)
    for text in ("é", "\ud800", "not base64!"):
        with pytest.raises(BadReference, match="is not base64"):
            load(decoders, text)


@pytest.mark.parametrize(
    "file_format",
    ["PNG", *(pytest.param(name, marks=pytest.mark.slow) for name in ("JPEG", "WEBP"))],  # four seconds of CPU each
)
def test_four_images_made_to_be_slow_are_four_errors(patient, monkeypatch, file_format):
    """By their ICC profile, in one call of Little CMS that no thread could end. The deadline is one for each."""
    attack = slow(file_format)
    attacks = [patient.submit(attack, "images[1]", LIMIT) for _ in range(4)]
    beside = load(patient, PNG)
    assert not any(future.done() for future in attacks), "the next reference waited for them"
    patient.close()
    monkeypatch.setattr(module, "CPU_SECONDS", 1)
    with contextlib.closing(Decoders()) as decoders:
        attacks = [decoders.submit(attack, "images[1]", LIMIT) for _ in range(4)]
        assert load(decoders, PNG).image.tobytes() == beside.image.tobytes() == PICTURE.tobytes()
        for future in attacks:
            with pytest.raises(BadReference, match=r"images\[1\]: takes more than 1 s to decode"):
                future.result(timeout=300)
        assert load(decoders, PNG).image.tobytes() == PICTURE.tobytes()
        assert children(server(decoders)) == []


@pytest.mark.parametrize("name", ["scans", "chunks"])
def test_other_ways_to_be_slow_cost_their_own_job_alone(decoders, name, monkeypatch):
    """Passes over an image by the thousand are ended; a million chunks are skipped."""
    if name == "scans":
        with pytest.raises(BadReference, match="takes more than"):
            load(decoders, scans(10_000, (4000, 4000)))
    else:
        monkeypatch.setattr(module, "CPU_SECONDS", 60)  # a slow machine is no fault
        chunk = b"\0\0\0\0abCd" + bytes(4)
        assert load(decoders, PNG[:33] + chunk * 1_000_000 + PNG[33:]).image.tobytes() == PICTURE.tobytes()
    assert load(decoders, PNG).image.size == (128, 128)


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL, signal.SIGSTOP])
def test_a_decoder_that_dies_is_an_error_of_its_reference_alone(patient, number, monkeypatch, caplog):
    """A crash, the kernel that is out of memory, and one that never answers."""
    if number == signal.SIGSTOP:
        monkeypatch.setattr(module, "SECONDS", 10.0)
    patient.start()
    assert load(patient, PNG)
    attack = patient.submit(slow("PNG"), "images[1]", LIMIT)
    [pid] = until(lambda: children(server(patient)))
    os.kill(pid, number)
    says = "takes more than" if number == signal.SIGSTOP else "its decoder failed"
    assert load(patient, PNG).image.size == (128, 128)
    with pytest.raises(BadReference, match=says):
        attack.result(timeout=300)
    assert ("a decoder ended without an answer" in caplog.text) == (number != signal.SIGSTOP)
    assert children(server(patient)) == []


def test_when_the_server_is_lost_another_one_decodes(decoders):
    assert load(decoders, PNG)
    first = server(decoders)
    os.kill(first, signal.SIGKILL)
    assert load(decoders, PNG).image.size == (128, 128)
    assert server(decoders) != first
    # And what was being decoded is decoded again.
    attack = decoders.submit(slow("PNG"), "images[1]", LIMIT)
    until(lambda: children(server(decoders)))
    os.kill(server(decoders), signal.SIGKILL)
    with pytest.raises(BadReference, match="takes more than"):
        attack.result(timeout=60)


def test_closing_does_not_wait_for_what_is_slow(patient):
    assert load(patient, PNG)
    attack = slow("PNG")
    attacks = [patient.submit(attack, "images[1]", LIMIT) for _ in range(10)]
    until(lambda: len(children(server(patient))) == module.PROCESSES)
    pids = [server(patient), *children(server(patient))]
    patient.close()
    assert any(future.cancelled() for future in attacks)
    for future in attacks:
        if not future.cancelled():
            with pytest.raises(NotReady):
                future.result(timeout=0)
    until(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in pids))


def test_nothing_runs_before_the_first_reference():
    before = children(os.getpid())
    made = Decoders()
    assert children(os.getpid()) == before
    made.close()


def test_a_decoder_knows_no_secret(decoders, monkeypatch):
    monkeypatch.setenv("HUGGING_FACE_TOKEN", "hf_canary")
    assert load(decoders, PNG)
    environment = Path(f"/proc/{server(decoders)}/environ").read_bytes()
    assert b"canary" not in environment and b"PYTHONPATH" in environment


def test_a_decoder_imports_neither_torch_nor_the_server():
    code = "import sys, imagegen.inputs.decoder_server; print(' '.join({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not {"torch", "numpy", "fastapi", "uvicorn", "pydantic", "aiohttp", "diffusers"} & set(done.stdout.split())


ROOT = Path(__file__).parents[2]
INSIDE = """
import os, resource, socket, subprocess, sys
from imagegen.inputs import sandbox
if user := int(sys.argv[2]):
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)
listening = socket.create_server(("127.0.0.1", 0))
missing = sandbox.confine()
def attempt(name, call):
    try:
        call()
        print(name, "allowed")
    except (OSError, MemoryError, ValueError) as error:
        print(name, type(error).__name__)
attempt("read", lambda: open("/etc/passwd"))
attempt("write", lambda: open("/tmp/x-decoder", "w"))
attempt("execute", lambda: os.execv("/bin/true", ["true"]))
attempt("connect", lambda: socket.socket().connect(listening.getsockname()))
attempt("kill", lambda: os.kill(int(sys.argv[1]), 0))
sandbox.limit(5)
attempt("socket", lambda: socket.socket())
attempt("pipe", lambda: os.pipe())
attempt("memory", lambda: bytearray(2_000_000_000))
attempt("unlimit", lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100)))
print("missing", len(missing))
"""


@pytest.mark.parametrize("user", [0, 12345])
def test_a_decoder_has_no_files_no_network_and_little_memory(user):
    if user and os.geteuid() != 0:
        pytest.skip("only root can become another user")
    command = [sys.executable, "-c", INSIDE, str(os.getpid()), str(user)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    found = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert found["socket"] == found["pipe"] == "OSError", found
    assert found["memory"] == "MemoryError" and found["unlimit"] in ("ValueError", "PermissionError"), found
    if found["missing"] == "0":
        assert found["read"] == found["write"] == found["execute"] == "PermissionError", found
        assert "Error" in found["connect"] and "Error" in found["kill"], found


@contextlib.contextmanager
def a_decoder_that(behaves):
    """The parent's end of a socket whose other end is not an honest decoder."""
    ours, theirs = socket.socketpair()

    def serve():
        with contextlib.suppress(OSError, EOFError), theirs:
            receive(theirs, 1000)
            behaves(theirs)

    thread = threading.Thread(target=serve)
    thread.start()
    with ours:
        yield ours
    thread.join(timeout=30)


def says(*messages):
    def behaves(connection):
        for message in messages:
            send(connection, message if isinstance(message, bytes) else json.dumps(message).encode())
            if isinstance(message, dict) and "memory" in message:
                receive(connection, 0)

    return behaves


def drips(connection):
    while True:
        connection.sendall(b"\0")
        time.sleep(0.2)


@pytest.mark.parametrize(
    "behaves",
    [
        says(b"no JSON"),
        says([1]),
        says({}),
        says({"memory": -1}),
        says({"memory": 10**12}),
        says({"memory": "much"}),
        says(b"x" * 20_000),
        says({"memory": 1}, {"size": [5000, 5000], "warnings": []}),
        says({"memory": 1}, {"size": [0, 64], "warnings": []}),
        says({"memory": 1}, {"size": [64], "warnings": []}),
        says({"memory": 1}, {"size": [64, 64]}),
        drips,
        lambda connection: None,
    ],
)
def test_what_a_decoder_sends_is_not_trusted(behaves, monkeypatch):
    monkeypatch.setattr(module, "SECONDS", 2.0)
    made = Decoders()
    with a_decoder_that(behaves) as connection, module.shared_memory(PNG) as memory:
        with pytest.raises(module.BROKEN_ANSWER), contextlib.ExitStack() as room:
            made._exchange(connection, memory, b"{}", "images[1]", "reference", room)
        with pytest.raises(PermissionError):  # which a decoder could try too
            os.ftruncate(memory, 0)
    with made._room.hold(module.MAX_MEMORY):  # what it had was given back
        pass


def test_slow_large_images_do_not_keep_back_small_ones(patient):
    """Each takes a third of the memory that large ones may, for as long as it can."""
    assert load(patient, PNG)
    attack = scans(10_000, (4000, 4000))
    attacks = [patient.submit(attack, "images[1]", LIMIT) for _ in range(6)]
    until(lambda: len(children(server(patient))) > 3)  # three have all of that memory, and another waits for it
    assert load(patient, PNG).image.tobytes() == PICTURE.tobytes()
    assert not all(future.done() for future in attacks)


def test_large_images_are_decoded_one_after_another():
    """And small ones side by side: what counts is the memory that they take."""
    room, inside, most, lock = module._Room(1000), [], [], threading.Lock()

    def hold(size):
        with room.hold(size):
            with lock:
                inside.append(size)
                most.append(sum(inside))
            time.sleep(0.02)
            with lock:
                inside.remove(size)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(hold, [640, 160, 160, 810] * 4))
    assert max(most) <= 1000 and set(most) & {320, 800, 960}


def test_memory_is_others_once_its_decoder_has_ended(decoders, monkeypatch):
    """And not while the killed process may still have it."""
    taken, end = [], module._Server.end

    def ending(self, number):
        taken.append(module.MAX_MEMORY - decoders._room._left)
        return end(self, number)

    monkeypatch.setattr(module._Server, "end", ending)
    load(decoders, PNG)
    assert taken[0] > 0 and decoders._room._left == module.MAX_MEMORY
