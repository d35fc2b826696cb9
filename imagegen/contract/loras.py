"""The LoRA adapters of a request."""

from __future__ import annotations

from pydantic import BaseModel, Field, model_validator

from imagegen.contract.reading import Fields

#: Adapters of one job, and how strong each may be.
MAX_LORAS, MAX_SCALE = 4, 4


class Lora(Fields):
    """One adapter: by its name, or by an address that the operator allows."""

    name: str | None = Field(None, max_length=128, description="One of the names in `/capabilities`.")
    url: str | None = Field(
        None, max_length=8192, description="An https URL of a safetensors file, on a host of IMAGEGEN_LORA_HOSTS."
    )
    scale: float = Field(
        1.0, ge=-MAX_SCALE, le=MAX_SCALE, allow_inf_nan=False, description="How strong it is; 0: it changes nothing."
    )

    @model_validator(mode="after")
    def _check_one(self) -> Lora:
        if (self.name is None) == (self.url is None):
            raise ValueError('has a name or a url, and not both, such as {"name": "brand-x", "scale": 0.8}')
        return self


class UsedLora(BaseModel):
    """An adapter that an image was made with; one that came by URL is named by its bytes' SHA-256."""

    name: str = Field(examples=["brand-x"])
    scale: float = Field(examples=[0.8])
