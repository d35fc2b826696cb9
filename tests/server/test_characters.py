"""What is not UTF-8 is refused with its field, wherever it is in a body: in JSON half of a surrogate pair, in a form
any other encoding."""

import json

import httpx
import pytest

from imagegen.contract import aliases
from imagegen.server.main import create_app
from tests.server.conftest import serving
from tests.server.test_every_route import ROUTES
from tests.support import settings
from tests.support.images import scene, to_bytes

HALF = "a\ud800"
#: A text, and where else in a field one may be.
SHAPES = (
    HALF,
    [HALF],
    {"url": HALF},
    ["x", {"image_url": {"url": HALF}}],
    {HALF: 1},
    [[{"x": {HALF: None}}]],
    "\udc00\ud83d",
)
JSON = {"Content-Type": "application/json"}
POSTS = [path for method, path in ROUTES if method == "POST"]


@pytest.fixture(scope="module")
def without_model():
    with serving(preload_models=False) as (url, _), httpx.Client(base_url=url, timeout=300) as client:
        yield client


def fields_of(document, path):
    """The fields of a route by the document, and every other name of them."""
    schema = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    while "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rsplit("/", 1)[-1]]
    return sorted({*schema["properties"], *aliases.ALIASES, *aliases.IGNORED, "unknown"})


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize("key", [{}, {"Idempotency-Key": "k"}], ids=["connection", "stored"])
def test_it_is_refused_in_every_field_and_leaves_no_job(without_model, path, key):
    names = fields_of(create_app(settings()).openapi(), path)
    assert len(names) > 40
    for number, name in enumerate(names):
        for shape in (SHAPES[0], SHAPES[1 + number % (len(SHAPES) - 1)]):
            answer = without_model.post(path, content=json.dumps({"prompt": "x", name: shape}), headers=JSON | key)
            assert answer.status_code in (400, 422), (name, shape, answer.text)
            assert name in answer.text
            assert "holds half of a surrogate pair" in answer.text, (name, shape, answer.text)
    answer = without_model.post(path, content=json.dumps({"prompt": "x", HALF: 1}), headers=JSON | key)
    assert (answer.status_code in (400, 422), "half of a surrogate pair" in answer.text) == (True, True)
    assert without_model.get("/jobs").json()["jobs"] == []


def test_a_whole_pair_is_a_character(client):
    pair = client.post("/jobs", content=rb'{"prompt": "x \ud83d\ude00", "user": "\ud83d\ude00"}', headers=JSON)
    assert (pair.status_code, pair.json()["input"]["user"]) == (202, "\U0001f600")


@pytest.mark.parametrize(("content", "field"), [(rb'["\uD800"]', "[0]"), (rb'"\udfff"', "body")])
def test_a_body_that_is_no_object_is_told_too(without_model, content, field):
    answer = without_model.post("/jobs", content=content, headers=JSON)
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, field)


@pytest.mark.parametrize("path", ["/generate", "/edit", "/jobs", "/v1/images/generations", "/v1/images/edits"])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("prompt", "ein roter Käfer".encode("latin-1")),
        ("user", "Renée".encode("latin-1")),
        ("prompt", "ウサギ".encode("shift_jis")),
        ("prompt", "兔子".encode("gb18030")),
        ("image", b"data:image/png;base64,\xff"),
        ("prompt", "a fox \ud800".encode(errors="surrogatepass")),
    ],
)
def test_a_form_in_another_encoding_is_refused(without_model, path, name, text):
    fields = {"prompt": b"x", name: text}
    parts = [(field, (None, value, "text/plain")) for field, value in fields.items()]
    answer = without_model.post(path, files=parts)
    assert answer.status_code in (400, 422)
    assert f"{name}: byte " in answer.text
    assert "is not UTF-8" in answer.text


def test_a_form_in_utf_8_keeps_its_characters_and_a_files_name_may_be_anything(client):
    parts = [("prompt", (None, "Käfer 🦊".encode(), "text/plain")), ("seed", (None, b"1", "text/plain"))]
    assert client.post("/jobs", files=parts).json()["input"]["prompt"] == "Käfer 🦊"
    png = to_bytes(scene("circle", "red", "blue"))
    part = b'--x\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n'
    body = part % (b"image", b'; filename="K\xe4fer.png"', png) + part % (b"prompt", b"", b"a star") + b"--x--\r\n"
    answer = client.post("/edit", content=body, headers={"Content-Type": "multipart/form-data; boundary=x"})
    assert answer.status_code == 200, answer.text
