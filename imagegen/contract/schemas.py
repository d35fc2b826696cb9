"""Requests and responses, shared by every transport; OpenAPI shows them as they are here.

What every model has in common is checked here; what the model's spec decides (its sizes, its defaults) in
`imagegen.contract.requests`.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from imagegen.contract.gpu_state import GpuState
from imagegen.contract.prompts import MAX_PROMPT, clean
from imagegen.contract.start_times import StartTimes

MAX_REFERENCES = 4
MAX_IMAGES = 8
#: Pixels by which a mask may grow, and fade out; and by which a canvas may grow on a side.
MAX_MASK_GROW, MAX_EXPAND = 512, 8192
#: What JavaScript can hold in a number without loss.
MAX_SEED = 2**53 - 1

AspectRatio = Literal["1:1", "16:9", "9:16", "4:3", "3:4", "3:2", "2:3", "21:9", "9:21", "match_input"]
OutputFormat = Literal["png", "jpeg", "webp"]


class _Request(BaseModel):
    """The fields that generate and edit share."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    prompt: Annotated[
        str,
        Field(
            min_length=1,
            max_length=MAX_PROMPT,
            description="What to generate, or what to change.",
            examples=["a red circle on a blue background"],
        ),
        AfterValidator(clean),
    ]
    width: int | None = Field(
        None,
        description="Pixels, a multiple of 16, 256 to 2048 (micro: 64 to 1024); only together with height. Default: "
        "1024 (micro: 128); for an edit, the shape of the first reference image, at most 1 megapixel.",
        examples=[1024],
    )
    height: int | None = Field(None, description="Pixels; see width.", examples=[1024])
    aspect_ratio: AspectRatio | None = Field(
        None, description="A shape instead of width and height; its area is that of the default size."
    )
    num_inference_steps: Annotated[int, Field(ge=1, le=50)] | None = Field(
        None, description="Denoising steps. Default: the model's own (4 for klein)."
    )
    guidance_scale: Annotated[float, Field(ge=0, le=20, allow_inf_nan=False)] | None = Field(
        None, description="Default: the model's own (1.0 for klein). Distilled models ignore it, with a warning."
    )
    num_images: int = Field(1, ge=1, le=MAX_IMAGES, description="How many images. Image i has the seed `seed + i`.")
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = Field(
        None,
        description="The same seed gives the same image. Default: over HTTP random, on RunPod from the job's id.",
        examples=[42],
    )
    output_format: OutputFormat = Field("png", description="How images are encoded.")
    output_quality: int = Field(90, ge=1, le=100, description="Quality of jpeg and webp.")
    delivery: Literal["base64", "url"] = Field(
        "base64", description='Images in the answer, or as URLs; "url" needs an object store.'
    )
    allow_format_change: bool = Field(
        False, description="Whether an answer that is too large may come as WebP or JPEG, with a warning."
    )
    timeout: Annotated[float, Field(ge=1, le=3600, allow_inf_nan=False)] | None = Field(
        None, description="Seconds that the job may take, waiting included. Default: IMAGEGEN_REQUEST_TIMEOUT."
    )
    embed_prompt: bool = Field(False, description="Write the prompt into the image's provenance record.")

    @model_validator(mode="after")
    def _check(self) -> _Request:
        if (self.width is None) != (self.height is None):
            missing, given = ("height", "width") if self.height is None else ("width", "height")
            raise ValueError(f"{missing}: is missing; give both width and height, or neither ({given} came alone)")
        if self.aspect_ratio is not None and self.width is not None:
            raise ValueError("aspect_ratio: came together with width and height; give one or the other")
        return self


class GenerateRequest(_Request):
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


class Expand(BaseModel):
    """Pixels by which a photo's canvas grows on each side."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    left: int = Field(0, ge=0, le=MAX_EXPAND)
    right: int = Field(0, ge=0, le=MAX_EXPAND)
    top: int = Field(0, ge=0, le=MAX_EXPAND)
    bottom: int = Field(0, ge=0, le=MAX_EXPAND)


class EditRequest(_Request):
    """An image from a prompt and one to four reference images."""

    mode: ClassVar[Literal["edit"]] = "edit"

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"prompt": "make the circle green", "images": ["iVBORw0KGgo..."], "seed": 42}]}
    )

    images: Annotated[list[str], Field(min_length=1, max_length=MAX_REFERENCES)] = Field(
        description="1 to 4 reference images, each base64, a data: URI or an http(s) URL of a PNG, JPEG, WebP or AVIF. "
        "`image` (one string) works too."
    )
    mask: str | None = Field(
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

    @property
    def keeps_photo(self) -> bool:
        """Whether the first reference is edited at its own size, and what is not edited is kept to the bit."""
        return self.mask is not None or self.expand is not None or self.fit is not None or self.preserve != "off"

    @field_validator("expand", mode="before")
    @classmethod
    def _read_form(cls, value: Any) -> Any:
        """In a form it is the object's JSON."""
        if not isinstance(value, str):
            return value
        try:
            return json.loads(value)
        except ValueError:
            raise ValueError('expand: is not a JSON object such as {"left": 256}') from None

    @model_validator(mode="after")
    def _check_photo(self) -> EditRequest:
        named = {"mask": self.mask is not None, "expand": self.expand is not None, "fit": self.fit is not None}
        ways = [name for name, given in {**named, "preserve": self.preserve != "off"}.items() if given]
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
        if ways and self.width is not None:
            raise ValueError(f"width: came together with {ways[0]}, which keeps the reference's own size")
        if ways and self.fit is None and self.aspect_ratio not in (None, "match_input"):
            raise ValueError(f"aspect_ratio: came together with {ways[0]}, which keeps the reference's own size")
        return self

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


