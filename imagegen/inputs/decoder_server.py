"""The process from which decoders are forked, one for each reference.

    python -m imagegen.inputs.decoder_server DESCRIPTOR SECONDS

It imports the decoders once, gives up what they do not need (`imagegen.inputs.sandbox`), and obeys its parent on a
socket. It never reads an image itself. A decoder is a fork of it: it starts in milliseconds, sees one reference and
nothing of another, and ends with it.

On the control socket, 5 bytes each way:
    b"F" 0    with one end of a socket pair, and memory that holds
              the reference: fork a decoder for them                  -> b"F" pid
    b"E" pid  kill this decoder if it still runs, and reap it         -> b"E" its status, as wait(2) has it
At the start b"R" and the length of a JSON list, which follows: what this system did not allow.

On a decoder's own socket, messages of a length (4 bytes) and as many bytes:
    -> {"field", "max_bytes", "text", "purpose", "size"}; the reference is in the memory, in so many bytes
    <- {"memory"}    before pixels are decoded
    -> an empty message, once there is room
    <- {"size", "warnings"}; the pixels, RGB or L, are in the memory then      or {"error", "message"}
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import socket
import struct
import sys
import time
from typing import NoReturn

from imagegen.errors import ImageGenError
from imagegen.inputs import sandbox
from imagegen.inputs.decoding import load_reference

CONTROL = struct.Struct(">ci")
_LENGTH = struct.Struct(">I")


def send(connection: socket.socket, message: bytes, until: float | None = None) -> None:
    """Sends one message, by a time of `time.monotonic` if there is one.

    Raises:
        TimeoutError: it takes longer.
    """
    for part in filter(None, (_LENGTH.pack(len(message)), message)):  # who got all may have closed its end
        connection.settimeout(_left(until))  # for all of sendall
        connection.sendall(part)


def receive(connection: socket.socket, limit: int, until: float | None = None) -> bytes:
    """Receives one message, by a time of `time.monotonic` if there is one.

    Raises:
        EOFError: the other end is gone.
        TimeoutError: it takes longer.
        ValueError: it has more than `limit` bytes.
    """
    (size,) = _LENGTH.unpack(receive_exactly(connection, _LENGTH.size, until))
    if size > limit:
        raise ValueError("a message is too long")
    return receive_exactly(connection, size, until)


def receive_exactly(connection: socket.socket, size: int, until: float | None = None) -> bytes:
    """Receives so many bytes; raises what `receive` does."""
    data, place = bytearray(size), 0
    with memoryview(data) as view:
        while place < size:
            connection.settimeout(_left(until))
            count = connection.recv_into(view[place:])
            if count == 0:
                raise EOFError
            place += count
    return bytes(data)


def _left(until: float | None) -> float | None:
    return None if until is None else max(0.001, until - time.monotonic())


def main() -> None:
    """Serves until the parent closes its end; then nothing of it remains."""
    try:
        _serve(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]))
    except ConnectionError:  # it has ended while this started, or in the middle of a message
        os.killpg(0, signal.SIGKILL)


def _serve(control: socket.socket, seconds: int) -> NoReturn:
    missing = json.dumps(sandbox.confine()).encode()
    control.sendall(CONTROL.pack(b"R", len(missing)) + missing)
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, CONTROL.size, 2)
        if len(message) < CONTROL.size:
            os.killpg(0, signal.SIGKILL)
        operation, number = CONTROL.unpack(message)
        if operation == b"F":
            number = os.fork()
            if number == 0:
                control.close()
                _decode(descriptors[0], descriptors[1], seconds)
            for descriptor in descriptors:
                os.close(descriptor)
        elif operation == b"E":
            os.kill(number, signal.SIGKILL)  # its own child, not yet reaped, so the number is nobody else's
            number = os.waitpid(number, 0)[1]
        control.sendall(CONTROL.pack(operation, number))


def _decode(connection: int, memory: int, seconds: int) -> NoReturn:
    """One reference, in the fork."""
    try:
        shared = mmap.mmap(memory, 0)
        sandbox.limit(seconds)
        _answer(socket.socket(fileno=connection), shared)
    except (EOFError, ConnectionError):
        pass  # the parent is gone
    except BaseException as error:  # noqa: BLE001 - a bug: by name alone, since a message may hold anything
        print(f"a decoder failed: {type(error).__name__}", file=sys.stderr, flush=True)
    finally:
        os._exit(0)


def _answer(connection: socket.socket, shared: mmap.mmap) -> None:
    head = json.loads(receive(connection, 1000))
    value = shared[: head["size"]]

    def admit(memory: int) -> None:
        send(connection, json.dumps({"memory": memory}).encode())
        receive(connection, 0)

    try:
        reference = load_reference(
            value.decode("ascii") if head["text"] else value, head["field"], head["max_bytes"], admit, head["purpose"]
        )
    except ImageGenError as error:
        send(connection, json.dumps({"error": error.code, "message": error.message}).encode())
        return
    pixels = reference.image.tobytes()
    shared[: len(pixels)] = pixels
    send(connection, json.dumps({"size": reference.image.size, "warnings": reference.warnings}).encode())


if __name__ == "__main__":
    main()
