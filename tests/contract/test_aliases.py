"""What clients of other workers send: their names, their nulls, their numbers."""

import json

import pytest

from imagegen.contract import aliases
from imagegen.contract.requests import parse_job, plan, renamed
from imagegen.contract.schemas import EditRequest, GenerateRequest
from imagegen.errors import BadReference, InvalidInput
from imagegen.models import get_model
from tests.docs.pages import section

KLEIN, BASE = get_model("klein-9b"), get_model("klein-base-9b")
GENERATE = sorted(GenerateRequest.model_fields)
EDIT = sorted(EditRequest.model_fields)


@pytest.mark.parametrize("empty", [None, "", [], {}])
@pytest.mark.parametrize("field", [*EDIT, "mode", *aliases.ALIASES, *aliases.IGNORED])
def test_null_and_empty_mean_not_given(field, empty):
    if field == "prompt":
        with pytest.raises(InvalidInput, match="prompt: is missing or empty"):
            parse_job({"prompt": empty})
        return
    for job in ({"prompt": "x"}, {"prompt": "x", "image": "a"}):
        if field != "image":
            request = parse_job({**job, field: empty})
            assert request == parse_job(job), field
            assert request.spoken.warnings == ()


def test_null_and_empty_inside_of_objects_and_lists():
    assert parse_job({"prompt": "x", "images": [None, ""], "loras": [None, {}]}) == parse_job({"prompt": "x"})
    assert parse_job({"prompt": "x", "image": "a", "expand": {"left": 16, "top": None}}).expand.left == 16
    with pytest.raises(InvalidInput, match=r"images\[1\]: must be a string, and not null"):
        parse_job({"prompt": "x", "images": ["a", None]})


def test_a_seed_of_minus_one_is_none_given():
    for seed in (-1, -1.0):
        request = parse_job({"prompt": "x", "seed": seed})
        assert request.seed is None
        assert plan(request, KLEIN, None, 7).seeds == (7,)


@pytest.mark.parametrize("field", [n for n in EDIT if n.startswith("mask_") and n != "mask_invert"])
def test_whole_numbers_are_integers_in_edits(field):
    assert getattr(parse_job({"prompt": "x", "image": "a", "mask": "b", field: 16.0}), field) == 16


@pytest.mark.parametrize("field", ["num_inference_steps", "num_images", "seed", "output_quality", "steps", "n"])
def test_whole_numbers_are_integers(field):
    request = parse_job({"prompt": "x", field: 4.0})
    assert request == parse_job({"prompt": "x", field: 4})
    with pytest.raises(InvalidInput, match=f"^{field}: must be an integer, and not 4.5"):
        parse_job({"prompt": "x", field: 4.5})


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"steps": 8, "guidance": 2.5}, {"num_inference_steps": 8, "guidance_scale": 2.5}),
        ({"num_outputs": 2}, {"num_images": 2}),
        ({"size": "512x768"}, {"width": 512, "height": 768}),
        ({"size": "512*768"}, {"width": 512, "height": 768}),
        ({"size": "auto", "n": 1}, {}),
        ({"size": " AUTO ", "aspect_ratio": "Auto"}, {}),
        ({"size": "512X768 "}, {"width": 512, "height": 768}),
        ({"image_size": {"width": 512, "height": 768}}, {"width": 512, "height": 768}),
        ({"image_size": "landscape_16_9"}, {"width": 1024, "height": 576}),
        ({"image": ["a", "b"]}, {"images": ["a", "b"]}),
        ({"image_url": "a"}, {"images": ["a"]}),
        ({"image_urls": ["a", "b"]}, {"images": ["a", "b"]}),
        ({"input_image": "a", "input_image_2": "b", "input_image_3": "c"}, {"images": ["a", "b", "c"]}),
        ({"input_image_2": "b", "input_image": "a"}, {"images": ["a", "b"]}),
        ({"image": "a", "mask_url": "b"}, {"images": ["a"], "mask": "b"}),
        ({"image": "a", "aspect_ratio": "match_input_image"}, {"images": ["a"], "aspect_ratio": "match_input"}),
        ({"aspect_ratio": "custom", "width": 512, "height": 512}, {"width": 512, "height": 512}),
        ({"output_format": "JPG"}, {"output_format": "jpeg"}),
        ({"image_format": "PNG"}, {"output_format": "png"}),
        ({"output_format": "jpeg", "output_compression": 0}, {"output_format": "jpeg", "output_quality": 1}),
        ({"response_format": "b64_json"}, {"delivery": "base64"}),
        ({"response_format": "url"}, {"delivery": "url"}),
    ],
)  # fmt: skip
def test_other_names_are_taken(theirs, ours):
    assert parse_job({"prompt": "x", **theirs}).model_dump() == parse_job({"prompt": "x", **ours}).model_dump()


@pytest.mark.parametrize(
    "image",
    [
        {"image_url": "a"},
        {"url": "a", "type": "image"},
        {"type": "input_image", "image_url": "a"},
        {"type": "image_url", "image_url": {"url": "a", "detail": "high"}},
        {"b64_json": "a"},
    ],
)
def test_an_image_in_an_object(image):
    request = parse_job({"prompt": "x", "images": [image], "mask": image})
    assert (request.images, request.mask) == (["a"], "a")
    assert parse_job({"prompt": "x", "image": image}).images == ["a"]


def test_an_object_without_an_image_is_named():
    with pytest.raises(InvalidInput, match=r"^images\[1\]: file_id is not known here") as caught:
        parse_job({"prompt": "x", "images": ["a", {"file_id": "file-1"}]})
    assert caught.value.field == "images[1]"
    with pytest.raises(InvalidInput, match="^mask: is an object without an image"):
        parse_job({"prompt": "x", "image": "a", "mask": {"data": "a"}})


