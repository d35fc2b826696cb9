"""LoRA adapters of the miniature for tests: those that it ships, and files that are made up."""

from __future__ import annotations

import torch
from safetensors.torch import save_file

from imagegen.lora.layers import layers
from imagegen.models import MICRO_PATH, get_model

SHIPPED = MICRO_PATH / "loras"
MICRO = get_model("micro")
KLEIN = get_model("klein-9b")


def random_tensors(rank=2, spec=MICRO, names=None, seed=0, prefix="transformer.", dtype=torch.float32):
    """An adapter in diffusers' naming, of some layers or all."""
    made, random = {}, torch.Generator().manual_seed(seed)
    for name, (rows, columns) in layers(spec).items():
        if names is None or name in names:
            made[f"{prefix}{name}.lora_A.weight"] = torch.randn(rank, columns, generator=random).to(dtype) * 0.1
            made[f"{prefix}{name}.lora_B.weight"] = torch.randn(rows, rank, generator=random).to(dtype) * 0.1
    return made


def save(tensors, path, metadata=None):
    save_file({name: value.contiguous().clone() for name, value in tensors.items()}, path, metadata)
    return path
