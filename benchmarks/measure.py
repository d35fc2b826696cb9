"""What the benchmarks of the GPU share: the machine in words, a GPU with its memory counted and capped, one case."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from imagegen.errors import OutOfMemory
from imagegen.memory.plan import CONTEXT, REFERENCE, Gpu, MemoryPlan, read_gpu
from imagegen.model.images import GeneratedImage
from imagegen.model.pipeline import FluxPipeline
from imagegen.models import ModelSpec, Size

if TYPE_CHECKING:
    import torch

PROMPT = "a red fox asleep on a stack of old books, morning light from a tall window, number"


def machine(device: str) -> dict[str, Any]:
    """The GPU, its driver, and the versions of what computes."""
    import torch

    facts: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "gpu": None,
        "capability": None,
        "driver": None,
    }
    for package in ("diffusers", "transformers", "torchao", "bitsandbytes", "flash_attn_3"):
        try:
            facts[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            facts[package] = None
    if device.startswith("cuda"):
        facts["gpu"] = torch.cuda.get_device_name(device)
        facts["capability"] = ".".join(map(str, torch.cuda.get_device_capability(device)))
        facts["driver"] = _driver()
    return facts


def _driver() -> str | None:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True, timeout=20).stdout.split("\n")[0]
    except (OSError, subprocess.SubprocessError):
        return None


class Device:
    """A GPU, or the CPU, which counts no bytes."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_cuda = name.startswith("cuda")

    @property
    def dtype(self) -> torch.dtype:
        """Of weights on it."""
        import torch

        return torch.bfloat16 if self.is_cuda else torch.float32

    def synchronize(self) -> None:
        """Waits for the GPU."""
        if self.is_cuda:
            import torch

            torch.cuda.synchronize(self.name)

    def gpu(self, gigabytes: float | None = None) -> Gpu | None:
        """The GPU as it is, or one of `gigabytes` of the same kind; None for the CPU."""
        if not self.is_cuda:
            return None
        gpu = read_gpu(self.name)
        return gpu if gpu is None or gigabytes is None else Gpu.of(gigabytes, gpu.capability)

    @contextmanager
    def capped(self, gpu: Gpu | None) -> Iterator[None]:
        """While it is open, torch can have of the GPU what a smaller one would have."""
        if gpu is None or not self.is_cuda:
            yield
            return
        import torch

        index = torch.device(self.name).index  # torch takes no "cuda" here
        index = torch.cuda.current_device() if index is None else index
        total = torch.cuda.get_device_properties(self.name).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, (gpu.bytes - CONTEXT) / total), index)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, index)

    def reset_peak(self) -> None:
        """Begins to count anew, from what is held now."""
        if self.is_cuda:
            import torch

            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.name)

    def peak(self) -> tuple[int | None, int | None]:
        """Bytes that tensors, and torch with what it keeps beside them, had at most; None on the CPU."""
        if not self.is_cuda:
            return None, None
        import torch

        return torch.cuda.max_memory_allocated(self.name), torch.cuda.max_memory_reserved(self.name)

    def memory_summary(self) -> str:
        """What torch knows of the GPU's memory, as a table of its own; empty on the CPU."""
        if not self.is_cuda:
            return ""
        import torch

        return str(torch.cuda.memory_summary(self.name, abbreviated=True))


@dataclass
class Case:
    """An image that was asked for, and what came of it. Bytes are None where they are not counted."""

    name: str
    width: int
    height: int
    references: int
    fits: bool
    seconds: float | None = None
    encode_prompt: float | None = None
    denoise: float | None = None
    #: Whether its blocks ran compiled: what cannot be compiled runs without.
    compiled: bool = False
    decode: float | None = None
    allocated: int | None = None
    reserved: int | None = None
    estimate: int | None = None
    #: Peak, CUDA's context included, against the estimate.
    error: float | None = None


class Runner:
    """Generates images one after another, each of a prompt that was not seen before, and counts."""

    def __init__(self, pipeline: FluxPipeline, plan: MemoryPlan, device: Device) -> None:
        self.pipeline, self.plan, self.device = pipeline, plan, device
        self._drawn = 0

    def draw(
        self, size: Size, references: int, prompt: str | None = None, steps: int | None = None
    ) -> tuple[GeneratedImage, float]:
        """One image, and the seconds that its prompt took."""
        spec = self.pipeline.config.spec
        self._drawn += 1
        encoded = self.pipeline.encode_prompt(prompt or f"{PROMPT} {self._drawn}")
        arguments: dict[str, Any] = {
            "width": size[0],
            "height": size[1],
            "num_inference_steps": steps or spec.num_inference_steps,
            "guidance_scale": spec.guidance_scale,
            "seed": 42,
        }
        if references == 0:
            return self.pipeline.generate(encoded, **arguments), encoded.seconds
        pictures = [self.reference(number) for number in range(references)]
        return self.pipeline.edit(encoded, pictures, **arguments), encoded.seconds

    def reference(self, number: int) -> Image.Image:
        """An image of the size of the largest reference, another one for each number."""
        side = min(REFERENCE[0], self.pipeline.config.spec.size)
        return Image.effect_noise((side, side), 20 + number).convert("RGB")

    def case(self, name: str, size: Size, references: int = 0, runs: int = 2, pictures: Path | None = None) -> Case:
        """The best of some runs (the first of a size may compile), and the peak of them all."""
        self.device.reset_peak()
        case = Case(name, *size, references, fits=True)
        side = min(REFERENCE[0], self.pipeline.config.spec.size)
        case.estimate = self.plan.peak_of(size, [(side, side)] * references)
        for _ in range(runs):
            begun = time.monotonic()
            try:
                drawn, encode = self.draw(size, references)
                drawn.image.load()  # it has been copied
            except OutOfMemory:
                case.fits = False
                break
            seconds = time.monotonic() - begun
            if case.seconds is None or seconds < case.seconds:
                case.seconds, case.encode_prompt = seconds, encode
                case.denoise, case.decode = drawn.denoise, drawn.decode
        case.compiled = self.pipeline.compiled
        case.allocated, case.reserved = self.device.peak()
        if case.fits and case.allocated is not None:
            case.error = (case.allocated + CONTEXT) / case.estimate - 1
        if case.fits and pictures is not None:
            pictures.mkdir(parents=True, exist_ok=True)
            drawn.image.save(pictures / f"{name}-{size[0]}x{size[1]}-{references}.png")
        return case


def bare_call(pipe: Any, spec: ModelSpec, references: int, number: int) -> float:
    """Seconds of a call of diffusers' own pipeline, of the spec's size, with a prompt that it has not seen."""
    import torch

    pictures = [Image.effect_noise((spec.size, spec.size), 20).convert("RGB") for _ in range(references)]
    begun = time.perf_counter()
    pipe(
        prompt=f"{PROMPT} {number}",
        image=pictures or None,
        width=spec.size,
        height=spec.size,
        num_inference_steps=spec.num_inference_steps,
        guidance_scale=spec.guidance_scale,
        max_sequence_length=spec.max_sequence_length,
        generator=torch.Generator(pipe.device).manual_seed(number),
    )
    return time.perf_counter() - begun


def table(heads: list[str], rows: list[list[str]]) -> str:
    """Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def shown(value: float | None, pattern: str = "{:.2f}") -> str:
    """A number for a table; a dash where there is none."""
    return "-" if value is None else pattern.format(value)
