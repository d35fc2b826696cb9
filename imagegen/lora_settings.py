"""The section of the settings for LoRA adapters; see `imagegen.setting_sections`."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import BaseSettings


class LoraSettings(BaseSettings):
    """LoRA adapters"""

    loras: str = Field(
        "",
        validation_alias="IMAGEGEN_LORAS",
        description="LoRA adapters that jobs may name, separated by commas: a directory of safetensors files, each "
        "named by its file, or NAME=SOURCE, where SOURCE is a file, owner/repository@commit of the hub (with "
        "/FILE.safetensors behind it where it holds several), s3://bucket/key or an https URL. Unset: none.",
    )
    lora_hosts: str = Field(
        "",
        validation_alias="IMAGEGEN_LORA_HOSTS",
        description="Hosts from which a job may bring a LoRA adapter by URL, separated by commas, as in "
        "IMAGEGEN_URL_HOSTS. Unset: none.",
    )
    max_loras: int = Field(
        4, ge=1, le=4, validation_alias="IMAGEGEN_MAX_LORAS", description="Most LoRA adapters of one job."
    )
    lora_rank: int = Field(
        64,
        ge=1,
        le=512,
        validation_alias="IMAGEGEN_LORA_RANK",
        description="Ranks of one job's LoRA adapters together. Each takes 5.6 MB of the GPU's memory with klein-9b, "
        "whether jobs use them or not.",
    )
    lora_cache_mb: float = Field(
        1024.0,
        ge=0,
        validation_alias="IMAGEGEN_LORA_CACHE_MB",
        description="Main memory, in megabytes, for the LoRA adapters that were used last. One of rank 32 takes 182 MB "
        "with klein-9b.",
    )

    @property
    def lora_buffers(self) -> int:
        """The rank that the model is loaded with room for; 0 where no job can have an adapter."""
        return self.lora_rank if self.loras or self.lora_hosts else 0
