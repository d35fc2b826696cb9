import json

import pytest

from imagegen import errors

CONTRACT = {
    "invalid_input": 422,
    "bad_lora": 422,
    "bad_reference": 422,
    "payload_too_large": 413,
    "unauthorized": 401,
    "forbidden": 403,
    "not_found": 404,
    "method_not_allowed": 405,
    "unsupported_media_type": 415,
    "overloaded": 429,
    "limit_exceeded": 429,
    "conflict": 409,
    "expired": 410,
    "idempotency_key_reuse": 422,
    "store_failed": 507,
    "not_ready": 503,
    "load_failed": 503,
    "result_too_large": 413,
    "delivery_failed": 502,
    "out_of_memory": 507,
    "gpu_failed": 503,
    "cancelled": 499,
    "deadline_exceeded": 504,
    "internal": 500,
}
#: The same request may succeed later, or at another worker.
RETRYABLE = {
    "overloaded", "limit_exceeded", "not_ready", "delivery_failed", "gpu_failed", "deadline_exceeded", "internal",
    "store_failed",
}  # fmt: skip
KINDS = errors.ImageGenError.__subclasses__()


def test_codes_and_statuses_are_the_contracts():
    assert {kind.code: kind.status for kind in KINDS} == CONTRACT


def test_what_may_be_tried_again_is_the_contracts():
    assert {kind.code for kind in KINDS if kind.retryable} == RETRYABLE


def test_the_tree_in_the_docstring_is_whole():
    for kind in KINDS:
        row = next(line for line in errors.__doc__.splitlines() if kind.__name__ in line)
        assert f"{kind.code} {kind.status}" in row


@pytest.mark.parametrize("kind", KINDS)
def test_both_endpoints_say_the_same(kind):
    error = kind("width: 1000 is not a multiple of 16", "width")
    body, output = error.body(), error.output()
    assert body == {
        "code": kind.code,
        "message": "width: 1000 is not a multiple of 16",
        "field": "width",
        "retryable": kind.retryable,
    }
    assert output.pop("error") == f"{kind.code}: width: 1000 is not a multiple of 16"
    assert output.pop("refresh_worker", False) == (kind is errors.GpuFailed)
    assert output == {key: body[key] for key in ("code", "field", "retryable")}
    json.dumps([body, output])
