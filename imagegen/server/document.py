"""The OpenAPI document as this server answers: its model's sizes, its operator's limits, what counts as not given.

FastAPI's own document, from which docs/api-fields.md is written, is the same for every server.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from fastapi import FastAPI

from imagegen.contract import given, prompts, requests
from imagegen.contract.aliases import IGNORED, ONLY
from imagegen.engine.service import Service
from imagegen.models import MULTIPLE, ModelSpec
from imagegen.server import relations
from imagegen.server.relations import EMPTY, Schema

_NOT_GIVEN: Schema = {"description": "Not given.", "enum": list(given.EMPTY)}
#: Fields of other workers that are taken with any value.
_CHANGE_NOTHING = f"^({'|'.join(sorted(IGNORED.keys() - ONLY.keys()))})$"
#: The routes whose bodies are read by the contract.
_ROUTES = (
    *("/generate", "/edit", "/jobs", "/v1/images/generations", "/v1/images/edits"),
    *("/v1/flux-2-klein-9b", "/v1/flux-2-klein-4b"),
)
_NOT_GIVEN_IN_A_FORM = ["", None, "null", "undefined"]
#: What a form may have for true and false, as pydantic reads it, beside the two words.
_BOOLEANS = ["1", "0", "t", "f", "y", "n", "yes", "no", "on", "off"]
#: Base64 of 24 to 64 bytes (`job_settings.is_secret`).
_BASE64, _END = "[A-Za-z0-9+/]", "([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?"
_SECRET = f"^whsec_(({_BASE64}{{4}}){{8,20}}{_END}|({_BASE64}{{4}}){{21}}({_BASE64}{{2}}==)?)$"


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
    for path in _ROUTES:
        for kind, body in document["paths"][path]["post"]["requestBody"]["content"].items():
            _describe_body(body["schema"], service, spec, form=kind != "application/json", bfl="flux" in path)
    return document


def _describe_body(schema: Schema, service: Service, spec: ModelSpec | None, form: bool, bfl: bool) -> None:
    properties = schema["properties"]
    _narrow(properties, service, spec)
    if "webhook_secret" in properties and not bfl:
        properties["webhook_secret"]["pattern"] = _SECRET
    _describe_inner(properties, service, form)
    if form:
        _describe_form(properties)
    _allow_empty(schema, {"enum": _NOT_GIVEN_IN_A_FORM} if form else EMPTY)
    if rules := list(relations.rules(properties, service.settings.webhook_secret is not None)):
        schema["allOf"] = rules
    schema["additionalProperties"] = False if form else EMPTY
    if not form and not bfl:
        schema["patternProperties"] = {_CHANGE_NOTHING: {"description": "Changes nothing; a warning says so."}}


def _narrow_parameter(parameter: Schema) -> None:
    """A header or a query has no null: it is there or not."""
    schema = parameter["schema"]
    if "anyOf" in schema:
        schema["anyOf"] = [option for option in schema["anyOf"] if option.get("type") != "null"]
    if parameter["name"] == "Last-Event-ID":
        parameter["schema"] = {"type": "string", "pattern": "^[0-9]{1,15}$"}
    elif parameter["name"] == "idempotency-key":
        parameter["schema"] = {"type": "string", "pattern": "^[!-~]([ -~]{0,253}[!-~])?$"}


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


def _describe_inner(properties: Schema, service: Service, form: bool) -> None:
    """The objects that a request may hold; in a form they are JSON."""
    if "expand" in properties:
        shown = properties["expand"]
        side = shown["anyOf"][0]
        _allow_empty(side, EMPTY)
        properties["expand"] = {**shown, "anyOf": [relations.expand({**side, "additionalProperties": EMPTY})]}
    if "loras" not in properties:
        return
    known = service.settings.lora_buffers > 0
    if form:
        properties["loras"] = {"type": "string", "description": "The list's JSON."} if known else {"enum": ["[]"]}
    elif known:
        one = properties["loras"]["items"]
        _allow_empty(one, EMPTY)
        properties["loras"]["items"] = relations.lora({**one, "additionalProperties": EMPTY})
    else:
        properties["loras"] = {"type": "array", "maxItems": 0, "description": "This server has no LoRA adapters."}


def _describe_form(properties: Schema) -> None:
    """Text that stands for other types."""
    for name, field in properties.items():
        if field.get("type") == "boolean":
            shown = {key: field[key] for key in field if key != "type"}
            properties[name] = {**shown, "anyOf": [{"type": "boolean"}, {"enum": _BOOLEANS}]}


def _allow_empty(schema: Schema, empty: Schema) -> None:
    """Adds what counts as not given to each field that may be left out."""
    properties = schema["properties"]
    for name, field in properties.items():
        if name in schema.get("required", ()) or field.get("format") == "binary":
            continue
        shown = {key: field.pop(key) for key in ("default", "description", "title", "examples") if key in field}
        options = [option for option in field.get("anyOf", [field]) if option.get("type") != "null"]
        if name == "images" and empty is EMPTY:
            options.append({"type": "array", "items": EMPTY})
        properties[name] = {**shown, "anyOf": [*options, empty]}
