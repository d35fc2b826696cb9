import pytest
from pydantic import ValidationError

from imagegen.contract import responses
from imagegen.contract.responses import EditResponse, GenerateResponse, HealthResponse
from imagegen.contract.schemas import EditRequest, GenerateRequest

SHARED = {
    "prompt", "negative_prompt", "width", "height", "aspect_ratio", "num_inference_steps", "guidance_scale",
    "num_images", "seed",
    "output_format", "output_quality", "delivery", "allow_format_change", "timeout", "embed_prompt", "loras",
}  # fmt: skip


def test_the_fields_are_the_contracts():
    assert set(GenerateRequest.model_fields) == SHARED
    assert set(EditRequest.model_fields) == SHARED | {
        "images", "mask", "mask_invert", "mask_grow", "mask_feather", "correct_drift", "preserve", "expand", "fit",
        "strength",
    }  # fmt: skip
    output = {"images", "urls", "seeds", "width", "height", "output_format", "model", "timings", "loras", "warnings"}
    assert set(GenerateResponse.model_fields) == set(EditResponse.model_fields) == output
    stages = ["load", "queue", "references", "encode_prompt", "denoise", "decode", "composite", "deliver", "total"]
    assert list(responses.Timings.model_fields) == stages


def test_the_defaults_are_the_contracts():
    request = GenerateRequest(prompt="a red circle")
    assert request.model_dump(exclude_none=True) == {
        "prompt": "a red circle", "num_images": 1, "output_format": "png", "output_quality": 90,
        "delivery": "base64", "allow_format_change": False, "embed_prompt": False, "loras": [],
    }  # fmt: skip


@pytest.mark.parametrize("schema", [GenerateRequest, EditRequest, GenerateResponse, EditResponse, HealthResponse])
def test_openapi_has_something_to_show_for_every_field(schema):
    described = schema.model_json_schema()
    assert described["description"]
    for name, field in described["properties"].items():
        assert (
            field.get("description")
            or field.get("examples")
            or "$ref" in field
            or "enum" in field
            or name == "warnings"
            or (name == "status")
        ), name


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        ("prompt", ["x", "x" * 4000], ["", "   ", "x" * 4001, 3, None]),
        ("num_inference_steps", [1, 50], [0, 51, 4.5, "4", True]),
        ("guidance_scale", [0, 0.5, 20], [-0.1, 20.1, float("nan"), float("inf"), "1"]),
        ("num_images", [1, 8], [0, 9]),
        ("seed", [0, 2**53 - 1], [-2, 2**53, 1.5, True]),
        ("output_format", ["png", "jpeg", "webp"], ["gif", "image/png"]),
        ("output_quality", [1, 100], [0, 101]),
        ("delivery", ["base64", "url"], ["s3"]),
        ("timeout", [1, 0.5 + 1, 3600], [0.9, 3601]),
        ("aspect_ratio", ["1:1", "21:9", "9:21"], ["5:4", "16/9"]),
        ("allow_format_change", [True], ["yes", 1]),
        ("embed_prompt", [True], ["no"]),
    ],
)
def test_limits(field, good, bad):
    for value in good:
        assert getattr(GenerateRequest.model_validate({"prompt": "x", field: value}), field) == value
    for value in bad:
        with pytest.raises(ValidationError):
            GenerateRequest.model_validate({"prompt": "x", field: value})


def test_an_edit_takes_one_to_four_references_under_either_name():
    assert EditRequest.model_validate({"prompt": "x", "image": "a"}).images == ["a"]
    for count in (1, 4):
        assert len(EditRequest.model_validate({"prompt": "x", "images": ["a"] * count}).images) == count
    for images in ([], ["a"] * 5, "a", [1], None):
        with pytest.raises(ValidationError):
            EditRequest.model_validate({"prompt": "x", "images": images})
    for both in ({"image": "a", "images": ["a"]}, {"image": ["a"] * 5}, {}):
        with pytest.raises(ValidationError):
            EditRequest.model_validate({"prompt": "x", **both})


def test_match_input_is_for_edits():
    assert EditRequest.model_validate({"prompt": "x", "image": "a", "aspect_ratio": "match_input"})
    with pytest.raises(ValidationError, match="match_input needs a reference"):
        GenerateRequest.model_validate({"prompt": "x", "aspect_ratio": "match_input"})
