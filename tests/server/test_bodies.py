"""Hostile bodies: refused or read, and the event loop is never held."""

import asyncio
import contextlib
import encodings
import pkgutil
import time

import httpx
import pytest

from imagegen.errors import ImageGenError, InvalidInput
from imagegen.server import bodies
from tests.server.conftest import serving

MEGABYTES = 30
LIMIT = 26_700_000
N = MEGABYTES * 1_000_000
JSON = {
    "references": b'{"images": ["' + b'", "'.join([b"QUJD" * 1_600_000] * 4) + b'"]}',
    "references as PHP writes them": b'{"images": ["' + b"QUJDQUJDQUJD\\/" * (LIMIT // 14) + b'"]}',
    "nothing but escaped slashes": b'{"a": "' + b"\\/" * (LIMIT // 2) + b'"}',
    "escapes": b'{"a": "' + b"\\n" * (LIMIT // 2 - 2) + b'"}',
    "unicode escapes": b'{"a": "' + b"\\u00e9" * (LIMIT // 6 - 2) + b'"}',
    "not ASCII": b'{"a": "' + "é".encode() * (LIMIT // 2 - 2) + b'"}',
    "backslashes": b'{"a": "' + b"\\" * N,
    "runs of backslashes": b'{"a": "' + (b"\\" * 60_001 + b'"') * (N // 60_002),
    "spaces": b'{"a": ' + b" " * N + b"1}",
    "quotes": b'{"a": ' + b'"' * N,
    "short texts": b'{"a": [' + b',""' * (N // 3) + b"1]}",
    "long texts": b'{"a": [' + b'"' + b'","'.join([b"a" * 70_000] * (N // 70_003)) + b'"]}',
    "lists": b'{"a": ' + b"[" * N,
    "objects": b'{"a":' * (N // 5),
    "parts": b'{"a": [' + b"1," * 19_000 + b"1]}",
    "digits": b'{"a": ' + b"1" * 900_000 + b"}",
    "fraction": b'{"a": 0.' + b"1" * 900_000 + b"}",
    "a text without end": b'{"a": "' + b"a" * N,
}


async def _longest_hold(work):
    """Seconds of the loop's own thread between two of its rounds, while a coroutine runs; the machine may be busy."""
    longest, last = 0.0, time.thread_time()

    async def watch():
        nonlocal longest, last
        while True:
            await asyncio.sleep(0)
            now = time.thread_time()
            longest, last = max(longest, now - last), now

    watching = asyncio.create_task(watch())
    await asyncio.sleep(0)
    with contextlib.suppress(ImageGenError):
        await work
    await asyncio.sleep(0)
    watching.cancel()
    return longest


def _baseline():
    """Seconds of this thread for a copy of the longest text that is allowed, which no way of reading it can avoid."""
    text = b"a" * LIMIT
    begun = time.thread_time()
    b"".join([text, b""])
    return time.thread_time() - begun


@pytest.mark.parametrize("name", JSON)
def test_no_json_holds_the_loop(name):
    body = bytearray(JSON[name])
    held = asyncio.run(_longest_hold(bodies.parse_json(body, LIMIT)))
    assert held < max(0.1, 10 * _baseline()), name


@pytest.mark.parametrize("data", [b"\r", b"\r\n--", b"-", b"\r\n--B\r\n", b"\r\n--B\r\nA: b\r\n\r\n", b"a"])
def test_no_form_holds_the_loop(data):
    class Request:
        def __init__(self):
            self.headers = {"Content-Type": "multipart/form-data; boundary=BOUNDARY"}

        async def stream(self):
            head = b'--BOUNDARY\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n'
            yield head + data * (N // 10 // len(data))

    held = asyncio.run(_longest_hold(bodies._read_form(Request(), LIMIT)))
    assert held < max(0.1, 10 * _baseline())


def test_json_is_read_as_by_the_standard_library():
    text = "QUJD" * 30_000
    document = r'{"prompt": "a \"b\" \\ \u00e9 é", "images": ["TEXT", "data:x"], "o": {"i": "TEXT"}, "n": 1.5}'
    document = document.replace("TEXT", text)
    read = asyncio.run(bodies.parse_json(bytearray(document.encode()), LIMIT))
    assert read == {
        "prompt": 'a "b" \\ é é',
        "images": [text, "data:x"],
        "o": {"i": text},
        "n": 1.5,
    }
    slashes = asyncio.run(bodies.parse_json(bytearray(b'{"image": "' + b"a\\/" * 700_000 + b'"}'), LIMIT))
    assert slashes == {"image": "a/" * 700_000}


@pytest.mark.parametrize(
    "document", [b"", b'"', b'{"a": "', b'{"a": "\\"}', b"{'a': 1}", b'{"a": "\xff"}', b"\xff\xfe{"]
)
def test_what_is_not_json_is_refused(document):
    with pytest.raises(InvalidInput, match="is not JSON"):
        asyncio.run(bodies.parse_json(bytearray(document), LIMIT))


@pytest.mark.parametrize("text", ["[" * 100_000, "[" * 60_000, "1," * 5_000_000])
def test_the_text_of_a_field_is_bounded(text):
    """A field that holds JSON would be parsed whole, and its RecursionError be nobody's."""
    with serving(preload_models=False) as (url, _):
        form = httpx.post(f"{url}/edit", data={"prompt": "x", "expand": text}, files={"image": b"a"}, timeout=60)
        body = httpx.post(f"{url}/edit", json={"prompt": "x", "expand": text, "image": "a"}, timeout=60)
    for answer in (form, body):
        assert answer.status_code in (413, 422)
        assert answer.json()["error"]["field"] in ("expand", "body")


def test_no_codec_but_utf_8_is_used():
    codecs = [module.name for module in pkgutil.iter_modules(encodings.__path__)]
    assert len(codecs) > 100
    form = b'--B\r\nContent-Disposition: form-data; name="prompt"\r\n\r\naaaaaaaaaa-bababa\r\n--B--\r\n'
    with serving(preload_models=False) as (url, service), httpx.Client(base_url=url, timeout=60) as client:

        def status(kind):
            return client.post("/generate", content=form, headers={"Content-Type": kind}).status_code

        service.start().result()
        for codec in [*codecs, "nonsense", "UTF-16"]:
            expected = 200 if codec in ("utf_8", "utf-8") else 415
            if codec != "utf_8":
                assert status(f"multipart/form-data; boundary=B; charset={codec}") == expected, codec
        assert status("application/json; charset=punycode") == 415
        assert status("multipart/form-data; boundary=B; charset=utf-8") == 200
        assert status("multipart/form-data; charset*=punycode''utf-8; boundary=B") in (200, 415)
