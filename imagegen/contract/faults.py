"""What pydantic finds wrong with a request, in the contract's words: the field, what was received, what is allowed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from imagegen.contract import aliases
from imagegen.contract.editing import MAX_REFERENCES, Expand
from imagegen.contract.loras import MAX_LORAS, Lora
from imagegen.contract.prompts import MAX_PROMPT
from imagegen.contract.schemas import EditRequest, GenerateRequest
from imagegen.contract.showing import kind_of, show
from imagegen.errors import InvalidInput

Request = GenerateRequest | EditRequest

#: What these hold is nobody's business, not even an error's: it may be kept where the job's input is not.
_PRIVATE = ("prompt", "negative_prompt", "images", "mask", "url")
TYPES = {
    "int": "an integer",
    "float": "a number",
    "string": "a string",
    "bool": "true or false",
    "list": "a list",
    "model": "an object",
}

#: What is wrong with "\ud800" in JSON, which has no UTF-8.
HALF_PAIR = "holds half of a surrogate pair, which is not a character"
_TEXTS = {
    "string_unicode": HALF_PAIR,
    "json_invalid": "is not JSON, such as ",
}
#: What a form may have for a list, and for an object.
_EXAMPLES = {"loras": '[{"name": "brand-x", "scale": 0.8}]', "expand": '{"left": 256}'}


def invalid_input(
    error: ErrorDetails, schema: type[BaseModel], most: Mapping[str, float], others: Iterable[str] = ()
) -> InvalidInput:
    """One of pydantic's errors in the contract's words.

    Args:
        most: what is allowed of a field here, where that is less than the schema allows.
        others: fields that the endpoint takes beside the schema's.
    """
    location = [part for part in error["loc"] if part != "body"]
    fields, field, name = _place(location, schema)
    kind, context, came = error["type"], error.get("ctx", {}), error["input"]
    if kind == "value_error":
        text = str(context["error"])
        if not location:  # validators of the request as a whole write "field: message"
            return InvalidInput(text, text.split(":")[0])
        text = text.removeprefix(f"{field}: ")
    elif kind == "missing":
        text = "is missing or empty"
        text += f"; 1 to {MAX_PROMPT} characters are required" if field == "prompt" else ", and required"
    elif kind == "extra_forbidden":
        text = _unknown(field, fields, schema, others)
    elif kind == "string_too_long":
        text = f"{len(came)} characters are too many; 1 to {most.get(field, context['max_length']):g} are allowed"
    elif field == "images" and kind in ("too_long", "too_short"):
        text = f"{len(came)} references were received; 1 to {most.get(field, MAX_REFERENCES):g} are allowed"
    elif field == "loras" and kind == "too_long":
        text = f"{len(came)} LoRAs were received; {most.get(field, MAX_LORAS):g} are allowed"
    elif kind in ("greater_than_equal", "less_than_equal", "finite_number"):
        low, high = _bounds(fields, field)
        text = f"{show(came)} is out of bounds ({low} to {min(high, most.get(field, high))})"
    elif kind == "literal_error":
        text = f"{show(came)} is not known; allowed are {context['expected']}"
        text += " (with an object store)" * (field == "delivery")
    elif kind in _TEXTS:
        text = _TEXTS[kind] + _EXAMPLES.get(field, "")
    elif (name_of_type := kind.partition("_")[0]) in TYPES:
        shown = kind_of(came) if field in _PRIVATE else show(came)
        text = f"must be {TYPES[name_of_type]}, and not {shown}"
    else:
        text = f"{show(came)}: {error['msg']}"
    return InvalidInput(f"{name}: {text}", name)


def _place(location: list[int | str], schema: type[BaseModel]) -> tuple[type[BaseModel], str, str]:
    """Where an error is: the model whose field it is, the field, and how the caller finds it: expand.left, loras[0]."""
    field = str(location[0])[:60] if location else "input"
    name = field + "".join(f"[{part}]" for part in location[1:] if isinstance(part, int))
    inner = [str(part)[:60] for part in location[1:] if isinstance(part, str)]
    nested: dict[str, type[BaseModel]] = {"expand": Expand, "loras": Lora}
    if field in nested and inner:
        return nested[field], inner[0], f"{name}.{inner[0]}"
    return schema, field, name


def _unknown(field: str, fields: type[BaseModel], schema: type[BaseModel], others: Iterable[str]) -> str:
    """What is wrong with a field that `fields`, the request or an object in it, does not have."""
    if schema is GenerateRequest and field in EditRequest.model_fields:
        return "is not a field of generate, but of edit, which needs a reference image"
    known = ["mode", *fields.model_fields, *others] if fields is schema else list(fields.model_fields)
    similar = aliases.nearest(field, aliases.names_of(known) if fields is schema else known)
    where = {Expand: "expand", Lora: "loras"}.get(fields) or getattr(schema, "mode", "this object")
    return f"is not a field of {where}; the nearest is {similar}; allowed are {', '.join(known)}"


def _bounds(schema: type[BaseModel], field: str) -> tuple[Any, Any]:
    """The least and the most that the schema allows for a number."""
    described = schema.model_json_schema()["properties"][field]
    options = described.get("anyOf", [described])
    bounded = next(option for option in options if "minimum" in option)
    return bounded["minimum"], bounded["maximum"]
