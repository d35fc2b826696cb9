"""What fits a card: the weights before they are loaded, and the largest picture after one did not fit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from imagegen.errors import ConfigurationError, OutOfMemory
from imagegen.jobs import MEGAPIXEL, MULTIPLE
from imagegen.models import ModelSpec

Precision = Literal["bf16", "fp8", "int8", "nf4"]
Offload = Literal["none", "embeddings", "text_encoder", "model", "group"]

#: Bytes that the transformer needs for each token of klein-9b beside its weights, and the VAE's decoder and encoder for
#: each pixel. Computed from traces of the model on meta tensors with flash attention: 0.75, 1.47 and 3.61 GB with 0, 1
#: and 4 references of a megapixel (4,096 tokens each, 512 of text); 1.61 and 1.34 GB a megapixel.
_TOKEN_BYTES = (3.61e9 - 0.75e9) / (4 * 4096)
_DECODE_BYTES, _ENCODE_BYTES = 1.61e9 / MEGAPIXEL, 1.34e9 / MEGAPIXEL
#: For the CUDA context and what the allocator cannot use.
_RESERVE = 1.0e9

Size = tuple[int, int]


def picture_bytes(spec: ModelSpec, size: Size, references: Sequence[Size]) -> int:
    """Estimated bytes of the card that a picture needs beside the weights: its parts run one after another."""
    pixels, all_pixels = size[0] * size[1], sum(w * h for w, h in (size, *references))
    transformer = (all_pixels / MULTIPLE**2 + spec.max_sequence_length) * _TOKEN_BYTES * spec.width_ratio
    encode = max((w * h * _ENCODE_BYTES for w, h in references), default=0)
    return int(max(transformer, pixels * _DECODE_BYTES, encode))


def largest_fit(spec: ModelSpec, size: Size, references: Sequence[Size], free: int) -> Size | None:
    """The largest picture of the shape of `size`, and smaller than it, for which `free` bytes do by the estimate.

    None where not even the smallest fits.
    """
    ratio = max(size) / min(size)
    for side in range(min(size) - MULTIPLE, spec.min_size - MULTIPLE, -MULTIPLE):
        long = math.floor(side * ratio / MULTIPLE) * MULTIPLE
        smaller = (side, long) if size[0] <= size[1] else (long, side)
        if picture_bytes(spec, smaller, references) <= free:
            return smaller
    return None


def out_of_memory(spec: ModelSpec, size: Size, references: Sequence[Size], device: str | None) -> OutOfMemory:
    """The error for a picture that did not fit, with the largest size of its shape that does by the estimate."""
    came = f"{size[0]}x{size[1]}" + (f" with {len(references)} references" if references else "")
    smaller = largest_fit(spec, size, references, free_bytes(device)) if device and device.startswith("cuda") else None
    if smaller is not None:
        return OutOfMemory(f"width: {came} does not fit the card's memory; {smaller[0]}x{smaller[1]} does", "width")
    advice = "fewer references" if references else "a smaller size"
    return OutOfMemory(f"{came} does not fit the card's memory; ask for {advice}")


def free_bytes(device: str) -> int:
    """Bytes of a card that a picture can have: what nobody holds, and what torch holds for nothing."""
    import torch

    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + unused


def weight_bytes(path: Path) -> dict[str, int]:
    """Bytes of the weights of each part of a model's folder, as they lie on the disk."""
    parts: dict[str, int] = {}
    for file in path.glob("*/*.safetensors"):
        parts[file.parent.name] = parts.get(file.parent.name, 0) + file.stat().st_size
    return parts


def check_card(spec: ModelSpec, path: Path, device: str, offload: str) -> None:
    """Checks that the card works and has room for the weights and a picture, before they are read for a minute.

    Raises:
        ConfigurationError: it does not, or has not; with what to do.
    """
    import torch

    try:
        torch.ones(64, 64, device=device).matmul(torch.ones(64, 64, device=device)).sum().item()
        free, _ = torch.cuda.mem_get_info(device)
    except Exception as error:  # a driver too old, a card that is gone, a card that another process holds
        raise ConfigurationError(
            f"the card does not work ({type(error).__name__}); torch was built for CUDA {torch.version.cuda}: "
            "choose a host whose driver is new enough, or another machine"
        ) from error
    parts = weight_bytes(path)
    weights = max(parts.values()) if offload == "model" else sum(parts.values())
    if (needed := weights + picture_bytes(spec, (spec.size, spec.size), []) + _RESERVE) > free:
        advice = "choose a larger card, or a smaller model"
        if offload == "none":
            advice += f"; IMAGEGEN_OFFLOAD=model needs {(needed - weights + max(parts.values())) / 1e9:.1f} GB"
        raise ConfigurationError(
            f"{spec.name} needs {needed / 1e9:.1f} GB of the card's memory and {free / 1e9:.1f} GB are free; {advice}"
        )