@pytest.mark.parametrize(
    ("job", "message"),
    [
        ({"steps": 4, "num_inference_steps": 4}, "steps: came together with num_inference_steps; give one or the"
         " other"),
        ({"image_url": "a", "images": ["b"]}, "image_url: came together with images; give one or the other"),
        ({"size": "512x512", "width": 512, "height": 512}, "size: came together with width; give one or the other"),
        ({"size": "big"}, "size: 'big' is not WIDTHxHEIGHT, such as 1024x1024, or auto"),
        ({"steps": 51}, "steps: 51 is out of bounds (1 to 50)"),
        ({"guidance": "2"}, "guidance: must be a number, and not '2'"),
        ({"image_format": "gif"}, "image_format: 'gif' is not known; allowed are 'png', 'jpeg' or 'webp'"),
        ({"response_format": "png"}, "response_format: 'png' is not known; allowed are b64_json and url (with"
         " an object store)"),
        ({"output_compression": 101}, "output_compression: 101 is out of bounds (0 to 100)"),
        ({"background": "transparent"}, "background: 'transparent' cannot be honoured here; allowed are auto"
         " and opaque"),
        ({"input_fidelity": "high"}, "input_fidelity: 'high' cannot be honoured here; allowed are low"),
    ],
)  # fmt: skip
def test_an_error_has_the_callers_name_of_the_field(job, message):
    with pytest.raises(InvalidInput) as caught:
        parse_job({"prompt": "x", **job})
    assert caught.value.message == message
    assert caught.value.field == message.split(":")[0]


def test_errors_of_a_running_job_have_the_callers_names_too():
    request = parse_job({"prompt": "x", "input_image": "a", "input_image_2": "b"})
    error = renamed(BadReference("images[1]: is not base64", "images[1]"), request.spoken)
    assert (error.message, error.field) == ("input_image_2: is not base64", "input_image_2")
    request = parse_job({"prompt": "x", "image_urls": ["a", "b"]})
    assert renamed(BadReference("images[1]: broken", "images[1]"), request.spoken).field == "image_urls[1]"
    request = parse_job({"prompt": "x", "size": "1000x512"})
    assert renamed(InvalidInput("width: 1000 is odd", "width"), request.spoken).message == "size: 1000 is odd"


@pytest.mark.parametrize(
    ("unknown", "nearest"),
    [("stepz", "steps"), ("num_infernce_steps", "num_inference_steps"), ("negativeprompt", "negative_prompt"),
     ("outputformat", "output_format"), ("Seed", "seed"), ("promt", "prompt"), ("imgs", "images")],
)  # fmt: skip
def test_an_unknown_field_names_the_nearest(unknown, nearest):
    with pytest.raises(InvalidInput, match=f"^{unknown}: is not a field of edit; the nearest is {nearest};"):
        parse_job({"prompt": "x", "image": "a", unknown: 4})


def test_the_nearest_field_is_one_that_is_taken():
    with pytest.raises(InvalidInput) as caught:
        parse_job({"prompt": "x", "imagez": "a"})
    assert "the nearest is image_size" in caught.value.message  # not image, which /generate refuses


def test_what_changes_nothing_is_a_warning():
    for name, silent in aliases.IGNORED.items():
        value = aliases.ONLY.get(name, ("anything",))[0]
        warned = plan(parse_job({"prompt": "x", name: value}), KLEIN, None, 1).warnings
        assert warned == (() if value in silent else (f"{name}: changes nothing here",))
        for value in silent:
            assert plan(parse_job({"prompt": "x", name: value}), KLEIN, None, 1).warnings == ()


def test_deep_and_huge_values_of_what_changes_nothing():
    deep = []
    for _ in range(100_000):
        deep = [deep, 1]
    for value in (deep, {"a": deep}, 10**5000, float("nan"), "x" * 10_000):
        assert len(str(parse_job({"prompt": "x", "style": value}).spoken)) < 300


@pytest.mark.parametrize("name", aliases.IGNORED)
def test_a_job_that_is_stored_has_the_same_warnings(name):
    """What it keeps of such a field is JSON, and is read again when the job runs."""
    kept = 0
    for value in (0, 1, 2.5, -0.0, True, False, "false", "x" * 300, [0], {"a": 1}, 10**400, float("nan"), float("inf")):
        try:
            first = parse_job({"prompt": "x", name: value})
        except InvalidInput:
            continue
        kept += 1
        again = parse_job({"prompt": "x", **json.loads(json.dumps(first.spoken.ignored, allow_nan=False))})
        assert again.spoken.warnings == first.spoken.warnings, value
    assert kept or name in aliases.ONLY
    if name == "sync_mode":
        assert parse_job({"prompt": "x", name: 0}).spoken.ignored == {name: 0}


def test_a_negative_prompt_is_for_the_base_models():
    request = parse_job({"prompt": "x", "negative_prompt": "blue"})
    made = plan(request, BASE, None, 1)
    assert (made.negative_prompt, made.warnings) == ("blue", ())
    assert plan(request, KLEIN, None, 1).warnings == ("negative_prompt: klein-9b is distilled and does not use it",)
    weak = plan(parse_job({"prompt": "x", "negative_prompt": "blue", "guidance": 1}), BASE, None, 1)
    assert weak.warnings == ("negative_prompt: has no effect with a guidance_scale of 1 or less",)
    assert plan(parse_job({"prompt": "x", "negative_prompt": " "}), KLEIN, None, 1).warnings == ()


def test_the_table_of_the_docs_is_the_code():
    text = section("docs/clients.md", "Fields of other workers")
    for name in (*aliases.ALIASES, *aliases.IGNORED):
        shown = "input_image_2" if name.startswith("input_image_") else name
        assert f"`{shown}`" in text, name
