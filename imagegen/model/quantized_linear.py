"""A Linear layer of 8-bit weights that needs little memory beside them, compiled or not."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional
from torchao.quantization import Int8Tensor

from imagegen.compat.torch import multiply_integers

#: Tokens that are multiplied at once where nothing is compiled. torchao's fp8 makes three float32 copies of its input
#: and its int8 an int32 product: with klein-9b's widest layers 0.2 MB a token, 8.0 GB for an edit with four references.
CHUNK = 1024


class QuantizedLinear(torch.nn.Linear):
    """A Linear without bias whose weight (out, in) is torchao's Float8Tensor or Int8Tensor.

    Each token has a scale of its own, so the result does not depend on how many tokens are multiplied at once: not
    compiled, it is made in parts of `CHUNK` tokens. Compiled, it is one product, which Triton fuses with what surrounds
    it. (An fp8 layer with one scale for the whole tensor is not split.)
    """

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__(weight.shape[1], weight.shape[0], bias=False, device="meta")
        self.weight = torch.nn.Parameter(weight, requires_grad=False)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """(..., in) to (..., out)."""
        if torch.compiler.is_compiling():
            return functional.linear(states, self.weight)
        rows = states.reshape(-1, states.shape[-1])
        count = max(1, -(-rows.shape[0] // CHUNK)) if self._by_token() else 1
        if count == 1:
            return self._multiply(rows).reshape(*states.shape[:-1], -1)
        out = rows.new_empty(rows.shape[0], self.out_features)
        # Of nearly equal size: CUDA's int8 product needs more than 16 rows.
        for part, target in zip(rows.tensor_split(count), out.tensor_split(count), strict=True):
            target.copy_(self._multiply(part))
        return out.reshape(*states.shape[:-1], -1)

    def _by_token(self) -> bool:
        weight: Any = self.weight.data
        return bool(weight.block_size[0] == 1)

    def _multiply(self, rows: torch.Tensor) -> torch.Tensor:
        weight = self.weight.data
        if isinstance(weight, Int8Tensor) and rows.is_cuda:
            return multiply_int8(rows, weight)
        return functional.linear(rows, weight)


def multiply_int8(rows: torch.Tensor, weight: Int8Tensor) -> torch.Tensor:
    """rows (tokens, in) times the transpose of weight (out, in), (tokens, out) in the type of `rows`.

    As torchao's own, whose `safe_int_mm` writes a tensor's values into a string at every call, for which the host waits
    for the GPU and which takes milliseconds.
    """
    how = weight.act_quant_kwargs
    quantized = Int8Tensor.from_hp(rows, how.granularity, how.mapping_type, reduce_range=how.reduce_range)
    product = multiply_integers(quantized.qdata, weight.qdata.t())
    scaled = (product * quantized.scale.reshape(-1, 1)).to(rows.dtype)
    result: torch.Tensor = (scaled * weight.scale.flatten()).to(rows.dtype)
    return result
