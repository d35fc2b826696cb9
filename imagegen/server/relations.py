"""What fields of a request demand of each other, as JSON Schema: what `CommonFields`, `EditFields` and `Lora` check.

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
#: The same in a form, which has no null: JavaScript makes a word of it.
EMPTY_IN_A_FORM: Schema = {"enum": [*given.EMPTY, "null", "undefined"]}
#: What a form may have for true, and for false, as pydantic reads it, beside the two words.
BOOLEANS = ["1", "t", "y", "yes", "on", "0", "f", "n", "no", "off"]

_PRESERVE: Case = ("preserve", {"const": "auto"})
_STRENGTH: Case = ("strength", {"type": "number", "exclusiveMaximum": 1})
_SHAPE: Case = ("aspect_ratio", {"enum": list(get_args(Shape))})
#: Fields that need a mask, where they are not what they are without one.
_OF_THE_MASK: tuple[Case, ...] = (
    ("mask_invert", {"enum": [True, "true", *BOOLEANS[:5]]}),
    ("mask_grow", {"type": "integer", "minimum": 1}),
    ("mask_feather", {"type": "integer", "minimum": 1}),
)
_OF_EDITS = [name for name in EditRequest.model_fields if name not in GenerateRequest.model_fields]
_SIDES = ("left", "right", "top", "bottom")


def expand(schema: Schema) -> Schema:
    """A canvas that grows on one side at least."""
    return {**schema, "anyOf": [_all((side, {"type": "integer", "minimum": 1})) for side in _SIDES]}


def lora(schema: Schema) -> Schema:
    """An adapter by its name, or by its address."""
    return {**schema, "oneOf": [_all((name, {"not": EMPTY})) for name in ("name", "url")]}


class Relations:
    """The rules of a request.

    Args:
        properties: its fields.
        form: an empty file is none; where files are checked, they are images.
        signs: the server has a secret of its own for webhooks.
    """

    def __init__(self, properties: Schema, form: bool, signs: bool) -> None:
        self._properties, self._form, self._signs = properties, form, signs
        self._empty = EMPTY_IN_A_FORM if form else EMPTY
        has_modes = "mode" in properties
        self._mask: Case = ("mask", ({"minLength": 1} if has_modes else {}) if form else {"not": EMPTY})

    def rules(self) -> Iterable[Schema]:
        """Each of them."""
        properties, given = self._properties, self._given
        if "width" in properties:
            yield _needs(given("width"), given("height"))
            yield _needs(given("height"), given("width"))
        if "aspect_ratio" in properties:
            yield _apart(given("width"), given("aspect_ratio"))
        if "webhook_url" in properties:
            yield _needs(given("webhook_secret"), given("webhook_url"))
            if not self._signs:
                yield _needs(given("webhook_url"), given("webhook_secret"))
        if "size" in properties and "strength" in properties:  # with a mask, a size is a warning
            size = ("size", {"not": {"anyOf": [self._empty, {"const": "auto"}]}})
            yield {"anyOf": [{"not": _all(size, _STRENGTH)}, _all(self._mask)]}
        if "mode" in properties:
            yield {"anyOf": [self._generates(), {**self._edits(), "allOf": list(self._edit_rules())}]}
        elif "fit" in properties:
            yield from self._edit_rules()

    def _edit_rules(self) -> Iterable[Schema]:
        mask, grown, fit = self._mask, self._given("expand"), self._given("fit")
        ways = (mask, grown, fit, _PRESERVE)
        yield from (_apart(*two) for two in combinations(ways, 2))
        yield from (_apart(_STRENGTH, way) for way in (grown, fit))
        yield from (_apart(self._given("width"), way) for way in (*ways, _STRENGTH))
        yield from (_apart(_SHAPE, way) for way in (mask, grown, _PRESERVE, _STRENGTH))
        yield _needs(fit, _SHAPE)
        yield from (_needs(field, mask) for field in _OF_THE_MASK)

    def _generates(self) -> Schema:
        """A job without a reference, or with the mode that says so: it has no field of an edit."""
        without: Schema = dict.fromkeys(_OF_EDITS, self._empty)
        if self._form:
            without |= {"images": {"items": {"maxLength": 0}}, "mask": {"maxLength": 0}}
        mode = {"anyOf": [{"const": "generate"}, self._empty]}
        return {"properties": {"mode": mode, "aspect_ratio": {"not": {"const": "match_input"}}, **without}}

    def _edits(self) -> Schema:
        images = (
            {"contains": {"minLength": 1}} if self._form else {"minItems": 1, "items": {"not": EMPTY}, "not": EMPTY}
        )
        mode = {"anyOf": [{"const": "edit"}, self._empty]}
        return {"required": ["images"], "properties": {"mode": mode, "images": images}}

    def _given(self, name: str) -> Case:
        return name, {"not": self._empty}


def _all(*cases: Case) -> Schema:
    """Each of these fields is there, with what it is said to hold."""
    return {"required": [name for name, _ in cases], "properties": dict(cases)}


def _apart(one: Case, other: Case) -> Schema:
    return {"not": _all(one, other)}


def _needs(one: Case, other: Case) -> Schema:
    """`other` wherever there is `one`."""
    return {"anyOf": [{"not": _all(one)}, _all(other)]}
