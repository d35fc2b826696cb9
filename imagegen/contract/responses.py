"""Responses, shared by every transport; OpenAPI shows them as they are here."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from imagegen.contract.fields import OutputFormat
from imagegen.contract.gpu_state import GpuState
from imagegen.contract.loras import UsedLora
from imagegen.contract.start_times import StartTimes


class Timings(BaseModel):
    """Seconds of each stage. `load` is the wait for a model that was not loaded yet. `references` includes LoRA
    adapters, `denoise` encoding the reference images. `composite` is the time to put an edit back into its photo,
    beside the GPU. `total` is the time in the worker; it is less than the sum if stages overlapped."""

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
    loras: list[UsedLora] = Field(default_factory=list, description="The LoRA adapters that were used.")
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
