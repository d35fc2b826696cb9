"""schemathesis over the OpenAPI document, with its default checks: whatever it thinks of, no answer is a 5xx or outside
the document, what the document allows is done, and what it does not is refused."""

import base64
import contextlib
import io
import uuid
from collections import Counter

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings, strategies
from hypothesis.errors import Unsatisfiable
from PIL import Image
from schemathesis import GenerationMode
from schemathesis.core.failures import AcceptedNegativeData, FailureGroup
from schemathesis.specs.openapi.checks import _form_body_is_valid_as_sent
from schemathesis.specs.openapi.negative import _strip_binary
from schemathesis.transport.serialization import Binary, contains_binary

from tests.server.conftest import serving

pytestmark = pytest.mark.slow  # schemathesis sends thousands of requests

#: Cases of each route, valid and invalid ones each; cases in all.
CASES, LEAST = 80, 2000


def _picture():
    """Half black and half white, so that it is a mask too; of a shape that no aspect_ratio is."""
    image = Image.new("RGB", (80, 64))
    image.paste((255, 255, 255), (0, 0, 40, 64))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


PICTURE = _picture()
# What no schema can say: a string that is an image; a URL that leads to a web server.
schemathesis.openapi.format("image", strategies.just(base64.b64encode(PICTURE).decode()))
schemathesis.openapi.format("binary", strategies.just(Binary(PICTURE)))
schemathesis.openapi.format("web-url", strategies.just("https://example.com/hook"))


def bounded(case):
    """What is valid is made cheap: this is about answers, and not about minutes of generating. A key that came before
    belongs to another body."""
    if case.headers and "Idempotency-Key" in case.headers:
        case.headers["Idempotency-Key"] = uuid.uuid4().hex
    if not isinstance(case.body, dict):
        return
    sizes = [(case.body, name) for name in ("width", "height")]
    if isinstance(case.body.get("expand"), dict):  # a canvas may have 36 megapixels, its photo included
        sizes += [(case.body["expand"], side) for side in case.body["expand"]]
    for fields, name in sizes:
        value = fields.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and value > 64:
            fields[name] = 64


def is_valid_as_text(failure, case, response):
    """Whether a form that schemathesis calls invalid is valid as it was sent: an object for a prompt is its JSON.

    It looks at that itself (`_body_negation_becomes_valid_after_serialization`), but its validator cannot take its own
    wrapper of a file's bytes, and it then calls the form invalid (4.32). So it looks once more, without the bytes.
    """
    if not isinstance(failure, AcceptedNegativeData) or not contains_binary(case.body):
        return False
    body, case.body = case.body, _strip_binary(case.body)
    try:
        return _form_body_is_valid_as_sent(response, case, case.media_type)
    finally:
        case.body = body


def ask_all(operation, mode, seen, failures):
    """Asks one route CASES times; a route without parameters has no invalid request."""

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=CASES, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    def ask(case):
        if mode.is_positive:
            bounded(case)
        seen[operation.label, mode] += 1
        try:
            response = case.call(timeout=60)
            if response.status_code != 504:  # a deadline that the case chose
                case.validate_response(response)
        except FailureGroup as group:
            for failure in group.exceptions:
                if is_valid_as_text(failure, case, response):
                    continue
                failures.setdefault((operation.label, type(failure).__name__), f"{failure}\n{case.as_curl_command()}")

    with contextlib.suppress(Unsatisfiable):
        ask()


def test_every_answer_is_in_the_document():
    seen, failures = Counter(), {}
    with serving(max_body_mb=5, max_steps=4, max_images=2) as (url, service):
        service.start().result()
        document = schemathesis.openapi.from_url(f"{url}/openapi.json", timeout=120)
        for result in document.get_all_operations():
            for mode in GenerationMode:
                ask_all(result.ok(), mode, seen, failures)
        assert httpx.post(f"{url}/generate", json={"prompt": "x"}).status_code == 200
    print(f"{sum(seen.values())} cases of {len({label for label, _ in seen})} routes")
    assert not failures, "\n\n".join(f"{label}: {failure[:1500]}" for label, failure in failures.items())
    assert sum(seen.values()) >= LEAST, seen
