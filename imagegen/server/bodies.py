"""Reads the body of a job's request, as JSON or as a form, without ever holding the event loop for long.

One call into C code cannot be interrupted, and holds the interpreter in every thread. So no such call gets more than a
bounded part of a body: a form is parsed in slices, and the long texts of JSON, which are references in base64, are cut
out before the rest is parsed.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import secrets
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from fastapi import Request
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect
from starlette.types import Message

from imagegen.contract import aliases, requests
from imagegen.contract.faults import HALF_PAIR
from imagegen.contract.requests import R
from imagegen.engine.service import Service
from imagegen.errors import Cancelled, DeadlineExceeded, InvalidInput, PayloadTooLarge, UnsupportedMediaType
from imagegen.server.stored import idempotency_key

#: Seconds in which a body must have come.
_BODY_SECONDS = 120
#: Lists, objects and their members in a JSON body, and its quotes: a prompt has 4,000 characters, a job a dozen fields.
_MAX_PARTS = 20_000
#: Bytes of JSON beside the texts that are longer than `_LONG_TEXT`.
_MAX_REST, _LONG_TEXT = 1_000_000, 65_536
#: Bytes of a long text that are handled at one time.
_SLICE = 1_000_000
#: Bytes of a form that are parsed at one time: python-multipart takes 10 ms for the worst of them.
_FORM_SLICE = 16_384

#: How clients write an entry of a list: image[], image[0].
_ENTRY = re.compile(r"\[[0-9]{0,2}\]$")
#: Files of a form, empty ones too.
MAX_FILES = 16
#: In JSON it is an escape; two of them that are a pair are one character by then.
_HALF_PAIR = re.compile("[\ud800-\udfff]")
#: What JavaScript's FormData makes of a field that is not set.
_NULL = ("null", "undefined")


async def read_fields(request: Request, stored: bool = False) -> tuple[dict[str, Any], bool]:
    """The fields of a body, and whether they came as a form, whose values are all strings.

    A body is not read for a job that would be refused. Files of a form become base64, and those of
    one name a list in their order.

    Args:
        stored: its job goes into the store of jobs, as does each with an Idempotency-Key.

    Raises:
        InvalidInput: it is not JSON, not an object, or a broken form.
        UnsupportedMediaType: it is neither JSON nor a form, or not in UTF-8.
        PayloadTooLarge: it is over a limit.
        DeadlineExceeded, Cancelled: it did not come in time, or its sender went away.
        NotReady, Overloaded: the service takes no job now.
    """
    service: Service = request.app.state.service
    length = request.headers.get("content-length", "")
    expected = int(length[:20]) if length.isascii() and length.isdigit() else 0
    stored = stored or idempotency_key(request) is not None
    waits = stored or not service.settings.preload_models
    upload = service.upload(request.state.caller, expected, wait_for_model=waits, stored=stored)
    request.state.upload = upload  # released with its job, or by Guard

    async def receive() -> Message:
        message = await request.receive()
        upload.received(len(message.get("body", b"")))
        return message

    try:
        async with asyncio.timeout(_BODY_SECONDS):
            counted = Request(request.scope, receive)
            return await _read(counted, int(service.settings.max_reference_mb * 4e6 / 3) + 1000)
    except TimeoutError:
        raise DeadlineExceeded(f"the body did not come within {_BODY_SECONDS} s") from None
    except ClientDisconnect:
        raise Cancelled("the client went away") from None
    finally:
        upload.done()


async def read_job(request: Request, schema: type[R]) -> R:
    """The job in a body. Nothing else holds its references, so that they are freed once the job has decoded them.

    Raises:
        ImageGenError: as `read_fields`; InvalidInput for a field at fault too.
    """
    fields, form = await read_fields(request)
    service: Service = request.app.state.service
    return requests.parse(schema, fields, not form, requests.limits(service.spec, service.settings))


async def _read(request: Request, max_text: int) -> tuple[dict[str, Any], bool]:
    content_type, parameters = parse_options_header(request.headers.get("content-type", ""))
    kind = content_type.decode("latin-1").strip().lower()
    if kind not in ("multipart/form-data", "application/json"):
        raise UnsupportedMediaType(
            f"Content-Type: {kind[:60] or 'nothing'} was received; allowed are application/json and multipart/form-data"
        )
    charset = parameters.get(b"charset", b"utf-8").decode("latin-1").lower()
    if charset not in ("utf-8", "utf8"):  # Python has a hundred codecs; some take quadratic time
        raise UnsupportedMediaType(f"Content-Type: charset {charset[:40]!r} was received; allowed is utf-8")
    if (coding := request.headers.get("content-encoding", "identity").lower()) != "identity":
        raise UnsupportedMediaType(f"Content-Encoding: {coding[:40]} was received; allowed is none")
    if kind == "multipart/form-data":
        return await _read_form(request, max_text), True
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
    fields = await parse_json(body, max_text)
    if not isinstance(fields, dict):
        raise InvalidInput("the body must be a JSON object with a prompt", "body")
    return fields, False


async def parse_json(body: bytearray, max_text: int) -> Any:
    """Parses JSON whose long texts are base64 or URLs: ASCII, without escapes but `\\/`, which PHP writes.

    Args:
        body: UTF-8.
        max_text: bytes of a text at most.

    Raises:
        InvalidInput: it is not such JSON.
        PayloadTooLarge: a text is over `max_text`, or the rest of the body is over `_MAX_REST` or `_MAX_PARTS`.
    """
    rest, marker = bytearray(), secrets.token_hex(8)
    texts: dict[str, str] = {}
    position = 0
    async for begin, end in _strings(body, max_text):
        is_long = end - begin > _LONG_TEXT
        _check_rest(len(rest) + (begin if is_long else end) - position)
        if is_long:
            name = f"{marker}{len(texts)}"
            rest += body[position:begin] + name.encode()
            texts[name] = await _long_text(memoryview(body)[begin:end])
        else:
            rest += body[position:end]
        position = end
    _check_rest(len(rest) + len(body) - position)
    rest += body[position:]
    if sum(rest.count(mark) for mark in (b",", b"[", b"{")) > _MAX_PARTS:
        raise PayloadTooLarge(f"the body has too many parts; {_MAX_PARTS} are allowed", "body")
    try:
        value = json.loads(rest.decode("utf-8-sig"))
        if b"\\ud" in rest.lower():
            _check_characters(value)
        return _insert(value, texts)
    except (ValueError, RecursionError):
        raise InvalidInput("the body is not JSON", "body") from None


async def _strings(body: bytearray, max_text: int) -> AsyncIterator[tuple[int, int]]:
    """Where each string of a JSON document begins and ends, without its quotes."""
    opening, quotes, paused = body.find(b'"', 0, _MAX_REST), 0, 0
    while opening >= 0:
        end = opening
        while True:
            end = body.find(b'"', end + 1, opening + max_text + 2)
            if end < 0 and len(body) - opening > max_text:
                raise PayloadTooLarge(f"a text is over the {max_text} bytes that are allowed", "body")
            if end < 0:
                raise InvalidInput("the body is not JSON", "body")
            quotes += 1
            if quotes > _MAX_PARTS:
                raise PayloadTooLarge(f"the body has too many texts; {_MAX_PARTS // 2} are allowed", "body")
            if quotes % 1000 == 0 or end - paused > _SLICE:
                await asyncio.sleep(0)
                paused = end
            if _backslashes(body, opening + 1, end) % 2 == 0:
                break
        yield opening + 1, end
        opening = body.find(b'"', end + 1, end + _MAX_REST)


def _backslashes(body: bytearray, begin: int, end: int) -> int:
    """How many backslashes are right before `end`."""
    for size in (32, _LONG_TEXT):
        tail = body[max(begin, end - size) : end]
        count = len(tail) - len(tail.rstrip(b"\\"))
        if count < size:
            return count
    raise InvalidInput("the body is not JSON", "body")


def _check_rest(size: int) -> None:
    if size > _MAX_REST:
        raise PayloadTooLarge(f"the body has more than {_MAX_REST} bytes beside its references", "body")


async def _long_text(data: memoryview) -> str:
    """A text that is too long to be parsed in one call."""
    parts, begin = [], 0
    while begin < len(data):
        end = min(begin + _SLICE, len(data))
        end += end < len(data) and data[end - 1] == ord("\\")  # the two bytes of an escape stay together
        part = bytes(data[begin:end]).replace(b"\\/", b"/")
        if not part.isascii() or b"\\" in part:
            raise InvalidInput(f"a text of more than {_LONG_TEXT} bytes must be base64", "body")
        parts.append(part.decode("ascii"))
        begin = end
        await asyncio.sleep(0)
    return "".join(parts)


def _check_characters(value: Any, name: str = "") -> None:
    """Checks that every text has UTF-8, names of fields too: what is stored of it could not be read again.

    Raises:
        InvalidInput: one has not; by its name, such as images[0].
    """
    if isinstance(value, dict):
        for key, one in value.items():
            inner = f"{name}.{key}"[:60] if name else key[:60]
            _check_characters(key, inner)
            _check_characters(one, inner)
    elif isinstance(value, list):
        for i, one in enumerate(value):
            _check_characters(one, f"{name}[{i}]")
    elif isinstance(value, str) and _HALF_PAIR.search(value):
        raise InvalidInput(f"{name or 'body'}: {HALF_PAIR}", name or "body")


def _insert(value: Any, texts: dict[str, str]) -> Any:
    """The value with the texts in the place of their names, in lists and objects too."""
    if isinstance(value, dict):
        return {key: _insert(one, texts) for key, one in value.items()}
    if isinstance(value, list):
        return [_insert(one, texts) for one in value]
    return texts.get(value, value) if isinstance(value, str) else value


async def _in_slices(stream: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    async for chunk in stream:
        for begin in range(0, len(chunk), _FORM_SLICE):
            yield chunk[begin : begin + _FORM_SLICE]
            await asyncio.sleep(0)


class _FormParser(MultiPartParser):
    """Starlette's parser, which would take for Latin-1 what is not UTF-8, and give other words to the model."""

    def on_part_end(self) -> None:
        """A field's text must be UTF-8; a file's name is not used, and may be anything."""
        part = self._current_part
        if part.file is not None:
            super().on_part_end()
            return
        try:
            self.items.append((part.field_name, part.data.decode()))
        except UnicodeDecodeError as error:
            name = part.field_name[:60]
            text = f"byte {error.start} of it, 0x{part.data[error.start]:02x}, is not UTF-8, as forms must be"
            raise InvalidInput(f"{name}: {text}", name) from None


