"""The inside of torchao (0.18): how a quantised weight becomes tensors of a safetensors file, and one again.

torchao has it under `prototype`, which it may change without notice; transformers and diffusers use the same place, and
there is no public one. The baked images hold such files: a version that reads them otherwise fails in
tests/compat/test_torchao.py, or at the load.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def flatten(name: str, weight: torch.Tensor) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The plain tensors of a weight called `name`, and torchao's record of it."""
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict

    tensors, record = flatten_tensor_state_dict({name: weight})
    return tensors, record


def unflatten(name: str, tensors: dict[str, torch.Tensor], record: str) -> torch.Tensor:
    """The weight called `name` of its tensors and its record."""
    from torchao.prototype.safetensors.safetensors_support import unflatten_tensor_state_dict

    names = {name: record, "tensor_names": json.dumps([name])}
    weight: torch.Tensor = unflatten_tensor_state_dict(tensors, names)[0][name]
    return weight


def tensor_names(name: str, record: str) -> list[str]:
    """The names of the tensors that a file holds of the weight called `name`, by its record; none where it is not
    quantised, or the record is of something else."""
    if not name.endswith(".weight"):
        return []
    pieces = json.loads(record).get("_tensor_data_names", [])
    return [f"{name.removesuffix('weight')}_weight_{piece}" for piece in pieces]


def values_name(name: str) -> str:
    """The name of the tensor of a quantised weight that has its shape."""
    return f"{name.removesuffix('weight')}_weight_qdata"
