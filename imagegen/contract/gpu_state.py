"""The state of the GPU itself, as the driver tells it."""

from __future__ import annotations

from pydantic import BaseModel, Field


class GpuState(BaseModel):
    """The GPU itself; null for what the driver does not tell."""

    utilization: float | None = Field(None, description="Share of the last second in which a kernel ran.")
    memory_used: int | None = Field(None, description="Bytes in use, by all processes.")
    memory_total: int | None = Field(None, description="Bytes that there are.")
    temperature: int | None = Field(None, description="Of the chip, in degrees Celsius.")
    power: float | None = Field(None, description="Watts.")
    ecc_errors: int | None = Field(None, description="Uncorrectable errors of its memory since the driver began.")
    throttled: list[str] = Field(default_factory=list, description="Faults that lower its clock: heat, power supply.")
    xids: list[int] = Field(default_factory=list, description="Errors that the driver reported since the start.")
    degraded: str | None = Field(None, description="Why this GPU should be looked at or replaced.")
