"""The OpenAPI document as this server answers: its model's sizes, its operator's limits, what counts as not given.

FastAPI's own document, from which docs/api-fields.md is written, is the same for every server.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

from fastapi import FastAPI

from imagegen.contract import given, prompts, requests
from imagegen.contract.aliases import IGNORED, ONLY
from imagegen.contract.fields import MAX_SEED
from imagegen.engine.service import Service
from imagegen.models import MULTIPLE, ModelSpec
from imagegen.server import relations
from imagegen.server.bodies import MAX_FILES
from imagegen.server.relations import EMPTY, Relations, Schema

_NONE: Schema = {"enum": list(given.EMPTY)}
_NOT_GIVEN: Schema = {"description": "Not given.", "anyOf": [_NONE, {"type": "array", "items": _NONE}]}
#: Fields of other workers that are taken with any value.
_CHANGE_NOTHING = f"^({'|'.join(sorted(IGNORED.keys() - ONLY.keys()))})$"
_BFL = ("/v1/flux-2-klein-9b", "/v1/flux-2-klein-4b")
#: The routes whose bodies are read by the contract.
_ROUTES = ("/generate", "/edit", "/jobs", "/v1/images/generations", "/v1/images/edits", *_BFL)
#: Those that accept a job before its references are decoded.
_STORED = ("/jobs", *_BFL)
#: A file of a form, whatever is in it.
_FILE: Schema = {"type": "string", "contentMediaType": "application/octet-stream"}
_NOT_EMPTY: Schema = {"minLength": 1}
#: `EMPTY_IN_A_FORM` without a list and an object, which are text there.
_EMPTY_TEXT: Schema = {"enum": ["", None, "null", "undefined"]}
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
            _describe_body(body["schema"], service, spec, path, form=kind != "application/json")
    return document


def _describe_body(schema: Schema, service: Service, spec: ModelSpec | None, path: str, form: bool) -> None:
    properties = schema["properties"]
    _narrow(properties, service, spec)
    if path in _STORED:
        _leave_images_unchecked(properties)
    if "webhook_secret" in properties and path not in _BFL:
        properties["webhook_secret"]["pattern"] = _SECRET
    _describe_inner(properties, service, form)
    if form:
        _describe_form(properties)
    _allow_empty(schema, _EMPTY_TEXT if form else EMPTY)
    if rules := list(Relations(properties, form, service.settings.webhook_secret is not None).rules()):
        schema["allOf"] = rules
    schema["additionalProperties"] = False if form else EMPTY
    if not form:
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
        "seed": {"minimum": -1, "maximum": MAX_SEED},
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


def _leave_images_unchecked(properties: Schema) -> None:
    """Any text is taken, and any file: a job ends with an error where it is no image. An empty file is none."""
    for name, field in properties.items():
        for option in (*field.get("anyOf", [field]), field.get("items", {})):
            if option.get("format") == "image":
                del option["format"]
        if name == "mask" and field.get("format") == "binary":
            properties[name] = dict(_FILE)
        elif name == "images" and field["items"].get("format") == "binary":
            most = {
                "contains": _NOT_EMPTY,
                "minContains": 0,
                "maxContains": field["maxItems"],
                "maxItems": MAX_FILES - 1,
            }
            properties[name] = {"type": "array", "items": _FILE, "description": field["description"], **most}


def _describe_inner(properties: Schema, service: Service, form: bool) -> None:
    """The objects that a request may hold; in a form they are JSON."""
    if "expand" in properties:
        shown = properties["expand"]
        side = shown["anyOf"][0]
        _allow_empty(side, EMPTY)
        options = [relations.expand({**side, "additionalProperties": EMPTY}), *([{"enum": [{}]}] if form else [])]
        properties["expand"] = {**shown, "anyOf": options}
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
        if not {"type", "anyOf", "enum"} & field.keys():
            field["type"] = "string"  # a list would be a field that came twice
        if field.get("type") == "boolean":
            shown = {key: field[key] for key in field if key != "type"}
            properties[name] = {**shown, "anyOf": [{"type": "boolean"}, {"enum": relations.BOOLEANS}]}


def _allow_empty(schema: Schema, empty: Schema) -> None:
    """Adds what counts as not given to each field that may be left out."""
    properties = schema["properties"]
    for name, field in properties.items():
        if name in schema.get("required", ()) or _is_file(field) or _is_file(field.get("items", {})):
            continue
        shown = {key: field.pop(key) for key in ("default", "description", "title", "examples") if key in field}
        options = [option for option in field.get("anyOf", [field]) if option.get("type") != "null"]
        properties[name] = {**shown, "anyOf": [*options, empty]}


def _is_file(schema: Schema) -> bool:
    """A file that is not given is left out, or empty."""
    return schema.get("format") == "binary" or "contentMediaType" in schema
