"""What fits a GPU: where each part of a model lives and in which precision, chosen before anything is loaded, and the
largest image that the plan has room for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

from imagegen.contract.responses import MemoryState
from imagegen.errors import ConfigurationError, OutOfMemory
from imagegen.memory.footprint import (
    Parts,
    activations,
    kv_bytes,
    lora_bytes,
    text_linears,
    transformer_linears,
    two_linears,
)
from imagegen.memory.types import Offload, Precision
from imagegen.models import MEGAPIXEL, MULTIPLE, ModelSpec, Size

#: Bytes of a CUDA context with its libraries' handles (about 0.5 GiB on GPUs of the last generations).
CONTEXT = 2**29
#: Bytes that cuBLAS keeps for the products of a stream on GPUs from compute capability 9.0; a quarter of it on others.
WORKSPACE = 2**25
#: Bytes that must be left over: torch's allocator takes memory in blocks, and some of it fits nothing.
RESERVE = 2**29
#: What of a GPU of N GB a process can have: an RTX 4090 of 24 has 23.6 GiB, an RTX 5090 of 32 has 31.4, an H100 of 80
#: 79.1, and the driver keeps a little.
USABLE = 0.98
#: The largest reference that reaches the model, a megapixel.
REFERENCE: Size = (math.isqrt(MEGAPIXEL), math.isqrt(MEGAPIXEL))
#: Where the parts of a model are, by offload level.
PLACES: dict[Offload, str] = {
    "none": "all on the GPU",
    "embeddings": "all on the GPU but the embeddings",
    "text_encoder": "all on the GPU but the text encoder, which is fetched for a new prompt",
    "model": "the VAE on the GPU, the text encoder and the transformer fetched for their turns",
    "group": "fetched layer by layer",
}


@dataclass(frozen=True)
class Gpu:
    """A GPU: the bytes that this process can have of it, its context included, and its compute capability."""

    bytes: int
    capability: tuple[int, int]

    @classmethod
    def of(cls, gigabytes: float, capability: tuple[int, int]) -> Gpu:
        """A GPU as it is sold, empty."""
        return cls(int(gigabytes * 2**30 * USABLE), capability)


@dataclass(frozen=True)
class MemoryPlan:
    """Where each part of a model lives and in which precision, the bytes of each, and why.

    `gpu` is None on a CPU, where nothing is offloaded and no image is refused. The plan is made for images of
    `size` with `references` references of a megapixel; what is larger is checked when it is asked for.
    """

    spec: ModelSpec
    gpu: Gpu | None
    transformer: Precision
    text_encoder: Precision
    offload: Offload
    references: int
    size: Size
    parts: Parts
    why: str = ""
    #: Whether the transformer's blocks are compiled, which needs less.
    compiled: bool = False
    #: Of the LoRA adapters of a job together; 0: there is no room for any.
    lora_rank: int = 0

    @property
    def loras(self) -> int:
        """Bytes of the buffers for LoRA adapters, which stay on the GPU whatever is offloaded."""
        return lora_bytes(self.spec, self.lora_rank, element=4 if self.gpu is None else 2)

    @property
    def recorded(self) -> int:
        """Bytes that stay with what is recorded of a text encoder that stays on the GPU, where work is compiled."""
        if not self.compiled or self.offload not in ("none", "embeddings"):
            return 0
        return WORKSPACE + activations(self.spec, self.size, (), text_encoder=self.text_encoder).encode_prompt

    @property
    def resident(self) -> int:
        """Bytes of the weights that stay on the GPU, the buffers for LoRA adapters aside."""
        parts = self.parts
        kept: dict[Offload, int] = {
            "none": parts.total,
            "embeddings": parts.total - parts.embeddings,
            "text_encoder": parts.transformer + parts.vae,
            "model": parts.vae,
        }
        return kept.get(self.offload, 0)

    @property
    def peak(self) -> int:
        """Estimated bytes of the GPU in use at most, for what the plan is made for."""
        return self.peak_of(self.size, [REFERENCE] * self.references)

    def peak_of(self, size: Size, references: Sequence[Size]) -> int:
        """Estimated bytes of the GPU in use at most while an image is made: weights, activations, CUDA's context."""
        parts = self.parts
        needs = activations(self.spec, size, references, self.transformer, self.compiled, self.text_encoder)
        base = CONTEXT + self.loras + self.recorded
        if self.offload in ("none", "embeddings"):
            return base + self.resident + max(needs.encode_prompt, needs.image)
        if self.offload == "text_encoder":
            return base + self.resident + max(parts.text_encoder + needs.encode_prompt, needs.image)
        if self.offload == "group":  # the layer that runs, and the next one on its way; the VAE's are small
            a = self.spec.architecture
            return base + max(
                parts.embeddings,
                two_linears(text_linears(a, 1), self.text_encoder) + needs.encode_prompt,
                two_linears(transformer_linears(a), self.transformer) + needs.denoise,
                needs.encode_references,
                needs.decode,
            )
        # "model": the VAE stays; the transformer comes after the references, and goes before the image is decoded.
        return (
            base
            + self.resident
            + max(
                parts.text_encoder + needs.encode_prompt,
                needs.encode_references,
                parts.transformer + needs.denoise,
                needs.decode,
            )
        )

    def kv_fits(self, size: Size, references: Sequence[Size]) -> bool:
        """Whether the path that keeps the references' keys and values has room; on a CPU always."""
        if self.gpu is None:
            return True
        fetched = self.parts.transformer if self.offload in ("model", "group") else 0
        there = CONTEXT + self.loras + self.recorded + self.resident + fetched
        return there + kv_bytes(self.spec, size, references) + RESERVE <= self.gpu.bytes

    @property
    def needed(self) -> int:
        """Bytes that a GPU must have for what the plan is made for, also where its blocks turn out not to compile."""
        return max(self.peak, replace(self, compiled=False).peak) + RESERVE

    def fits(self, gpu: Gpu | None) -> bool:
        """Whether a GPU has room for what the plan is made for, and something to spare."""
        return gpu is None or self.needed <= gpu.bytes

    def eager(self) -> MemoryPlan:
        """The same weights where the blocks cannot be compiled, with as many references as then fit."""
        plan = replace(self, compiled=False)
        fitting = (n for n in range(plan.references, 0, -1) if replace(plan, references=n).fits(plan.gpu))
        return replace(plan, references=next(fitting, 0), why="its blocks cannot be compiled")

    def lowered(self, references: int) -> MemoryPlan:
        """The same weights on a GPU that has shown to hold so many references at the default size and no more; -1: not
        even an image without. What needs more by the estimate is refused from then on."""
        if self.gpu is None:
            return self
        needed = self.peak_of(self.size, [REFERENCE] * (references + 1))
        gpu = replace(self.gpu, bytes=min(self.gpu.bytes, needed - 1))
        return replace(self, gpu=gpu, references=max(0, references), why="less fits than was estimated")

    def largest(self, size: Size, references: Sequence[Size], available: int) -> Size | None:
        """The largest image of the shape of `size`, and smaller than it, for which `available` bytes of the GPU do.

        None where not even the smallest fits.
        """
        return _largest(self.spec, size, lambda smaller: self.peak_of(smaller, references) + RESERVE <= available)

    def check(self, size: Size, references: Sequence[Size]) -> None:
        """Checks that an image can fit, before the GPU works for it.

        Raises:
            OutOfMemory: it cannot by the estimate; with the largest size that can.
        """
        if self.gpu is None or self.peak_of(size, references) <= self.gpu.bytes:
            return
        raise _out_of_memory(size, references, self.largest(size, references, self.gpu.bytes))

    @property
    def state(self) -> MemoryState:
        """The plan as `/health` and `/capabilities` show it."""
        return MemoryState(
            transformer=self.transformer,
            text_encoder=self.text_encoder,
            offload=self.offload,
            weights={**asdict(self.parts), **({"loras": self.loras} if self.lora_rank else {})},
            peak=self.peak,
            card=self.gpu.bytes if self.gpu else None,
            references=self.references,
            plan=str(self),
        )

    def __str__(self) -> str:
        """The plan in one readable line."""
        if self.gpu is None:
            kept = "float32" if self.transformer == "bf16" else self.transformer
            return f"{self.spec.name} on the CPU: {kept}, {gib(self.parts.total)} of weights; {self.why}"
        parts = self.parts
        loras = f", LoRAs to rank {self.lora_rank} {gib(self.loras)}" if self.lora_rank else ""
        return (
            f"{self.spec.name}: transformer {self.transformer} {gib(parts.transformer)}, "
            f"text encoder {self.text_encoder} {gib(parts.text_encoder)}, embeddings {gib(parts.embeddings)}, "
            f"VAE {gib(parts.vae)}{loras}, {PLACES[self.offload]}; peak {gib(self.peak)} for "
            f"{describe(self.size, self.references)}, {gib(self.needed)} with the reserve, of {gib(self.gpu.bytes)} "
            f"that a process can use; {self.why}"
        )


