"""What the fields of a request demand of each other, as JSON Schema: what `CommonFields`, `EditFields` and `Lora` check.

`tests/server/test_document.py` holds the two together.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations
from typing import Any, get_args

from imagegen.contract import given
from imagegen.contract.fields import Shape
from imagegen.contract.schemas import EditRequest, GenerateRequest

Schema = dict[str, Any]
#: A field, and what it holds.
Case = tuple[str, Schema]

EMPTY: Schema = {"$ref": "#/components/schemas/NotGiven"}
GIVEN: Schema = {"not": EMPTY}

_MASK, _EXPAND, _FIT = ("mask", GIVEN), ("expand", GIVEN), ("fit", GIVEN)
_PRESERVE: Case = ("preserve", {"const": "auto"})
_STRENGTH: Case = ("strength", {"type": "number", "exclusiveMaximum": 1})
_SHAPE: Case = ("aspect_ratio", {"enum": list(get_args(Shape))})
_SIZE: Case = ("size", {"not": {"enum": ["auto", *given.EMPTY]}})
#: Fields that need a mask, where they are not what they are without one.
_OF_THE_MASK: tuple[Case, ...] = (
    ("mask_invert", {"enum": [True, "true"]}),
    ("mask_grow", {"type": "integer", "minimum": 1}),
    ("mask_feather", {"type": "integer", "minimum": 1}),
)
_OF_EDITS = [name for name in EditRequest.model_fields if name not in GenerateRequest.model_fields]
_SIDES = ("left", "right", "top", "bottom")


def rules(properties: Schema, signs: bool) -> Iterable[Schema]:
    """The rules of a request with these properties.

    Args:
        signs: the server has a secret of its own for webhooks.
    """
    if "width" in properties:
        yield _needs(_given("width"), _given("height"))
        yield _needs(_given("height"), _given("width"))
    if "aspect_ratio" in properties:
        yield _apart(_given("width"), _given("aspect_ratio"))
    if "webhook_url" in properties:
        yield _needs(_given("webhook_secret"), _given("webhook_url"))
        if not signs:
            yield _needs(_given("webhook_url"), _given("webhook_secret"))
    if "size" in properties and "strength" in properties:  # with a mask, a size is a warning
        yield {"not": {**_all(_SIZE, _STRENGTH), "anyOf": [{"not": {"required": ["mask"]}}, _with("mask", EMPTY)]}}
    if "mode" in properties:
        yield {"anyOf": [_generates(), {**_edits(), "allOf": list(_edit_rules())}]}
    elif "fit" in properties:
        yield from _edit_rules()


def expand(schema: Schema) -> Schema:
    """A canvas that grows on one side at least."""
    return {**schema, "anyOf": [_with(side, {"type": "integer", "minimum": 1}, required=True) for side in _SIDES]}


def lora(schema: Schema) -> Schema:
    """An adapter by its name, or by its address."""
    return {**schema, "oneOf": [_all(_given("name")), _all(_given("url"))]}


def _edit_rules() -> Iterable[Schema]:
    ways = (_MASK, _EXPAND, _FIT, _PRESERVE)
    yield from (_apart(*two) for two in combinations(ways, 2))
    yield from (_apart(_STRENGTH, way) for way in (_EXPAND, _FIT))
    yield from (_apart(_given("width"), way) for way in (*ways, _STRENGTH))
    yield from (_apart(_SHAPE, way) for way in (_MASK, _EXPAND, _PRESERVE, _STRENGTH))
    yield _needs(_FIT, _SHAPE)
    yield from (_needs(field, _MASK) for field in _OF_THE_MASK)


def _generates() -> Schema:
    """A job without a reference, or with the mode that says so: it has no field of an edit."""
    without = dict.fromkeys(_OF_EDITS, EMPTY) | {"images": {"anyOf": [EMPTY, {"items": EMPTY}]}}
    shape = {"not": {"const": "match_input"}}
    return {"properties": {"mode": {"enum": ["generate", *given.EMPTY]}, "aspect_ratio": shape, **without}}


def _edits() -> Schema:
    return {
        "required": ["images"],
        "properties": {"mode": {"enum": ["edit", *given.EMPTY]}, "images": {"minItems": 1, "items": GIVEN, **GIVEN}},
    }


def _given(name: str) -> Case:
    return name, GIVEN


def _with(name: str, value: Schema, required: bool = False) -> Schema:
    return {"properties": {name: value}, **({"required": [name]} if required else {})}


def _all(*cases: Case) -> Schema:
    """Each of these fields is there, with what it is said to hold."""
    return {"required": [name for name, _ in cases], "properties": dict(cases)}


def _apart(one: Case, other: Case) -> Schema:
    return {"not": _all(one, other)}


def _needs(one: Case, other: Case) -> Schema:
    """`other` wherever there is `one`."""
    return {"anyOf": [{"not": _all(one)}, _all(other)]}
