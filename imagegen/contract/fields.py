"""The fields that every request has, with what is the same for every model: types, limits, descriptions."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    TypeAdapter,
    field_validator,
    model_validator,
)

from imagegen.contract.aliases import Spoken, translate
from imagegen.contract.loras import MAX_LORAS, Lora
from imagegen.contract.prompts import MAX_PROMPT, clean
from imagegen.contract.reading import Fields, not_blank, read_aspect_ratio, read_format, read_seed

MAX_IMAGES = 8
#: What JavaScript can hold in a number without loss.
MAX_SEED = 2**53 - 1

Shape = Literal["1:1", "16:9", "9:16", "4:3", "3:4", "3:2", "2:3", "21:9", "9:21"]
AspectRatio = Literal[Shape, "match_input"]
OutputFormat = Literal["png", "jpeg", "webp"]
#: Pixels on a side that a WebP file can hold (its container's specification, "Simple File Format (Lossy)").
MAX_WEBP_SIDE = 16383
_LORAS = TypeAdapter(list[Lora])
_NegativePrompt = Annotated[str, Field(max_length=MAX_PROMPT), AfterValidator(partial(clean, field="negative_prompt"))]


class CommonFields(Fields):
    """The fields that generate and edit share."""

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
    negative_prompt: Annotated[_NegativePrompt | None, BeforeValidator(not_blank)] = Field(
        None,
        description="What the image should not show. For the base models, with a guidance_scale over 1; distilled "
        "models ignore it, with a warning.",
    )
    width: int | None = Field(
        None,
        description="Pixels, a multiple of 16, 256 to 2048 (micro: 64 to 1024); only together with height. Default: "
        "1024 (micro: 128); for an edit, the shape of the first reference image, at most 1 megapixel.",
        examples=[1024],
    )
    height: int | None = Field(None, description="Pixels; see width.", examples=[1024])
    aspect_ratio: Annotated[AspectRatio | None, BeforeValidator(read_aspect_ratio)] = Field(
        None, description="A shape instead of width and height; its area is that of the default size."
    )
    num_inference_steps: Annotated[int, Field(ge=1, le=50)] | None = Field(
        None, description="Denoising steps. Default: the model's own (4 for klein)."
    )
    guidance_scale: Annotated[float, Field(ge=0, le=20, allow_inf_nan=False)] | None = Field(
        None, description="Default: the model's own (1.0 for klein). Distilled models ignore it, with a warning."
    )
    num_images: int = Field(1, ge=1, le=MAX_IMAGES, description="How many images. Image i has the seed `seed + i`.")
    seed: Annotated[Annotated[int, Field(ge=0, le=MAX_SEED)] | None, BeforeValidator(read_seed)] = Field(
        None,
        description="The same seed gives the same image. Default, and -1: over HTTP random, on RunPod from the job's "
        "id.",
        examples=[42],
    )
    output_format: Annotated[OutputFormat, BeforeValidator(read_format)] = Field(
        "png", description="How images are encoded."
    )
    output_quality: int = Field(
        90, ge=1, le=100, description="Quality of jpeg and webp; webp of quality 100 is lossless."
    )
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

    loras: Annotated[list[Lora], Field(max_length=MAX_LORAS)] = Field(
        [],
        description="LoRA adapters, each by the name that the worker knows it by; `scale` is -4 to 4.",
        examples=[[{"name": "brand-x", "scale": 0.8}]],
    )

    _spoken: Spoken = PrivateAttr(default_factory=Spoken)

    @property
    def spoken(self) -> Spoken:
        """In which words the caller said it."""
        return self._spoken

    @field_validator("loras", mode="before")
    @classmethod
    def _read_loras(cls, value: Any) -> Any:
        """In a form they are the list's JSON, which has types of its own."""
        return _LORAS.validate_json(value) if isinstance(value, str) else value

    @field_validator("loras")
    @classmethod
    def _check_loras(cls, value: list[Lora]) -> list[Lora]:
        names = [one.name or one.url for one in value]
        if len(set(names)) < len(names):
            raise ValueError("one comes twice; give each once, with its scale")
        return value

    @model_validator(mode="wrap")
    @classmethod
    def _translate(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if not isinstance(data, dict):
            return handler(data)
        ours, spoken = translate(data)
        request = handler(ours)
        request._spoken = spoken  # noqa: SLF001 - its own
        return request

    def is_lossless(self, output_format: OutputFormat) -> bool:
        """Whether images in this format have every pixel as it was made."""
        return output_format == "png" or (output_format == "webp" and self.output_quality == 100)

    @model_validator(mode="after")
    def _check(self) -> CommonFields:
        if (self.width is None) != (self.height is None):
            missing, given = ("height", "width") if self.height is None else ("width", "height")
            raise ValueError(f"{missing}: is missing; give both width and height, or neither ({given} came alone)")
        if self.aspect_ratio is not None and self.width is not None:
            raise ValueError("aspect_ratio: came together with width and height; give one or the other")
        return self
