"""Jobs through the service: seeds, sizes, formats, warnings, errors, logs."""

import asyncio
import logging
import time
from dataclasses import replace

import pytest

from imagegen.contract.requests import parse_job
from imagegen.engine.service import Service
from imagegen.errors import (
    BadReference,
    Internal,
    InvalidInput,
    OutOfMemory,
    ResultTooLarge,
)
from imagegen.inputs.decoding import Reference
from imagegen.memory.plan import RESERVE, Gpu
from imagegen.memory.planner import choose
from imagegen.models import get_model
from tests.support import settings
from tests.support.images import from_base64, scene, to_base64
from tests.support.jobs import run


def test_an_answer_is_whole(service):
    answer = run(service, seed=42)
    assert (answer.width, answer.height, answer.model, answer.output_format) == (128, 128, "micro", "png")
    assert answer.seeds == [42]
    assert answer.urls == answer.warnings == []
    assert from_base64(answer.images[0]).size == (128, 128)


def test_every_stage_is_timed_and_the_stages_are_the_total(service):
    image = to_base64(scene("circle", "red", "blue"))
    times = run(service, prompt="a prompt that is in no cache", image=image, num_images=2).timings
    assert all(value > 0 for name, value in times if name != "composite")
    stages = sum(value for name, value in times if name != "total")
    assert stages == pytest.approx(times.total, rel=0.2, abs=0.05)


def test_any_image_of_a_job_can_be_made_again_alone(service):
    several = run(service, seed=7, num_images=3)
    assert several.seeds == [7, 8, 9]
    assert len(set(several.images)) == 3
    for seed, picture in zip(several.seeds, several.images, strict=True):
        assert run(service, seed=seed).images == [picture]


def test_a_seed_that_was_not_given_is_chosen_and_returned(service):
    first, second = run(service), run(service)
    assert first.seeds != second.seeds
    assert 0 <= first.seeds[0] < 2**32
    assert run(service, seed=first.seeds[0]).images == first.images
    assert run(service, default_seed=11).seeds == [11]


def test_jobs_that_come_together_are_all_answered_and_as_if_alone(service):
    async def together():
        requests = [parse_job({"prompt": "a red circle", "seed": seed}) for seed in range(6)]
        return await asyncio.gather(*(service.run(request) for request in requests))

    answers = asyncio.run(together())
    assert [answer.images for answer in answers] == [
        run(service, prompt="a red circle", seed=s).images for s in range(6)
    ]


def test_an_edit_takes_the_shape_of_its_first_reference(service):
    first = to_base64(scene("circle", "red", "blue").resize((200, 100)))
    answer = run(service, images=[first, to_base64(scene("star", "green", "white"))])
    assert (answer.width, answer.height) == (208, 96) or (answer.width, answer.height) == (192, 96)
    assert run(service, images=[first], aspect_ratio="1:1").width == 128
    assert run(service, images=[first], width=64, height=96).height == 96


def test_the_bad_one_of_several_references_is_named(service):
    good = to_base64(scene("circle", "red", "blue"))
    with pytest.raises(BadReference) as caught:
        run(service, images=[good, good, "rubbish", good])
    assert caught.value.field == "images[2]"
    assert run(service, images=[good]).images


def test_what_this_worker_has_not_is_refused(service):
    with pytest.raises(InvalidInput, match="delivery: 'url' needs an object store") as caught:
        run(service, delivery="url")
    assert caught.value.field == "delivery"
    with pytest.raises(InvalidInput, match="width: 1040 is out of bounds"):
        run(service, width=1040, height=512)


def test_words_that_the_model_does_not_know_are_warned_of(service):
    (warning,) = run(service, prompt="A sunset over the sea, with one RED circle. Sea!").warnings
    assert warning.startswith("prompt: micro does not know sunset, sea; it draws circles, squares, triangles and stars")
    (warning,) = run(service, prompt="一只猫 " + " ".join(f"word{chr(97 + i)}" for i in range(20))).warnings
    assert len(warning) < 400
    assert run(service, prompt="make the square green").warnings == []
    assert run(service, prompt="...").images  # an empty overlap is still an image


