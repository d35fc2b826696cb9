import math
import random
from dataclasses import replace

import pytest

from imagegen.contract.requests import check, parse_job, plan
from imagegen.contract.schemas import EditRequest, GenerateRequest
from imagegen.errors import InvalidInput
from imagegen.models import MEGAPIXEL, fit, get_model
from tests.support import settings

KLEIN, MICRO = get_model("klein-9b"), get_model("micro")


def planned(spec=KLEIN, reference=None, seed=7, **fields):
    request = parse_job({"prompt": "x", **fields})
    check(request, spec, settings())
    return plan(request, spec, reference, seed)


@pytest.mark.parametrize(
    ("job", "field", "parts"),
    [
        (None, "input", ["null"]),
        ([], "input", ["a list"]),
        (3, "input", ["3"]),
        ("draw", "input", ["a string"]),
        ({}, "prompt", ["missing"]),
        ({"prompt": ""}, "prompt", ["empty", "4000"]),
        ({"prompt": "  \n"}, "prompt", ["blank", "4000"]),
        ({"prompt": "x" * 4001}, "prompt", ["4001", "4000"]),
        ({"prompt": 5}, "prompt", ["string", "5"]),
        ({"prompt": None}, "prompt", ["missing", "4000"]),
        ({"prompt": ["x"]}, "prompt", ["string", "a list"]),
        ({"prompt": "x", "mode": "paint"}, "mode", ["'paint'", "generate and edit"]),
        ({"prompt": "x", "mode": ["edit"]}, "mode", ["generate and edit"]),
        ({"prompt": "x", "stepz": 4}, "stepz", ["not a field", "the nearest is steps", "num_inference_steps"]),
        ({"prompt": "x", "mode": "generate", "images": ["a"]}, "images", ["not a field of generate"]),
        ({"prompt": "x", "mode": "edit"}, "images", ["missing"]),
        ({"prompt": "x", "mode": "edit", "images": []}, "images", ["missing"]),
        ({"prompt": "x", "images": ["a"] * 5}, "images", ["5 references", "1 to 4"]),
        ({"prompt": "x", "images": ["a", 2]}, "images[1]", ["string", "2"]),
        ({"prompt": "x", "image": "a", "images": ["a"]}, "image", ["together"]),
        ({"prompt": "x", "width": 512}, "height", ["missing", "width"]),
        ({"prompt": "x", "width": "512", "height": 512}, "width", ["integer", "'512'"]),
        ({"prompt": "x", "width": 512, "height": 512, "aspect_ratio": "1:1"}, "aspect_ratio", ["together"]),
        ({"prompt": "x", "aspect_ratio": "5:4"}, "aspect_ratio", ["'5:4'", "16:9"]),
        ({"prompt": "x", "num_inference_steps": 51}, "num_inference_steps", ["51", "1 to 50"]),
        ({"prompt": "x", "num_images": 0}, "num_images", ["0", "1 to 8"]),
        ({"prompt": "x", "seed": -2}, "seed", ["-2", "0 to 9007199254740991"]),
        ({"prompt": "x", "seed": True}, "seed", ["integer", "true"]),
        ({"prompt": "x", "guidance_scale": 21}, "guidance_scale", ["21", "0"]),
        ({"prompt": "x", "output_format": "gif"}, "output_format", ["'gif'", "png", "webp"]),
        ({"prompt": "x", "timeout": 0}, "timeout", ["0", "3600"]),
    ],
)
def test_a_mistake_is_named_with_what_came_and_what_is_allowed(job, field, parts):
    with pytest.raises(InvalidInput) as caught:
        parse_job(job)
    assert caught.value.field == field
    assert caught.value.message.startswith(f"{field}: ")
    for part in parts:
        assert part in caught.value.message


def test_a_message_never_repeats_a_long_value():
    with pytest.raises(InvalidInput) as caught:
        parse_job({"prompt": "x", "output_format": "g" * 10_000})
    assert len(caught.value.message) < 300


def test_mode_follows_from_the_references():
    assert isinstance(parse_job({"prompt": "x"}), GenerateRequest)
    assert isinstance(parse_job({"prompt": "x", "image": "a"}), EditRequest)
    assert isinstance(parse_job({"prompt": "x", "mode": "edit", "images": ["a"]}), EditRequest)


@pytest.mark.parametrize(
    ("spec", "side", "message"),
    [
        (KLEIN, 1000, "width: 1000 is not a multiple of 16 (256 to 2048)"),
        (KLEIN, 240, "width: 240 is out of bounds (256 to 2048, multiples of 16)"),
        (KLEIN, 2064, "width: 2064 is out of bounds (256 to 2048, multiples of 16)"),
        (MICRO, 1040, "width: 1040 is out of bounds (64 to 1024, multiples of 16)"),
        (MICRO, -16, "width: -16 is out of bounds (64 to 1024, multiples of 16)"),
    ],
)
def test_sizes_are_the_models(spec, side, message):
    with pytest.raises(InvalidInput) as caught:
        planned(spec, width=side, height=512)
    assert caught.value.message == message
    assert caught.value.field == "width"


def test_what_is_left_out_comes_from_the_model():
    made = planned()
    assert (made.width, made.height, made.num_inference_steps, made.guidance_scale) == (1024, 1024, 4, 1.0)
    base = planned(get_model("klein-base-9b"))
    assert (base.num_inference_steps, base.guidance_scale) == (50, 4.0)
    assert planned(get_model("klein-base-9b"), guidance_scale=3).guidance_scale == 3


