"""LoRA adapters of the miniature for tests: those that it ships, and files that are made up."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from imagegen.lora.layers import layers
from imagegen.models import MICRO_PATH, ModelSpec, get_model

SHIPPED = MICRO_PATH / "loras"
MICRO = get_model("micro")
KLEIN = get_model("klein-9b")


def random_tensors(
    rank: int = 2,
    spec: ModelSpec = MICRO,
    names: Collection[str] | None = None,
    seed: int = 0,
    prefix: str = "transformer.",
    dtype: torch.dtype = torch.float32,
) -> dict[str, torch.Tensor]:
    """An adapter in diffusers' naming, of some layers or all."""
    made, random = {}, torch.Generator().manual_seed(seed)
    for name, (rows, columns) in layers(spec).items():
        if names is None or name in names:
            made[f"{prefix}{name}.lora_A.weight"] = torch.randn(rank, columns, generator=random).to(dtype) * 0.1
            made[f"{prefix}{name}.lora_B.weight"] = torch.randn(rows, rank, generator=random).to(dtype) * 0.1
    return made


def save(tensors: Mapping[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None) -> Path:
    save_file({name: value.contiguous().clone() for name, value in tensors.items()}, path, metadata)
    return path
