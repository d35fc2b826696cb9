"""The fields of edits: reference images, masks, a larger canvas, and what the edit has not changed."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from imagegen.contract.fields import CommonFields
from imagegen.contract.reading import Fields, ImageText

MAX_REFERENCES = 4
#: Pixels by which a mask may grow, and fade out; and by which a canvas may grow on a side.
MAX_MASK_GROW, MAX_EXPAND = 512, 8192


class Expand(Fields):
    """Pixels by which a photo's canvas grows on each side."""

    left: int = Field(0, ge=0, le=MAX_EXPAND)
    right: int = Field(0, ge=0, le=MAX_EXPAND)
    top: int = Field(0, ge=0, le=MAX_EXPAND)
    bottom: int = Field(0, ge=0, le=MAX_EXPAND)


class EditFields(CommonFields):
    """The reference images, and what of the first of them is kept."""

    images: Annotated[list[ImageText], Field(min_length=1, max_length=MAX_REFERENCES)] = Field(
        description="1 to 4 reference images, each base64, a data: URI or an http(s) URL of a PNG, JPEG, WebP or AVIF. "
        "`image` (one string) works too."
    )
    mask: ImageText | None = Field(
        None,
        description="Edits the first reference where the mask says, at the reference's own size, and keeps every other "
        "pixel of it. As `images`: base64, a data: URI or a URL. Where it has transparency, transparent pixels are "
        "edited; otherwise white ones. It has the reference's size, or at least its shape.",
    )
    mask_invert: bool = Field(False, description="Edits what the mask would keep.")
    mask_grow: Annotated[int, Field(ge=0, le=MAX_MASK_GROW)] | None = Field(
        None,
        description="Pixels of the reference by which the mask's selection grows. Default: one for each 128 of its "
        "shorter side.",
    )
    mask_feather: Annotated[int, Field(ge=0, le=MAX_MASK_GROW)] | None = Field(
        None,
        description="Pixels of the reference over which the edit fades out around the selection. Default: as grow.",
    )
    correct_drift: bool = Field(
        True,
        description="Moves and tints the edit back where the model has shifted or tinted what is kept around it; the "
        "warnings say by how much.",
    )
    preserve: Literal["off", "auto"] = Field(
        "off",
        description="auto: an edit without a mask, at the first reference's own size: what the edit has not changed is "
        "the reference's own, pixel by pixel.",
    )
    expand: Expand | None = Field(
        None,
        description="Pixels by which the first reference's canvas grows on each side; the edit fills what is new, and "
        "keeps every pixel of the reference.",
        examples=[{"left": 256, "right": 256}],
    )
    fit: Literal["expand"] | None = Field(
        None, description="expand: with aspect_ratio, the canvas grows on both sides to that shape."
    )
    strength: float = Field(
        1.0,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="How much of the first reference may change: the noise level at which the edit begins. 1: as "
        "without the field; 0: the reference itself, and the GPU does nothing.",
    )

    @property
    def keeps_photo(self) -> bool:
        """Whether the first reference is edited at its own size, and what is not edited is kept to the bit."""
        return self.mask is not None or self.expand is not None or self.fit is not None or self.preserve != "off"

    @field_validator("expand", mode="before")
    @classmethod
    def _read_form(cls, value: Any) -> Any:
        """In a form it is the object's JSON, which has types of its own."""
        if value == "{}":
            return None
        return Expand.model_validate_json(value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check_photo(self) -> EditFields:
        named = {"mask": self.mask is not None, "expand": self.expand is not None, "fit": self.fit is not None}
        ways = [name for name, given in {**named, "preserve": self.preserve != "off"}.items() if given]
        if self.strength < 1 and (self.expand is not None or self.fit is not None):
            raise ValueError(f"strength: came together with {ways[0]}, whose new part has nothing to begin at")
        if len(ways) > 1:
            raise ValueError(f"{ways[1]}: came together with {ways[0]}; give one or the other")
        if self.mask is None:
            for name in ("mask_invert", "mask_grow", "mask_feather"):
                if getattr(self, name) not in (None, False):
                    raise ValueError(f"{name}: needs a mask")
        if self.expand is not None and not any(self.expand.model_dump().values()):
            raise ValueError("expand: grows by nothing; give left, right, top or bottom")
        if self.fit is not None and self.aspect_ratio in (None, "match_input"):
            raise ValueError("fit: needs an aspect_ratio such as 16:9")
        ways += ["strength"] * (self.strength < 1)
        if ways and self.width is not None:
            raise ValueError(f"width: came together with {ways[0]}, which keeps the reference's own size")
        if ways and self.fit is None and self.aspect_ratio not in (None, "match_input"):
            raise ValueError(f"aspect_ratio: came together with {ways[0]}, which keeps the reference's own size")
        return self
