"""The OpenAPI document as this server answers: its model's sizes, its operator's limits, what counts as not given.

FastAPI's own document, from which docs/api-fields.md is written, is the same for every server.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

from fastapi import FastAPI

from imagegen.contract import prompts, requests
from imagegen.contract.aliases import IGNORED, ONLY
from imagegen.contract.reading import EMPTY
from imagegen.engine.service import Service
from imagegen.models import MULTIPLE, ModelSpec

Schema = dict[str, Any]

_NOT_GIVEN: Schema = {"description": "Not given.", "enum": list(EMPTY)}
_EMPTY: Schema = {"$ref": "#/components/schemas/NotGiven"}
_GIVEN: Schema = {"not": _EMPTY}
#: Fields of other workers that are taken with any value.
_CHANGE_NOTHING = f"^({'|'.join(sorted(IGNORED.keys() - ONLY.keys()))})$"
#: The routes whose bodies are read by the contract.
_NATIVE, _OPENAI = ("/generate", "/edit", "/jobs"), ("/v1/images/generations", "/v1/images/edits")
#: Fields of an edit that say in different ways what of the photo is kept, and those that change one of them.
_WAYS, _OF_THE_MASK = ("mask", "expand", "fit"), ("mask_invert", "mask_grow", "mask_feather")


def openapi(app: FastAPI, service: Service) -> Callable[[], Schema]:
    """A function for `app.openapi`: the document for the model that is served, once that is chosen."""
    made: dict[str | None, Schema] = {}

    def describe() -> Schema:
        spec = service.spec
        name = spec.name if spec else None
        if name not in made:
            made[name] = _describe(copy.deepcopy(FastAPI.openapi(app)), service, spec)
        return made[name]

    return describe


def _describe(document: Schema, service: Service, spec: ModelSpec | None) -> Schema:
    document["components"]["schemas"]["NotGiven"] = _NOT_GIVEN
    for operations in document["paths"].values():
        for operation in operations.values():
            for parameter in operation.get("parameters", ()):
                _narrow_parameter(parameter)
    for path in (*_NATIVE, *_OPENAI):
        content = document["paths"][path]["post"]["requestBody"]["content"]
        for kind, body in content.items():
            schema = body["schema"]
            _narrow(schema["properties"], service, spec)
            if kind == "application/json":
                _relate(schema, _EMPTY)
                schema["patternProperties"] = {_CHANGE_NOTHING: {"description": "Changes nothing; a warning says so."}}
                schema["additionalProperties"] = _EMPTY
            else:  # a form has no null: a field that is not given is left out, or empty
                _relate(schema, {"enum": [""]})
                schema["additionalProperties"] = False
    return document


def _narrow_parameter(parameter: Schema) -> None:
    """A header or a query has no null: it is there or not."""
    schema = parameter["schema"]
    if "anyOf" in schema:
        schema["anyOf"] = [option for option in schema["anyOf"] if option.get("type") != "null"]
    if parameter["name"] == "Last-Event-ID":
        parameter["schema"] = {"type": "string", "pattern": "^[0-9]{1,15}$"}


def _narrow(properties: Schema, service: Service, spec: ModelSpec | None) -> None:
    """Each field as it is allowed here."""
    most = requests.limits(spec, service.settings)
    bounds: dict[str, Schema] = {
        "prompt": {"minLength": 1, "maxLength": most["prompt"], "pattern": prompts.PATTERN},
        "negative_prompt": {"maxLength": most["negative_prompt"], "pattern": prompts.PATTERN_OR_BLANK},
        "seed": {"minimum": -1},
        "images": {"maxItems": most["images"]},
        "image": {"maxItems": most["images"]},
        "loras": {"maxItems": most["loras"]},
        **{name: {"maximum": most[name]} for name in ("num_inference_steps", "num_images", "timeout")},
        "n": {"maximum": most["num_images"]},
    }
    if spec is not None:
        sides = {"minimum": spec.min_size, "maximum": spec.max_size, "multipleOf": MULTIPLE}
        bounds |= {"width": sides, "height": sides, "size": {"pattern": _sizes(spec)}}
        if "*" not in service.settings.aliases:
            names = [spec.name, *(one for one in service.settings.aliases if one != spec.name)]
            bounds["model"] = {"enum": names}
    if service.store is None:
        bounds |= {"delivery": {"enum": ["base64"]}, "response_format": {"enum": ["b64_json"]}}
    for name, bound in bounds.items():
        if name in properties:
            for option in properties[name].get("anyOf", [properties[name]]):
                if option.get("type") not in ("null", "array" if "maxItems" not in bound else None):
                    option.update(bound)


def _sizes(spec: ModelSpec) -> str:
    sides = "|".join(str(side) for side in range(spec.min_size, spec.max_size + 1, MULTIPLE))
    return f"^(auto|({sides})x({sides}))$"


def _relate(schema: Schema, empty: Schema) -> None:
    """Adds what counts as not given, and which fields exclude or need each other."""
    properties = schema["properties"]
    for name, field in properties.items():
        if name in schema["required"]:
            continue
        shown = {key: field.pop(key) for key in ("default", "description", "title", "examples") if key in field}
        options = [option for option in field.get("anyOf", [field]) if option.get("type") != "null"]
        if name == "images" and empty is _EMPTY:
            options.append({"type": "array", "items": _EMPTY})
        properties[name] = {**shown, "anyOf": [*options, empty]}
    if rules := list(_rules(properties)):
        schema["allOf"] = rules


def _rules(properties: Schema) -> Iterable[Schema]:
    """What `CommonFields` and `EditFields` check between fields."""
    if "width" in properties:
        yield _together("width", "height")
        yield _together("height", "width")
        yield _apart("width", "aspect_ratio")
    if "fit" not in properties:
        return
    yield _together("fit", "aspect_ratio")
    yield _apart("aspect_ratio", "mask")
    yield _apart("aspect_ratio", "expand")
    yield from (_together(name, "mask") for name in _OF_THE_MASK)
    for i, way in enumerate(_WAYS):
        yield _apart("width", way)
        yield from (_apart(way, other) for other in _WAYS[i + 1 :])


def _given(*names: str) -> Schema:
    return {"required": list(names), "properties": dict.fromkeys(names, _GIVEN)}


def _apart(one: str, other: str) -> Schema:
    return {"not": _given(one, other)}


def _together(one: str, other: str) -> Schema:
    """`other` is given wherever `one` is."""
    return {"anyOf": [{"not": _given(one)}, _given(other)]}