def test_a_distilled_model_warns_of_guidance():
    made = planned(guidance_scale=7)
    assert made.guidance_scale == 1.0
    assert made.warnings == ("guidance_scale: klein-9b is distilled and does not use it",)
    assert planned(guidance_scale=1.0).warnings == ()


def test_seeds_count_up_and_wrap():
    assert planned(seed=5, num_images=3).seeds == (5, 6, 7)
    assert plan(parse_job({"prompt": "x"}), KLEIN, None, 9).seeds == (9,)
    assert planned(seed=2**53 - 1, num_images=2).seeds == (2**53 - 1, 0)


@pytest.mark.parametrize("ratio", ["1:1", "16:9", "9:16", "4:3", "3:4", "3:2", "2:3", "21:9", "9:21"])
def test_an_aspect_ratio_has_the_default_area(ratio):
    across, down = map(int, ratio.split(":"))
    made = planned(aspect_ratio=ratio)
    assert made.width % 16 == made.height % 16 == 0
    assert made.width * made.height == pytest.approx(1024 * 1024, rel=0.03)
    assert made.width / made.height == pytest.approx(across / down, rel=0.03)


@pytest.mark.parametrize("ratio", [None, "match_input"])
@pytest.mark.parametrize(
    ("reference", "wanted"), [((512, 768), (512, 768)), ((640, 352), (640, 352)), ((128, 64), (512, 256))]
)
def test_an_edit_has_its_first_references_shape(ratio, reference, wanted):
    fields = {"aspect_ratio": ratio} if ratio else {}
    made = planned(KLEIN, reference, image="a", **fields)
    assert (made.width, made.height) == wanted


@pytest.mark.parametrize("spec", [KLEIN, MICRO])
@pytest.mark.parametrize("reference", [(1184, 880), (1360, 768), (1440, 720), (2048, 512), (1008, 336)])
def test_the_shape_of_a_large_reference_survives_the_models_bounds(spec, reference):
    made = planned(spec, reference, image="a")
    assert made.width / made.height == pytest.approx(reference[0] / reference[1], rel=0.05)


@pytest.mark.parametrize("size", [(1, 1), (1024, 1024), (1030, 1030), (4000, 3000), (999, 17), (8000, 1000), (63, 504)])
def test_fit_keeps_the_bounds(size):
    width, height = fit(size[0], size[1], 64, 4096)
    assert width % 16 == height % 16 == 0
    assert min(width, height) >= 64
    assert width * height <= MEGAPIXEL


def test_fit_of_the_longest_shapes_keeps_to_few_pixels():
    for across, down in ((512, 64), (64, 512), (8272, 64), (2.0, 4000.0)):
        width, height = fit(across, down, 64, 1024, 128**2)
        assert min(width, height) >= 64
        assert width * height <= 128**2


@pytest.mark.parametrize("high", [1024, 2048, 4096])
def test_fit_holds_for_every_size_and_keeps_the_shape(high):
    rng = random.Random(high)
    for _ in range(20_000):
        size = rng.randint(64, 5000), rng.randint(64, 5000)
        width, height = fit(*size, 64, high)
        assert width % 16 == height % 16 == 0
        assert 64 <= width <= high
        assert 64 <= height <= high
        assert width * height <= MEGAPIXEL
        if max(size) <= 8 * min(size):  # within rounding to 16
            assert abs(math.log(width / height * size[1] / size[0])) <= 16 / width + 16 / height


@pytest.mark.parametrize("prompt", ["\ud800", "a \udfff b"])
def test_half_a_surrogate_pair_is_the_callers_mistake(prompt):
    with pytest.raises(InvalidInput, match="^prompt: "):
        parse_job({"prompt": prompt})


def test_deep_and_huge_values_are_named_without_being_walked():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    for value in (deep, 10**5000, {"a": deep}, float("nan")):
        for field in ("prompt", "width", "seed", "images", "mode", "output_format"):
            with pytest.raises(InvalidInput) as caught:
                check(parse_job({"prompt": "x", "height": 512, field: value}), MICRO, settings())
            assert len(caught.value.message) < 300
    with pytest.raises(InvalidInput) as caught:
        parse_job({"prompt": "x", "y" * 1_000_000: 1})
    assert len(caught.value.message) < 500


def test_more_references_than_the_model_takes():
    two = replace(MICRO, max_references=2)
    with pytest.raises(InvalidInput, match="images: 3 references are too many here; 1 to 2 are allowed"):
        check(parse_job({"prompt": "x", "images": ["a"] * 3}), two, settings())


@pytest.mark.parametrize(
    "job",
    [
        "canary",
        ["canary"],
        {"prompt": ["canary"]},
        {"prompt": {"canary": 1}},
        {"prompt": "canary\ud800"},
        {"prompt": "canary\x00"},
        {"prompt": "canary" * 1000},
        {"prompt": "x", "image": [["canary"]]},
        {"prompt": "x", "negative_prompt": "canary\x00"},
        {"prompt": "x", "image": {"canary": "canary"}},
        {"prompt": "x", "image": "a", "mask": {"canary": "canary"}},
        {"prompt": "x", "images": "canary"},
        {"prompt": "x", "images": [["canary"]]},
    ],
)
def test_an_error_repeats_neither_words_nor_images(job):
    with pytest.raises(InvalidInput) as caught:
        parse_job(job)
    assert "canary" not in str(caught.value.body())
