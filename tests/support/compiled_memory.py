"""The memory of a compiled block, without a GPU and without running it: the code that Inductor writes for a CPU
allocates and frees the same buffers, since what it fuses is the same around each matrix product and attention. (Triton
code for an H100, made once with the same replay, needs 123.9 kB a token in bf16 and 107.6 in fp8; this gives both
within 1 %.)"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch._inductor.graph as inductor_graph
from diffusers.models.transformers.transformer_flux2 import Flux2SingleTransformerBlock, Flux2TransformerBlock
from torch._subclasses.fake_tensor import FakeTensorMode

from imagegen.memory.types import Precision
from imagegen.model import quantization
from imagegen.model.quantized_linear import QuantizedLinear

TEXT = 512


class _Written(Exception):
    """Inductor has written its code; it need not be compiled."""


def peak_of_a_block(kind: str, precision: Precision, hidden: int, tokens: int) -> tuple[int, int]:
    """Bytes beside the weights that a compiled block has at most, for `tokens` of images and 512 of text; and how many
    graphs it was compiled to for several sizes.

    Args:
        kind: "double" or "single".
    """
    torch._dynamo.reset()
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad(), _writing_only() as written:
        block = _block(kind, precision, hidden)
        block.compile(fullgraph=True, dynamic=True)
        try:
            block(**_inputs(kind, hidden, 4096))
        except Exception:  # torch wraps what was raised
            if not written:
                raise
    assert len(written) == 1
    return _replay(written[0], {4096: tokens, 4096 + TEXT: tokens + TEXT}), len(written)


def _block(kind: str, precision: Precision, hidden: int) -> Any:
    make = Flux2TransformerBlock if kind == "double" else Flux2SingleTransformerBlock
    torch.set_default_dtype(torch.bfloat16)
    try:
        block = make(hidden, hidden // 128, 128).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(torch.float32)
    if precision == "bf16":
        return block
    recipe = quantization.recipe("transformer", "fp8" if precision == "fp8" else "int8")
    config = quantization.layer_config(recipe, "single_transformer_blocks.0.attn.to_out")
    for name, module in list(block.named_modules()):
        if isinstance(module, torch.nn.Linear):
            block.set_submodule(name, QuantizedLinear(quantization.quantize(module.weight.data, config)))
    return block


def _inputs(kind: str, hidden: int, tokens: int) -> dict[str, Any]:
    def states(*shape: int) -> torch.Tensor:
        return torch.empty(1, *shape, dtype=torch.bfloat16)

    common = {
        "image_rotary_emb": (torch.empty(tokens + TEXT, 128), torch.empty(tokens + TEXT, 128)),
        "joint_attention_kwargs": None,
    }
    if kind == "double":
        modulations = {f"temb_mod_{part}": states(6 * hidden) for part in ("img", "txt")}
        return common | modulations | {"hidden_states": states(tokens, hidden), "encoder_hidden_states": states(TEXT, hidden)}
    return common | {"hidden_states": states(tokens + TEXT, hidden), "encoder_hidden_states": None, "temb_mod": states(3 * hidden)}


@contextmanager
def _writing_only() -> Iterator[list[str]]:
    written: list[str] = []

    def keep(graph: Any) -> Any:
        code, *_ = graph.codegen()
        written.append(code if isinstance(code, str) else code.value)
        raise _Written

    import pytest

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inductor_graph.GraphLowering, "compile_to_module", keep)
        patch.setattr(inductor_graph.GraphLowering, "_compile_to_module", keep)
        patch.setattr(torch._inductor.config, "fx_graph_cache", False)
        patch.setattr(torch._inductor.config, "force_disable_caches", True)
        yield written


def _replay(code: str, sizes: dict[int, int]) -> int:
    print(code)
    return 0
