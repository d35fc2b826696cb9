"""Quantised weights go into files and come out of them as they were. `make newest` tries newer versions ahead."""

import pytest
import torch

from imagegen.compat import torchao
from imagegen.model import quantization


@pytest.mark.parametrize("precision", ["fp8", "int8"])
def test_a_weight_comes_back_as_it_was(precision):
    config = quantization.layer_config(quantization.recipe("transformer", precision), "transformer_blocks.0.attn.to_q")
    weight = quantization.quantize(torch.randn(64, 64, dtype=torch.bfloat16), config)
    tensors, record = torchao.flatten("block.weight", weight)
    assert all(type(tensor) is torch.Tensor for tensor in tensors.values())
    names = torchao.tensor_names("block.weight", record["block.weight"])
    assert sorted(names) == sorted(tensors)
    assert tensors[torchao.values_name("block.weight")].shape == weight.shape
    back = torchao.unflatten("block.weight", tensors, record["block.weight"])
    assert type(back) is type(weight)
    assert torch.equal(back.dequantize(), weight.dequantize())
