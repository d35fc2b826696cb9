"""Requests, shared by every transport; OpenAPI shows them as they are here.

What every model has in common is checked here; what the model's spec decides (its sizes, its defaults) in
`imagegen.contract.requests`.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, ConfigDict, Field

from imagegen.contract.editing import EditFields
from imagegen.contract.fields import CommonFields, Shape
from imagegen.contract.reading import read_aspect_ratio


def _shape(value: Any) -> Any:
    shape = read_aspect_ratio(value)
    if shape == "match_input":
        raise ValueError("match_input needs a reference image; it is for edits")
    return shape


#: Of 64x64 pixels, all white.
_A_PNG = "iVBORw0KGgoAAAANSUhEUgAAAEAAAABAAQAAAACCEkxzAAAAFElEQVR42mP8zwABTAyjjFEGyQwAzx8Bf7QK4E8AAAAASUVORK5CYII="


class GenerateRequest(CommonFields):
    """Text to image."""

    mode: ClassVar[Literal["generate"]] = "generate"

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"prompt": "a red circle on a blue background", "seed": 42}]}
    )

    aspect_ratio: Annotated[Shape | None, BeforeValidator(_shape)] = Field(
        None, description="A shape instead of width and height; its area is that of the default size."
    )


class EditRequest(EditFields):
    """An image from a prompt and one to four reference images."""

    mode: ClassVar[Literal["edit"]] = "edit"

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"prompt": "make the circle green", "images": [_A_PNG], "seed": 42}]}
    )
