"""schemathesis over the OpenAPI document: whatever it thinks of, no answer is a 5xx or outside the document."""

import contextlib
from collections import Counter

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.server.conftest import serving

pytestmark = pytest.mark.slow  # schemathesis sends hundreds of requests

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
#: Cases of each route, valid and invalid ones each; the routes of the document; cases in all.
CASES, ROUTES, LEAST = 150, 20, 1000


def bounded(case):
    """What is valid is made cheap: this is about answers, and not about minutes of drawing."""
    if isinstance(case.body, dict):
        for name, most in (("num_inference_steps", 1), ("num_images", 1), ("n", 1), ("width", 256), ("height", 256)):
            value = case.body.get(name)
            if isinstance(value, int) and not isinstance(value, bool) and value > most:
                case.body[name] = most


def ask_all(operation, mode, seen):
    """Asks one route CASES times; a route without parameters has no invalid request."""

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=CASES, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    def ask(case):
        bounded(case)
        seen[operation.label, mode] += 1
        case.call_and_validate(checks=CHECKS, timeout=60)

    with contextlib.suppress(Unsatisfiable):
        ask()


def test_every_answer_is_in_the_document():
    seen = Counter()
    with serving(max_body_mb=5) as (url, service):
        service.start().result()
        document = schemathesis.openapi.from_url(f"{url}/openapi.json")
        for result in document.get_all_operations():
            for mode in GenerationMode:
                ask_all(result.ok(), mode, seen)
        assert httpx.post(f"{url}/generate", json={"prompt": "x"}).status_code == 200
    assert len({label for label, _ in seen}) == ROUTES
    print(f"{sum(seen.values())} cases")
    assert sum(seen.values()) >= LEAST, seen