class Timings(BaseModel):
    """Seconds of each stage. `load` is the wait for a model that was not loaded yet. `denoise` includes encoding the
    reference images. `composite` is the time to put an edit back into its photo, beside the GPU. `total` is the time in
    the worker; it is less than the sum if stages overlapped."""

    load: float = 0.0
    queue: float = 0.0
    references: float = 0.0
    encode_prompt: float = 0.0
    denoise: float = 0.0
    decode: float = 0.0
    composite: float = 0.0
    deliver: float = 0.0
    total: float = 0.0


class GenerateResponse(BaseModel):
    """The images and how they were made."""

    images: list[str] = Field(description="Plain base64, without a data: prefix; empty when delivered by URL.")
    urls: list[str] = Field(default_factory=list, description="Where the images are, when delivered by URL.")
    seeds: list[int] = Field(description="The seed of each image.", examples=[[42]])
    width: int = Field(examples=[1024])
    height: int = Field(examples=[1024])
    output_format: OutputFormat
    model: str = Field(examples=["klein-9b"])
    timings: Timings
    warnings: list[str] = Field(default_factory=list, description="What was done differently from the request.")


class EditResponse(GenerateResponse):
    """The same, for an edit."""


class QueueState(BaseModel):
    """Jobs at this moment."""

    running: int
    waiting: int
    limit: int = Field(description="Jobs that may wait.")


class MemoryState(BaseModel):
    """Where the model's parts are, and what the GPU's memory has room for (an estimate)."""

    transformer: str = Field(description="The precision in which it runs.", examples=["fp8"])
    text_encoder: str = Field(description="The precision in which it runs.", examples=["bf16"])
    offload: str = Field(description="Which weights stay in main memory until needed.", examples=["embeddings"])
    weights: dict[str, int] = Field(description="Bytes of each part's weights.")
    peak: int = Field(description="Most bytes in use, for an image of the default size with `references`.")
    card: int | None = Field(None, description="Bytes of GPU memory that are available; null on a CPU.")
    references: int = Field(description="The most reference images of an edit.", examples=[4])
    plan: str = Field(description="The same in words, and why.")


class PublicHealth(BaseModel):
    """The status of the worker, for those without a key; it can take a job while idle, ready or busy."""

    status: Literal["starting", "idle", "loading", "ready", "busy", "draining", "failed"] = Field(
        description="idle: nothing is loaded, and the first job will load the model."
    )
    stage: str | None = Field(None, description="The stage of loading.", examples=["loading the weights"])


class HealthResponse(PublicHealth):
    """The state of the worker."""

    model: str = Field(examples=["klein-9b"])
    device: str | None = Field(None, description="The device of the loaded model.", examples=["cuda"])
    gpu_memory: int | None = Field(None, description="Bytes of GPU memory in use.")
    start: StartTimes | None = Field(None, description="Seconds of each stage of the start, once loaded.")
    memory: MemoryState | None = Field(None, description="The memory plan, once the model is loaded.")
    queue: QueueState
    gpu: GpuState | None = Field(None, description="The GPU itself, where NVIDIA's library is installed.")
    version: str = Field(description="The worker's version.", examples=["0.1.0"])
    message: str | None = Field(None, description="Why loading failed.")


class ErrorObject(BaseModel):
    """What went wrong."""

    code: str = Field(examples=["invalid_input"])
    message: str = Field(
        description="The field, what was received and what is allowed.",
        examples=["width: 1000 is not a multiple of 16 (256 to 2048)"],
    )
    field: str | None = Field(description="The field at fault.", examples=["width"])
    retryable: bool = Field(description="Whether the same request may succeed later.", examples=[False])


class ErrorResponse(BaseModel):
    """An error of the native API."""

    error: ErrorObject
