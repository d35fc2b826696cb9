"""What the start of a worker took, from its process's beginning to its first image."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import BaseModel, Field


class StartTimes(BaseModel):
    """Seconds of each stage of the start, in their order; 0.0 for a stage that was not needed. The weights are
    moved to the GPU as they are read; quantizing them overlaps with that, and their common time is divided between the
    two by the work of each."""

    process: float = Field(0.0, description="From the process's beginning until loading began.")
    find: float = Field(0.0, description="Finding the weights, or downloading them.")
    check: float = Field(0.0, description="Checking the GPU.")
    imports: float = Field(0.0, description="Importing torch, diffusers and transformers.")
    build: float = Field(0.0, description="Making the model's modules, without weights.")
    read: float = Field(0.0, description="Reading the weights, and moving them to the GPU.")
    to_card: float = Field(0.0, description="Converting them there: quantizing them, where they are not quantized yet.")
    compile: float = Field(0.0, description="Compiling, or loading compiled code.")
    warm_up: float = Field(0.0, description="Generating the warm-up images.")
    first_picture: float = Field(0.0, description="The first job's time on the GPU.")

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Adds what the block takes to a stage."""
        begun = time.monotonic()
        try:
            yield
        finally:
            setattr(self, stage, getattr(self, stage) + time.monotonic() - begun)

    @contextmanager
    def importing(self) -> Iterator[None]:
        """Measures the imports of torch, diffusers and transformers; they go on without Python's garbage collection,
        which runs hundreds of times amid them and finds nothing (docs/benchmarks.md says what that was worth)."""
        collecting = gc.isenabled()
        gc.disable()
        try:
            with self.measure("imports"):
                yield
        finally:
            if collecting:
                gc.enable()

    @classmethod
    def of_process(cls) -> StartTimes:
        """Those of a process that begins to load now."""
        import psutil

        return cls(process=max(0.0, time.time() - psutil.Process().create_time()))

    @property
    def total(self) -> float:
        """Seconds of all stages, which follow one another."""
        return float(sum(seconds for _, seconds in self))

    def show(self) -> str:
        """The stages that took any time, on a line."""
        return ", ".join(f"{name.replace('_', ' ')} {seconds:.2f} s" for name, seconds in self if seconds)
