"""References are decoded in processes that can be killed: each in one of its own, limited by the operating system.

`Decoders` starts a server (`imagegen.inputs.decoder_server`) that imports the decoders once and forks one for each
reference. A thread of this process hands it the bytes, takes the pixels and holds the deadline. Both are in one piece
of shared memory without a name (memfd), so that neither /dev/shm nor a disk is needed and nothing is left over. What a
decoder sends is untrusted too: it is parsed as JSON with bounds on everything. Whatever happens to a decoder is an
error of its own reference; if the server itself is lost, another one is started and the reference is decoded again.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from PIL import Image

from imagegen.errors import BadReference, NotReady, PayloadTooLarge
from imagegen.inputs.decoder_server import CONTROL, receive, receive_exactly, send
from imagegen.inputs.decoding import MAX_MEMORY, MAX_PHOTO_PIXELS, Purpose, Reference, check_length
from imagegen.models import MEGAPIXEL

log = logging.getLogger(__name__)

#: Decoders that run at once: two jobs of four references.
PROCESSES = 8
#: Seconds of the processor that a reference may take; 50 megapixels of the costliest formats take about three.
CPU_SECONDS = 8
#: Seconds that a decoder may take in all, on a machine that is busy. Waiting for room in memory does not count.
SECONDS = 10.0
#: Bytes of memory over which a reference is large, and waits for other large ones alone: so that a few that are slow do
#: not keep back the usual photographs.
_LARGE = 250_000_000
#: Seconds for the server to start, and to answer.
_START_SECONDS, _CONTROL_SECONDS = 60.0, 10.0
_MAX_MESSAGE = 10_000
_MOST_PIXELS: dict[Purpose, int] = {"reference": MEGAPIXEL, "photo": MAX_PHOTO_PIXELS, "mask": MAX_PHOTO_PIXELS}


#: How it shows that a decoder died, or sent what it may not; TimeoutError among them, which is an OSError.
BROKEN_ANSWER = (EOFError, OSError, ValueError, KeyError, TypeError)


class _ServerLostError(Exception):
    """The server from which decoders are forked is gone, or does not answer."""


class Decoders:
    """Decodes references beside the GPU. Starts no process before `start` or the first reference; `close` ends all."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(PROCESSES, "decoder")
        self._room, self._large_room = _Room(MAX_MEMORY), _Room(MAX_MEMORY)
        self._lock = threading.Lock()
        self._server: _Server | None = None
        self._closed = False

    def start(self) -> None:
        """Starts the server, without waiting until it is ready."""
        self._current()

    def submit(
        self, value: str | bytes, field: str, max_bytes: int, purpose: Purpose = "reference"
    ) -> Future[Reference]:
        """Decodes one reference, as `imagegen.inputs.decoding.load_reference` does.

        The future raises what that raises, and BadReference where decoding takes too long or its process dies.
        """
        return self._threads.submit(self._load, value, field, max_bytes, purpose)

    def close(self) -> None:
        """Kills what is being decoded and ends the threads; returns at once."""
        with self._lock:
            self._closed = True
            if self._server is not None:
                self._server.kill()
        self._threads.shutdown(cancel_futures=True)

    def _current(self) -> _Server:
        """The server; another one where it was lost."""
        with self._lock:
            if self._closed:
                raise NotReady("the worker is ending; another will answer", retry_after=1)
            if self._server is None or self._server.lost:
                self._server = _Server()
            return self._server

    def _load(self, value: str | bytes, field: str, max_bytes: int, purpose: Purpose) -> Reference:
        check_length(value, field, max_bytes)
        data = value.encode("ascii", "replace") if isinstance(value, str) else value
        text = isinstance(value, str)
        head = json.dumps(
            {"field": field, "max_bytes": max_bytes, "text": text, "purpose": purpose, "size": len(data)}
        ).encode()
        try:
            return self._load_by(self._current(), head, data, field, purpose)
        except _ServerLostError:
            server = self._current()  # refuses where this worker is ending
            log.warning("the server of decoders was lost; another one is started")
            return self._load_by(server, head, data, field, purpose)

    def _load_by(self, server: _Server, head: bytes, data: bytes, field: str, purpose: Purpose) -> Reference:
        ours, theirs = socket.socketpair()
        # The room is given back last: until the decoder is killed and the shared memory closed, they take it.
        with ExitStack() as room, ours, shared_memory(data, 3 * _MOST_PIXELS[purpose]) as memory:
            with theirs:
                number = server.fork(theirs, memory)
            late = False
            try:
                return self._exchange(ours, memory, head, field, purpose, room)
            except TimeoutError:
                late = True
            except BROKEN_ANSWER:
                pass
            finally:
                status = server.end(number)
        if late or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU):
            raise BadReference(f"{field}: takes more than {CPU_SECONDS} s to decode", field)
        log.warning("a decoder ended without an answer; wait status %d", status)
        raise BadReference(f"{field}: its decoder failed; the file is broken, or made to do harm", field)

    def _exchange(
        self, connection: socket.socket, memory: int, head: bytes, field: str, purpose: Purpose, room: ExitStack
    ) -> Reference:
        """Asks a decoder for the reference in the shared memory, and takes its answer. `room` holds its memory.

        Raises:
            TimeoutError: it takes too long.
            BROKEN_ANSWER: the decoder died, or sent what it may not.
            ImageGenError: what the decoder says of the reference.
        """
        until = time.monotonic() + SECONDS
        send(connection, head, until)
        answer = _parse(receive(connection, _MAX_MESSAGE, until), field)
        left = until - time.monotonic()
        memory_size = int(answer["memory"])
        room.enter_context((self._large_room if memory_size > _LARGE else self._room).hold(memory_size))
        until = time.monotonic() + left
        send(connection, b"", until)
        answer = _parse(receive(connection, _MAX_MESSAGE, until), field)
        width, height = map(int, answer["size"])
        mode, most = ("L" if purpose == "mask" else "RGB"), _MOST_PIXELS[purpose]
        if min(width, height) < 1 or width * height > most:
            raise ValueError("an image of another size than was asked for")
        pixels = os.pread(memory, width * height * len(mode), 0)
        return Reference(Image.frombytes(mode, (width, height), pixels), [str(text) for text in answer["warnings"]])


