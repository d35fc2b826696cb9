"""Ten thousand jobs that nobody should send, through RunPod's handler with the real model: each is an image or one of
the contract's errors, and the worker is there for the next."""

import asyncio
import base64
import json
from collections import Counter

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from imagegen.contract.schemas import EditRequest, GenerateRequest
from imagegen.errors import ImageGenError
from imagegen.runpod import handler
from tests.support.images import from_base64, scene, to_base64, to_bytes

JOBS = 10_000
CODES = {kind.code for kind in ImageGenError.__subclasses__()} - {
    "internal",
    "gpu_failed",
    "out_of_memory",
    "cancelled",
}
PICTURES = [to_bytes(scene("circle", "red", "blue").resize((64, 64)), kind) for kind in ("PNG", "JPEG", "WEBP")]

#: Text with all that Unicode has, halves of pairs and controls too, and what is known to break things.
TEXT = st.one_of(
    st.text(st.characters(), max_size=40),
    st.sampled_from(["", " ", "\x00", "\ud800", "\u202eabc", "é" * 4001, "\U0001d15e" * 3999, "a" * 10**6, "{{7*7}}",
                     "../../etc/passwd", "'; DROP TABLE", "%s%n", "NaN", "1e309", "<|im_end|>", "\u200b\ufeff"]),
)  # fmt: skip
NUMBER = st.one_of(
    st.just(5000).map(lambda digits: 10**digits),  # Python itself refuses to write it out
    st.integers(),
    st.floats(),
    st.sampled_from([-1, 0, 1, 2**31, 2**53 - 1, 2**53, 2**64, 10**400, -0.0, 1e308, float("nan"), float("inf")]),
)


def nested(depth, leaf):
    for i in range(depth):
        leaf = [leaf] if i % 2 else {"a": leaf}
    return leaf


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    NUMBER,
    TEXT,
    st.recursive(NUMBER | TEXT, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3)),
    st.builds(nested, st.sampled_from([10, 1000, 100_000]), TEXT),
    st.just([[]] * 10_000),
)


@st.composite
def reference(draw):
    """An image, whole or damaged, in one of the forms that a reference may come in, or in none."""
    data = bytearray(draw(st.sampled_from(PICTURES)))
    for _ in range(draw(st.sampled_from([0, 0, 1, 5, 50]))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    data = data[: draw(st.sampled_from([len(data), len(data), len(data) // 2, 20]))]
    text = base64.b64encode(bytes(data)).decode()
    prefix = draw(
        st.sampled_from(["", "", "data:image/png;base64,", "data:,", "http://127.0.0.1:1/", "file:///", "HTTPS://["])
    )
    return prefix + text + draw(st.sampled_from(["", "", "=", "\n", "!"]))


def of_schema(name, schema):
    """Values that a field's JSON schema allows."""
    if name == "images":
        return st.lists(reference(), min_size=1, max_size=4)
    if "anyOf" in schema:
        return st.one_of(*(of_schema(name, option) for option in schema["anyOf"]))
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    low, high = schema.get("minimum"), schema.get("maximum")
    return {
        "array": st.just([]),  # of adapters: there are none here, and junk comes to every field
        "null": st.none(),
        "boolean": st.booleans(),
        "integer": st.integers(low, high),
        "number": st.floats(low, high, allow_nan=False),
        "object": st.dictionaries(st.sampled_from(["left", "right", "top", "bottom"]), st.integers(0, 40)),
        "string": st.text(min_size=schema.get("minLength", 0), max_size=60),
    }[schema.get("type", "object")]


FIELDS = {
    schema: {name: of_schema(name, field) for name, field in schema.model_json_schema()["properties"].items()}
    for schema in (GenerateRequest, EditRequest)
}
SIDE = st.sampled_from([64, 64, 80, 128])
#: What keeps a job that turns out to be good from taking seconds.
CHEAP = {"width": SIDE, "height": SIDE, "num_inference_steps": st.integers(1, 2), "num_images": st.integers(1, 2)}


@st.composite
def job_input(draw):
    """Fields after the schema, some left out, some replaced by junk, some that nobody knows."""
    fields = FIELDS[draw(st.sampled_from(list(FIELDS)))]
    job = {"prompt": draw(st.sampled_from(["a red circle", "a green star"]) | fields["prompt"])}
    for name in draw(st.lists(st.sampled_from(list(fields)), max_size=5, unique=True)):
        if name not in ("width", "height"):
            job[name] = draw(CHEAP.get(name, fields[name]))
    if "images" in fields:
        job.setdefault("images", draw(fields["images"]))
    if "aspect_ratio" not in job:
        job |= {"width": draw(SIDE), "height": draw(SIDE)}
    for _ in range(draw(st.sampled_from([0, 1, 1, 1, 2, 3]))):
        known = st.sampled_from([*fields, "mode", "image", "openai_route", "openai_input"])
        job[draw(known | TEXT)] = draw(JUNK)
    for name, most in (("num_inference_steps", 2), ("num_images", 2)):
        if isinstance(job.get(name), int) and most < job[name] <= 50:
            job[name] = most
    if isinstance(job.get("mode"), str) or draw(st.booleans()):
        job.setdefault("mode", "edit" if "images" in job else "generate")
    return job


#: Half are jobs of which the input alone may be bad. one_of would take a strategy that it is given twice for one.
JOB = st.integers(0, 3).flatmap(
    lambda kind: (
        st.fixed_dictionaries({"id": st.just("a-job"), "input": job_input()})
        if kind < 2
        else st.fixed_dictionaries(
            {}, optional={"id": JUNK, "input": job_input() | JUNK, "s3Config": JUNK, "policy": JUNK}
        )
        if kind < 3
        else JUNK
    )
)


@pytest.mark.slow  # thousands of jobs
def test_no_job_is_answered_by_anything_but_the_contract(service, monkeypatch, capsys):
    monkeypatch.setattr(handler, "service", lambda: service)
    outcomes: Counter[str] = Counter()

    with asyncio.Runner() as runner:
        # A few are the same in every run, of which enough are drawn; ten thousand are others each time.
        @settings(
            max_examples=JOBS,
            derandomize=JOBS < 1000,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(JOB)
        def fuzz(job):
            output = runner.run(handler.handler(job))
            json.dumps(output, allow_nan=False)
            outcomes[output.get("code", "drawn")] += 1
            if "error" in output:
                assert set(output) == {"error", "code", "field", "retryable"}
                assert output["code"] in CODES
                assert len(output["error"]) < 1000
                assert "Traceback" not in output["error"]
            else:
                assert output["images"]
                assert len(output["seeds"]) == len(output["images"])

        fuzz()
        after = runner.run(handler.handler({"id": "after", "input": {"prompt": "a red circle"}}))
    assert from_base64(after["images"][0]).size == (128, 128)
    assert outcomes.total() >= JOBS
    assert outcomes["drawn"] > JOBS / 50
    with capsys.disabled():
        print(f"\n{outcomes.total()} jobs: {dict(outcomes.most_common())}")


def test_a_few_of_them_in_every_run(service, monkeypatch, capsys):
    monkeypatch.setattr("tests.e2e.test_fuzz.JOBS", 150)
    test_no_job_is_answered_by_anything_but_the_contract(service, monkeypatch, capsys)


def test_the_reference_of_a_good_job_is_one(service, monkeypatch):
    """The images that are damaged above are good before."""
    monkeypatch.setattr(handler, "service", lambda: service)
    for data in PICTURES:
        job = {"id": "a-job", "input": {"prompt": "make it green", "image": to_base64(data), "width": 64, "height": 64}}
        assert asyncio.run(handler.handler(job))["images"]
