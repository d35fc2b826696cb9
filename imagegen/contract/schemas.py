"""Requests, shared by every transport; OpenAPI shows them as they are here.

What every model has in common is checked here; what the model's spec decides (its sizes, its defaults) in
`imagegen.contract.requests`.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, model_validator

from imagegen.contract.editing import EditFields
from imagegen.contract.fields import CommonFields


class GenerateRequest(CommonFields):
    """Text to image."""

    mode: ClassVar[Literal["generate"]] = "generate"

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"prompt": "a red circle on a blue background", "seed": 42}]}
    )

    @model_validator(mode="after")
    def _check_shape(self) -> GenerateRequest:
        if self.aspect_ratio == "match_input":
            raise ValueError("aspect_ratio: match_input needs a reference picture; it is for edits")
        return self


class EditRequest(EditFields):
    """An image from a prompt and one to four reference images."""

    mode: ClassVar[Literal["edit"]] = "edit"

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"prompt": "make the circle green", "images": ["iVBORw0KGgo..."], "seed": 42}]}
    )

    @model_validator(mode="before")
    @classmethod
    def _alias(cls, data: Any) -> Any:
        if isinstance(data, dict) and "image" in data:
            data = dict(data)
            image = data.pop("image")
            if "images" in data:
                raise ValueError("image: came together with images; give one or the other")
            if not isinstance(image, str):
                raise ValueError("image: must be one string; a list goes into images")
            data["images"] = [image]
        return data
