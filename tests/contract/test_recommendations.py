"""What an error says is allowed is taken: each bound, value and name that it recommends is tried."""

import re

import pytest

from imagegen.contract import aliases
from imagegen.contract.requests import check, limits, parse
from imagegen.contract.schemas import EditRequest, GenerateRequest
from imagegen.errors import InvalidInput
from imagegen.models import get_model
from tests.support import settings

SPEC, SETTINGS = get_model("micro"), settings(max_steps=12, max_images=2, max_prompt=200, max_references=2, timeout=60)
WRONG = ("nonsense", -5, 0, 10**6, 10**400, 1.5, True, [1], {"a": 1}, float("nan"), "x" * 5000)
#: Fields that another needs, and values that pass for what is not tried.
BESIDE: dict = {"width": {"height": 64}, "height": {"width": 64}, "fit": {"aspect_ratio": "16:9"}}
BESIDE |= {name: {"mask": "QUJD"} for name in ("mask_invert", "mask_grow", "mask_feather")}
START: dict = {GenerateRequest: {"prompt": "x"}, EditRequest: {"prompt": "x", "images": ["QUJD"]}}


def fault(schema, fields):
    """The error of a request; None: it is taken."""
    try:
        check(parse(schema, {**START[schema], **fields}, most=limits(SPEC, SETTINGS)), SPEC, SETTINGS)
    except InvalidInput as error:
        return error.message
    return None


def recommended(message):
    """The values that an error recommends."""
    if bounds := re.search(r"\(([0-9.-]+) to ([0-9.]+)(, multiples of 16)?\)", message):
        yield from (float(bound) for bound in bounds.groups()[:2])
    if listed := re.search(r"allowed are ([^;(]+)(?: \(with an object store\))?$", message):
        for value in re.split(r", | or | and ", listed[1]):
            yield value.strip("'")
    if example := re.search(r"such as (\w+)", message):
        yield example[1]


@pytest.mark.parametrize("schema", [GenerateRequest, EditRequest])
def test_what_an_error_recommends_is_taken(schema):
    tried = 0
    names = [name for name in (*schema.model_fields, *aliases.ALIASES, *aliases.ONLY) if not aliases.is_file(name)]
    for name in {*names} - {"prompt", "negative_prompt", "loras", "expand"}:
        field = aliases.ALIASES[name].field if name in aliases.ALIASES else name
        if field not in schema.model_fields and name not in aliases.ONLY:
            continue
        beside = BESIDE.get(name, {})
        for value in WRONG:
            message = fault(schema, {**beside, name: value})
            for better in recommended(message or ""):
                assert fault(schema, {**beside, name: better}) is None, (message, better)
                tried += 1
    assert tried > 100


@pytest.mark.parametrize("schema", [GenerateRequest, EditRequest])
@pytest.mark.parametrize("unknown", ["sead", "styl", "imagez", "init_image", "strenght", "maskk", "Prompt", "é"])
def test_the_name_that_an_error_recommends_is_a_field(schema, unknown):
    message = fault(schema, {unknown: "x"})
    if "not a field of generate, but of edit" in message:
        return
    nearest = re.search("the nearest is ([a-z_0-9]+);", message)[1]
    assert "is not a field" not in (fault(schema, {nearest: "x"}) or ""), nearest
    for name in re.search("allowed are (.+)$", message)[1].split(", "):
        assert "is not a field" not in (fault(schema, {name: "x"}) or ""), name
