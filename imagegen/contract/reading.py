"""How the values of a request are read, the same at every endpoint: what counts as an integer, as an image."""

from __future__ import annotations

from typing import Annotated, Any, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator

from imagegen.contract.given import is_given
from imagegen.contract.prompts import MAX_PROMPT, is_blank


class Fields(BaseModel):
    """An object in a request. A field that is null or empty is one that is not given, whether or not it is known: Go's
    clients send null for all that they have. Any other unknown field is an error.

    4.0 is an integer, as JSON Schema has it (draft 6 on).
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _read(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        read = {name: value for name, value in data.items() if is_given(value)}
        for name, value in read.items():
            if isinstance(value, float) and value.is_integer() and name in cls.model_fields:
                read[name] = int(value) if _is_integer(cls.model_fields[name].annotation) else value
        return read


def _is_integer(annotation: Any) -> bool:
    """Whether a field's type is int, or int with bounds or None."""
    return annotation is int or any(_is_integer(part) for part in get_args(annotation))


def read_seed(value: Any) -> Any:
    """-1 asks for a random seed, in the interfaces that grew up with Stable Diffusion."""
    return None if value in (-1, "-1", "-1.0") else value


def read_format(value: Any) -> Any:
    """A format in any case, and JPG too."""
    if not isinstance(value, str):
        return value
    value = value.strip().lower()
    return "jpeg" if value == "jpg" else value


def read_aspect_ratio(value: Any) -> Any:
    """Replicate's and RunPod's names beside the shapes: one of the reference's own, and two that say nothing."""
    names = {"match_input_image": "match_input", "custom": None, "auto": None}
    return names.get(value := value.strip().lower(), value) if isinstance(value, str) else value


def not_blank(value: Any) -> Any:
    """Text of spaces alone is none: " " is what Qwen's pipelines are given where there is no negative prompt."""
    return None if isinstance(value, str) and len(value) <= MAX_PROMPT and is_blank(value) else value


def reference(value: Any) -> Any:
    """An image as a string, from the objects in which clients wrap it: OpenAI's {"image_url": ...} and {"type":
    "input_image", "image_url": ...}, chat's {"type": "image_url", "image_url": {"url": ...}}, {"url", "type"}, and
    {"b64_json": ...}.

    Raises:
        ValueError: the object names a file of the API's own store, or holds no image.
    """
    if not isinstance(value, dict):
        return value
    if value.get("file_id") is not None:
        raise ValueError("file_id is not known here, where no files are kept; send the image itself, or its URL")
    for name in ("image_url", "url", "b64_json"):
        if is_given(value.get(name)):
            found = value[name]
            return reference(found) if name == "image_url" else found
    raise ValueError('is an object without an image; allowed are a string and {"image_url": "..."}')


#: Base64, a data: URI or a URL.
ImageText = Annotated[str, BeforeValidator(reference)]
