import asyncio
import inspect
import subprocess
import sys

import pytest
import torch

from imagegen.contract.requests import check, parse_job
from imagegen.errors import InvalidInput
from imagegen.models import get_model
from imagegen.runpod import handler
from tests.support import settings
from tests.support.images import from_base64, scene, to_base64

PROMPT = {"prompt": "a red circle on a blue background"}


@pytest.fixture(autouse=True)
def _the_tests_service(service, monkeypatch):
    monkeypatch.setattr(handler, "service", lambda: service)


def run(job):
    return asyncio.run(handler.handler(job))


def test_importing_starts_nothing():
    code = (
        "import handler, sys, threading;"
        "import imagegen.runpod.handler as ours;"
        "print(threading.active_count(), *({'torch', 'runpod'} & set(sys.modules)), ours.handler is handler.handler)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "True"]
    assert inspect.iscoroutinefunction(handler.handler)


@pytest.mark.parametrize("mode", ["generate", None])
def test_a_generate_is_the_contracts_output(mode):
    output = run({"id": "a", "input": {**PROMPT, "seed": 42, **({"mode": mode} if mode else {})}})
    assert set(output) == {
        "images", "urls", "seeds", "width", "height", "output_format", "model", "timings", "warnings", "loras",
    }  # fmt: skip
    assert output["seeds"] == [42]
    assert from_base64(output["images"][0]).size == (128, 128)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_an_edit_takes_one_to_four_references(count):
    images = [to_base64(scene("circle", colour, "blue")) for colour in ("red", "white", "green", "black")][:count]
    job = {"mode": "edit", "prompt": "make the background green"}
    output = run({"id": "a", "input": {**job, "images": images}})
    assert from_base64(output["images"][0]).size == (128, 128)
    other = [*images[:-1], to_base64(scene("star", "yellow", "purple"))]  # each of them counts, the last one too
    assert run({"id": "a", "input": {**job, "images": other}})["images"] != output["images"]


def test_a_job_that_is_handed_out_twice_is_the_same_image():
    first, second, other = (run({"id": name, "input": PROMPT}) for name in ("job-1", "job-1", "job-2"))
    assert first["images"] == second["images"]
    assert first["seeds"] == second["seeds"] != other["seeds"]


@pytest.mark.parametrize(
    ("job", "field"),
    [
        (None, "input"),
        ([], "input"),
        (3, "input"),
        ({}, "input"),
        ({"id": "a"}, "input"),
        ({"id": "a", "input": None}, "input"),
        ({"id": "a", "input": [PROMPT]}, "input"),
        ({"id": "a", "input": 3}, "input"),
        ({"id": None, "input": {}}, "prompt"),
        ({"id": "a", "input": {**PROMPT, "mode": "paint"}}, "mode"),
        ({"id": "a", "input": {**PROMPT, "width": 1000, "height": 512}}, "width"),
        ({"id": "a", "input": {**PROMPT, "image": "rubbish!"}}, "images[0]"),
        ({"id": "\ud800", "input": {"prompt": "\ud800"}}, "prompt"),
    ],
)
def test_a_mistake_is_answered_and_the_next_job_passes(job, field):
    output = run(job)
    assert set(output) == {"error", "code", "field", "retryable"}
    assert output["error"].startswith(f"{output['code']}: {field}: ")
    assert output["field"] == field
    assert output["retryable"] is False
    assert run({"id": "next", "input": PROMPT})["images"]


def test_a_cancelled_job_is_answered_as_cancelled():
    async def cancel():
        task = asyncio.create_task(
            handler.handler({"id": "a", "input": {**PROMPT, "num_inference_steps": 50, "num_images": 8}})
        )
        await asyncio.sleep(0.3)
        task.cancel()
        return await task

    output = asyncio.run(cancel())
    assert output["code"] == "cancelled"
    assert run({"id": "next", "input": PROMPT})["images"]


@pytest.mark.parametrize(("identity", "limit"), [("abc-u1", 10_000_000), ("sync-abc-u1", 20_000_000)])
def test_an_answer_must_fit_the_way_it_takes(service, monkeypatch, identity, limit):
    seen = []

    async def note(request, *, max_answer, **_):
        seen.append(max_answer)
        raise RuntimeError("what was sent")

    monkeypatch.setattr(service, "run", note)
    output = run({"id": identity, "input": PROMPT})
    assert seen == [limit]
    assert output["code"] == "internal"  # whatever goes wrong is an answer, and says nothing of the inside
    assert "what was sent" not in str(output)


def test_too_large_an_answer_is_an_error_and_not_silence(monkeypatch):
    monkeypatch.setattr(handler, "get_settings", lambda: settings(max_result_mb=0.01))
    output = run({"id": "a", "input": {**PROMPT, "width": 512, "height": 512}})
    assert output["code"] == "result_too_large"
    assert "allowed" in output["error"]


@pytest.mark.parametrize(
    ("raised", "code", "replaced"),
    [(torch.OutOfMemoryError, "out_of_memory", False), (torch.AcceleratorError, "gpu_failed", True)],
)
def test_only_a_dead_gpu_asks_for_a_new_worker(service, monkeypatch, raised, code, replaced):
    def fail(*_, **__):
        raise raised("CUDA error")

    monkeypatch.setattr(service.executor, "_dead", None)
    monkeypatch.setattr(service.start().result()._pipe.transformer, "forward", fail)
    output = run({"id": "a", "input": PROMPT})
    assert output["code"] == code
    assert output.get("refresh_worker", False) == replaced


def test_micro_is_what_is_served(service):
    assert service.spec == get_model("micro")


def test_a_stream_s_answer_leaves_room_for_its_previews(service, monkeypatch):
    seen = []

    async def note(request, *, max_answer, **_):
        seen.append(max_answer)
        raise RuntimeError

    monkeypatch.setattr(service, "run", note)
    asyncio.run(handler.answer({"id": "a", "input": PROMPT}, None, 8))
    assert seen == [8_000_000]


@pytest.mark.parametrize(
    ("limit", "field", "value"),
    [({"timeout": 5}, "timeout", 6), ({"max_steps": 3}, "num_inference_steps", 4)],
)
def test_the_operator_s_limit_is_an_upper_bound_and_less_may_be_asked_for(limit, field, value):
    few = settings(**limit)
    with pytest.raises(InvalidInput, match=f"{field}: {value} .* are too many here; 1 to {value - 1} are allowed"):
        check(parse_job({**PROMPT, field: value}), get_model("micro"), few)
    check(parse_job({**PROMPT, "num_inference_steps": 1, field: value - 1}), get_model("micro"), few)
