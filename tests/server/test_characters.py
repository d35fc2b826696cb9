"""Half of a surrogate pair is no character, and has no UTF-8: wherever it is in a body, its field is refused."""

import json

import httpx
import pytest

from imagegen.contract import aliases
from imagegen.server.main import create_app
from tests.server.conftest import serving
from tests.server.test_every_route import ROUTES
from tests.support import settings

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
    with serving(preload_models=False) as (url, _), httpx.Client(base_url=url, timeout=30) as client:
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