def test_a_prompt_that_comes_again_is_counted_and_answered_with_the_same_warnings(service):
    def counted(cached):
        return service.metrics._registry.get_sample_value("imagegen_prompts_total", {"cached": cached}) or 0

    known, new = counted("true"), counted("false")
    answers = [run(service, prompt="an orange gnu on a purple background", seed=seed) for seed in (3, 4, 3)]
    assert (counted("true") - known, counted("false") - new) == (2, 1)
    assert answers[0].images == answers[2].images != answers[1].images
    assert answers[0].warnings == answers[1].warnings
    assert "gnu" in answers[0].warnings[0]


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
def test_formats(service, output_format):
    answer = run(service, output_format=output_format, output_quality=80)
    assert answer.output_format == output_format
    assert from_base64(answer.images[0]).format == output_format.upper()


def test_too_large_an_answer_is_an_error_or_a_smaller_format(service):
    fields = {"width": 512, "height": 512, "seed": 1, "num_inference_steps": 1}
    size = len(run(service, **fields).images[0])
    with pytest.raises(ResultTooLarge) as caught:
        run(service, max_answer=size - 1, **fields)
    assert "allow_format_change" in caught.value.message
    smaller = run(service, max_answer=size - 1, allow_format_change=True, **fields)
    assert smaller.output_format == "webp"
    assert smaller.warnings == ["output_format: png was too large to send; this is webp"]
    assert from_base64(smaller.images[0]).format == "WEBP"
    with pytest.raises(ResultTooLarge):
        run(service, max_answer=4200, allow_format_change=True, **fields)


def test_how_long_jobs_take_to_get_ready_is_known(monkeypatch):
    fresh = Service(settings())

    def slow(*arguments):
        time.sleep(0.3)
        return Reference(scene("circle", "red", "blue"), [])

    monkeypatch.setattr("imagegen.inputs.decoders.Decoders._load", slow)
    run(fresh)
    assert fresh.runner.mean_prepare_seconds < 0.05
    for _ in range(4):
        run(fresh, image="x")
    assert fresh.runner.mean_prepare_seconds > 0.2  # on its way to 0.3
    fresh.close()


def test_a_bug_is_an_id_for_the_caller_and_a_traceback_for_the_log(service, monkeypatch, caplog):
    secret = "pass" + "wd"

    def fail(*_):
        raise RuntimeError(secret)

    monkeypatch.setattr("imagegen.engine.gpu_executor.generate_images", fail)
    with caplog.at_level(logging.ERROR), pytest.raises(Internal) as caught:
        run(service)
    number = caught.value.message.split()[-1]
    assert number in caplog.text
    assert "RuntimeError" in caplog.text
    assert "in fail" in caplog.text
    assert "passwd" not in caplog.text
    assert "passwd" not in caught.value.message
    monkeypatch.undo()
    assert run(service).images


def test_prompts_and_images_are_in_no_log(service, caplog):
    canary = "xylophone canary"
    with caplog.at_level(logging.DEBUG):
        run(service, prompt=canary, embed_prompt=True)
        with pytest.raises(BadReference):
            run(service, prompt=canary, image="canary!!")
        reference = to_base64(scene("circle", "red", "blue"))
        answer = run(service, prompt=canary, image=reference)
    assert "canary" not in caplog.text
    assert reference[60:120] not in caplog.text
    assert answer.images[0][60:120] not in caplog.text


def test_a_wrong_size_does_not_wait_for_the_model(monkeypatch):
    idle = Service(settings())
    monkeypatch.setattr(idle.host, "start", lambda: pytest.fail("it waits for the model"))
    with pytest.raises(InvalidInput, match="width: 1040"):
        run(idle, width=1040, height=512)
    idle.close()


def test_an_image_that_cannot_fit_is_refused_before_the_gpu_works_for_it(service, monkeypatch):
    pipeline = service.start().result()
    plan = choose(get_model("klein-9b"), Gpu.of(24, (8, 9)))
    small = replace(plan, gpu=Gpu(plan.peak_of((800, 800), []) + RESERVE, (8, 9)))
    monkeypatch.setattr(pipeline, "config", replace(pipeline.config, plan=small))
    monkeypatch.setattr(service.executor, "run", None)  # nothing comes as far as the GPU's queue
    with pytest.raises(OutOfMemory) as caught:
        run(service, width=1024, height=1024)
    assert caught.value.message == "width: 1024x1024 does not fit the GPU's memory; 800x800 does"
    assert caught.value.field == "width"


def test_health_shows_the_plan(service):
    memory = service.health().memory
    assert (memory.transformer, memory.offload, memory.card, memory.references) == ("bf16", "none", None, 4)
    assert memory.weights["transformer"] > memory.weights["vae"] > 0
    assert memory.plan.startswith("micro on the CPU: float32")