def gib(number: int) -> str:
    """Bytes as people say them."""
    return f"{number / 2**30:.1f} GiB" if number >= 2**30 else f"{number / 2**20:.0f} MiB"


def describe(size: Size, references: int) -> str:
    """An image as an error names it."""
    names = {0: "", 1: " with 1 reference"}
    return f"{size[0]}x{size[1]}" + names.get(references, f" with {references} references")


def _largest(spec: ModelSpec, size: Size, fits: Callable[[Size], bool]) -> Size | None:
    ratio = max(size) / min(size)
    for side in range(min(size) - MULTIPLE, spec.min_size - MULTIPLE, -MULTIPLE):
        long = math.floor(side * ratio / MULTIPLE) * MULTIPLE
        smaller = (side, long) if size[0] <= size[1] else (long, side)
        if fits(smaller):
            return smaller
    return None


def out_of_memory(plan: MemoryPlan | None, size: Size, references: Sequence[Size], device: str | None) -> OutOfMemory:
    """The error for an image that did not fit although the plan had room for it, with the largest size that should."""
    smaller = None
    if plan is not None and device is not None and device.startswith("cuda"):
        smaller = plan.largest(size, references, available_bytes(device))
    return _out_of_memory(size, references, smaller)


def _out_of_memory(size: Size, references: Sequence[Size], smaller: Size | None) -> OutOfMemory:
    came = describe(size, len(references))
    if smaller is not None:
        return OutOfMemory(f"width: {came} does not fit the GPU's memory; {smaller[0]}x{smaller[1]} does", "width")
    advice = "fewer references" if references else "a smaller size"
    return OutOfMemory(f"{came} does not fit the GPU's memory; ask for {advice}")


def available_bytes(device: str) -> int:
    """Bytes of a GPU that this process can have in all, its context, which is there already, included."""
    import torch

    return int(torch.cuda.mem_get_info(device)[0]) + int(torch.cuda.memory_reserved(device)) + CONTEXT


def read_gpu(device: str) -> Gpu | None:
    """The GPU as it is now, after a small calculation on it; None for a CPU.

    Raises:
        ConfigurationError: it does not work.
    """
    if not device.startswith("cuda"):
        return None
    import torch

    try:
        torch.ones(64, 64, device=device).matmul(torch.ones(64, 64, device=device)).sum().item()
        return Gpu(available_bytes(device), torch.cuda.get_device_capability(device))
    except Exception as error:  # a driver too old, a GPU that is gone, a GPU that another process holds
        raise ConfigurationError(
            f"the GPU does not work ({type(error).__name__}); torch was built for CUDA {torch.version.cuda}: "
            "choose a host whose driver is new enough, or another machine"
        ) from error