async def _read_form(request: Request, max_text: int) -> dict[str, Any]:
    parser = _FormParser(
        request.headers, _in_slices(request.stream()), max_files=MAX_FILES, max_fields=64, max_part_size=max_text
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise InvalidInput(f"the form cannot be read: {error.message}", "body") from None
    try:
        return await _form_fields(form)
    finally:
        await form.close()


async def _form_fields(form: FormData) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in form.multi_items():
        name = _ENTRY.sub("", name)
        images, single = aliases.is_image(name), aliases.is_mask(name)
        if isinstance(value, UploadFile):
            if not aliases.is_file(name):
                known = aliases.nearest(name, filter(aliases.is_file, aliases.names_of(("images", "mask"))))
                text = f"is not a field that takes a file; the nearest that does is {known}"
                raise InvalidInput(f"{name[:60]}: {text}", name[:60])
            text = (await asyncio.to_thread(base64.b64encode, await value.read())).decode()
        elif value in _NULL and name != "prompt":  # a prompt is people's own words, and may be this one
            continue
        else:
            text = value
        if images:  # browsers send an empty one where no file is chosen
            fields[name] = [*fields.get(name, []), text] if text else fields.get(name, [])
        elif name in fields:
            raise InvalidInput(f"{name[:60]}: was received twice", name[:60])
        elif len(text) > _LONG_TEXT and not single:
            raise PayloadTooLarge(f"{name[:60]}: has more than the {_LONG_TEXT} characters that are allowed", name[:60])
        else:
            fields[name] = text
    return fields