@contextmanager
def shared_memory(data: bytes, room: int = 3 * MEGAPIXEL) -> Iterator[int]:
    """A file descriptor of memory that holds a reference, with room for so many bytes of pixels. Its size is sealed: a
    decoder that shortened it could crash who reads it."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("reference", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    else:  # where there is no Linux: a file without a name
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    try:
        os.ftruncate(descriptor, max(len(data), room))
        place = 0
        while place < len(data):
            place += os.pwrite(descriptor, memoryview(data)[place:], place)
        if hasattr(os, "memfd_create"):
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        yield descriptor
    finally:
        os.close(descriptor)


def _parse(message: bytes, field: str) -> dict[str, Any]:
    answer = json.loads(message)
    if not isinstance(answer, dict):
        raise TypeError
    if "error" in answer:
        kind = PayloadTooLarge if answer["error"] == PayloadTooLarge.code else BadReference
        raise kind(str(answer["message"]), field)
    return answer


class _Server:
    """The process from which decoders are forked, in a session of its own, without this process's environment."""

    def __init__(self) -> None:
        self._control, theirs = socket.socketpair()
        self._lock = threading.RLock()  # a failure inside _ask kills
        self.lost, self._ready = False, False
        # Nothing of the environment, which holds keys, but where imports are.
        paths = [str(Path(__file__).resolve().parents[2]), *filter(None, sys.path)]
        environment = {"PYTHONPATH": os.pathsep.join(paths), "LANG": "C.UTF-8"}
        if "LD_LIBRARY_PATH" in os.environ:
            environment["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
        module = "imagegen.inputs.decoder_server"
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", module, str(theirs.fileno()), str(CPU_SECONDS)],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

    def fork(self, connection: socket.socket, memory: int) -> int:
        """Starts a decoder that serves the other end of this connection; its process id."""
        return self._ask(b"F", 0, [connection.fileno(), memory])

    def end(self, number: int) -> int:
        """Kills a decoder, if it still runs; the status with which it ended."""
        return self._ask(b"E", number, [])

    def kill(self) -> None:
        """Kills the server and all decoders."""
        self.lost = True
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        with self._lock:  # a thread that was waiting for an answer has its end by now
            self._control.close()

    def _ask(self, operation: bytes, number: int, descriptors: list[int]) -> int:
        with self._lock:
            try:
                if self.lost:
                    raise EOFError
                self._wait_until_ready()
                until = time.monotonic() + _CONTROL_SECONDS
                socket.send_fds(self._control, [CONTROL.pack(operation, number)], descriptors)
                return int(CONTROL.unpack(receive_exactly(self._control, CONTROL.size, until))[1])
            except (EOFError, OSError) as error:
                if not self.lost:
                    self.kill()
                raise _ServerLostError from error

    def _wait_until_ready(self) -> None:
        if self._ready:
            return
        until = time.monotonic() + _START_SECONDS
        size = CONTROL.unpack(receive_exactly(self._control, CONTROL.size, until))[1]
        for text in json.loads(receive_exactly(self._control, size, until)):
            log.warning("decoders: %s", text)
        self._ready = True


class _Room:
    """Memory for what is decoded at one moment, so many bytes: many small images, or one large one."""

    def __init__(self, size: int) -> None:
        self._left, self._changed = size, threading.Condition()
        self._turn = threading.Lock()

    @contextmanager
    def hold(self, size: int) -> Iterator[None]:
        """Waits until there is room, and takes it; in turn, so that small images do not pass a large one by."""
        if not 0 <= size <= MAX_MEMORY:
            raise ValueError("more memory than there is")
        with self._turn, self._changed:
            self._changed.wait_for(lambda: self._left >= size)
            self._left -= size
        try:
            yield
        finally:
            with self._changed:
                self._left += size
                self._changed.notify_all()
