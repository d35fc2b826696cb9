"""RunPod's Hub: what `.runpod/hub.json` and `.runpod/tests.json` may hold.

Written from https://docs.runpod.io/hub/publishing-guide and https://docs.runpod.io/references/gpu-types. Whatever those
do not name is a mistake here.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AnyHttpUrl, BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

POOLS = {
    "AMPERE_16", "AMPERE_24", "ADA_24", "ADA_32_PRO", "AMPERE_48", "ADA_48_PRO", "AMPERE_80", "ADA_80_PRO",
    "HOPPER_141", "BLACKWELL_96", "BLACKWELL_180",
}  # fmt: skip
Key = Annotated[str, Field(pattern="^[A-Z][A-Z0-9_]*$")]
Text = Annotated[str, Field(min_length=1)]
CudaVersions = Annotated[list[Annotated[str, Field(pattern=r"^\d+\.\d+$")]], Field(min_length=1)]


def _pools(text: str) -> str:
    """Pools, separated by commas, the best first; "-NVIDIA ..." leaves out one of their GPUs."""
    for name in text.split(","):
        if name not in POOLS and not name.startswith("-NVIDIA "):
            raise ValueError(f"{name} is no pool of GPUs")
    return text


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, alias_generator=to_camel)


class Option(Strict):
    label: Text
    value: Text


class Input(Strict):
    name: Text
    description: Text
    advanced: bool = False


class TextInput(Input):
    type: Literal["string", "huggingface"]
    default: str = ""
    options: list[Option] | None = None

    @model_validator(mode="after")
    def _default_is_an_option(self) -> TextInput:
        if self.options and self.default not in [option.value for option in self.options]:
            raise ValueError(f"{self.default!r} is no option")
        return self


class NumberInput(Input):
    type: Literal["number"]
    default: float
    min: float
    max: float


class BooleanInput(Input):
    type: Literal["boolean"]
    default: bool
    true_value: Text
    false_value: Text


class Variable(Strict):
    key: Key
    value: str | None = None
    input: Annotated[TextInput | NumberInput | BooleanInput, Field(discriminator="type")] | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Variable:
        if (self.value is None) == (self.input is None):
            raise ValueError(f"{self.key} needs a value or an input")
        return self


class Preset(Strict):
    name: Text
    defaults: dict[Key, str | float | bool]


class HubConfig(Strict):
    runs_on: Literal["GPU"]
    endpoint_type: Literal["QB", "LB"] | None = None
    container_disk_in_gb: int = Field(gt=0)
    gpu_count: int = Field(ge=1)
    gpu_ids: Annotated[str, AfterValidator(_pools)]
    allowed_cuda_versions: CudaVersions
    presets: list[Preset]
    env: list[Variable]


class Hub(Strict):
    """`.runpod/hub.json`"""

    title: Text
    description: Text
    type: Literal["serverless"]
    category: Literal["audio", "embedding", "language", "video", "image"]
    icon_url: AnyHttpUrl | None = None
    config: HubConfig


class HubTest(Strict):
    name: Text
    input: dict[str, Any]
    timeout: int = Field(ge=1000, description="milliseconds")


class HubTestsConfig(Strict):
    gpu_type_id: Text
    gpu_count: int = Field(ge=1)
    env: list[Variable]
    allowed_cuda_versions: CudaVersions


class HubTests(Strict):
    """`.runpod/tests.json`"""

    tests: list[HubTest] = Field(min_length=1)
    config: HubTestsConfig
