import pytest
import torch
from torch.nn import functional
from torchao.quantization import Int8Tensor

from imagegen.model import quantization, quantized_linear
from imagegen.model.quantized_linear import QuantizedLinear, multiply_int8

LAYER = "single_transformer_blocks.0.attn.to_out"


def quantized(precision, out=48, width=64):
    weight = torch.randn(out, width, generator=torch.Generator().manual_seed(0)).bfloat16()
    return quantization.quantize(
        weight, quantization.layer_config(quantization.recipe("transformer", precision), LAYER)
    )


@pytest.mark.parametrize("precision", ["fp8", "int8"])
@pytest.mark.parametrize("tokens", [1, 40, 100])
def test_parts_give_the_product_of_the_whole_to_the_bit(monkeypatch, precision, tokens):
    weight = quantized(precision)
    states = torch.randn(1, tokens, 64).bfloat16()
    whole = functional.linear(states, weight)
    parts = []
    multiply = QuantizedLinear._multiply
    monkeypatch.setattr(
        QuantizedLinear, "_multiply", lambda self, rows: parts.append(len(rows)) or multiply(self, rows)
    )
    monkeypatch.setattr(quantized_linear, "CHUNK", 40)
    assert torch.equal(QuantizedLinear(weight)(states), whole)
    assert parts == {1: [1], 40: [40], 100: [34, 33, 33]}[tokens]


def test_int8_is_multiplied_as_torchao_does():
    """Whose way on a GPU is `int_scaled_matmul` with `safe_int_mm`; on a CPU it has another, of the same arithmetic."""
    weight = quantized("int8")
    states = torch.randn(40, 64).bfloat16()
    assert isinstance(weight, Int8Tensor)
    assert torch.equal(multiply_int8(states, weight), functional.linear(states, weight))


def test_a_quantised_layer_is_one_that_chunks(config):
    from dataclasses import replace

    from imagegen.model.pipeline import FluxPipeline

    with FluxPipeline(replace(config, transformer="int8")) as pipeline:
        attention = pipeline._pipe.transformer.single_transformer_blocks[0].attn
        assert isinstance(attention.to_out, QuantizedLinear)
        assert not isinstance(pipeline._pipe.transformer.x_embedder, QuantizedLinear)
