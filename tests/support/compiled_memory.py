"""The memory of a compiled block, without a GPU and without running it: the code that Inductor writes for a CPU
allocates and frees the same buffers, since what it fuses is the same around each matrix product and attention. (Triton
code for an H100, made once with the same replay, needs 123.9 kB a token in bf16 and 107.6 in fp8; this gives both
within 1 %.)"""

from __future__ import annotations

import re
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch._inductor.config as inductor_config
import torch._inductor.graph as inductor_graph
from diffusers.models.transformers.transformer_flux2 import Flux2SingleTransformerBlock, Flux2TransformerBlock
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from imagegen.memory.types import Precision
from imagegen.model import quantization
from imagegen.model.quantized_linear import QuantizedLinear

TEXT = 512
#: Tokens of images when a block is traced: a number that is no width of klein's.
_TRACED = 5120


class _Written(Exception):
    """Inductor has written its code; it need not be compiled."""


def peak_of_a_block(kind: str, precision: Precision, hidden: int, tokens: int) -> int:
    """Bytes beside the weights that a compiled block has at most, for `tokens` of images and 512 of text.

    Args:
        kind: "double" or "single".
    """
    torch._dynamo.reset()
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad(), _writing_only() as written:
        block = block_of(kind, precision, hidden)
        block.compile(fullgraph=True, dynamic=True)
        try:
            block(**inputs_of(kind, hidden, _TRACED))
        except Exception:  # torch wraps what was raised
            if not written:
                raise
    return _replay(written[0], tokens)


def block_of(kind: str, precision: Precision, hidden: int) -> Any:
    """A block of the transformer, of this width and with random weights."""
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


def inputs_of(kind: str, hidden: int, tokens: int) -> dict[str, Any]:
    """What it takes for so many tokens of images and 512 of text."""

    def states(*shape: int) -> torch.Tensor:
        return torch.empty(1, *shape, dtype=torch.bfloat16)

    common = {
        "image_rotary_emb": (torch.empty(tokens + TEXT, 128), torch.empty(tokens + TEXT, 128)),
        "joint_attention_kwargs": None,
    }
    if kind == "double":
        modulations = {f"temb_mod_{part}": states(6 * hidden) for part in ("img", "txt")}
        return (
            common
            | modulations
            | {"hidden_states": states(tokens, hidden), "encoder_hidden_states": states(TEXT, hidden)}
        )
    return common | {
        "hidden_states": states(tokens + TEXT, hidden),
        "encoder_hidden_states": None,
        "temb_mod": states(3 * hidden),
    }


@contextmanager
def _writing_only() -> Iterator[list[str]]:
    written: list[str] = []

    def keep(graph: Any) -> Any:
        code, *_ = graph.codegen()
        written.append(code if isinstance(code, str) else code.value)
        raise _Written

    with pytest.MonkeyPatch.context() as patch, inductor_config.patch(fx_graph_cache=False):
        patch.setattr(inductor_graph.GraphLowering, "compile_to_module", keep)
        patch.setattr(inductor_graph.GraphLowering, "_compile_to_module", keep)
        yield written


class _Kernel:
    """A kernel, or torch's own functions for what is no kernel: nothing is computed."""

    def __getattr__(self, _: str) -> _Kernel:
        return self

    def __call__(self, *_: Any, **__: Any) -> None: ...


def _replay(code: str, tokens: int) -> int:
    """Runs the wrapper that Inductor wrote on empty tensors, and returns the most bytes that were live beside the
    weights: the block's inputs, which its caller holds, and its buffers."""
    body = code[code.index("class Runner") : code.index("runner = Runner")]
    arguments, live = [], _Live()
    for _, value in re.findall(r"^    (arg\d+_1) = (.+)$", code[code.index("def get_args") :], re.M):
        if value.isdigit():
            arguments.append({_TRACED: tokens, _TRACED + TEXT: tokens + TEXT}.get(int(value), int(value)))
            continue
        shape, dtype = re.match(r"rand_strided\((\(.*?\)), .*dtype=(torch\.\w+)\)", value).groups()
        sizes = [{_TRACED: tokens, _TRACED + TEXT: tokens + TEXT}.get(n, n) for n in eval(shape)]
        tensor = torch.empty(sizes, dtype=eval(dtype), device="meta")
        arguments.append(tensor if tokens not in sizes and tokens + TEXT not in sizes else live.count(tensor))

    def empty(size: Any, stride: Any, dtype: torch.dtype) -> torch.Tensor:
        return live.count(torch.empty_strided(size, stride, dtype=dtype, device="meta"))

    def reinterpret(tensor: torch.Tensor, size: Any, stride: Any, offset: int = 0) -> torch.Tensor:
        return tensor.as_strided(size, stride, tensor.storage_offset() + offset)

    names: dict[str, Any] = {name: _Kernel() for name in re.findall(r"^(\w+) = async_compile", code, re.M)}
    names |= dict.fromkeys(("assert_size_stride", "assert_alignment", "extern_kernels"), _Kernel())
    names |= {"torch": torch, "empty_strided_cpu": empty, "reinterpret_tensor": reinterpret}
    names["aoti_torch_check"] = names["copy_if_misaligned"] = lambda tensor: tensor
    exec(body, names)
    with live:
        held = list(arguments)  # the caller's inputs stay
        names["Runner"](partitions=[]).call(arguments)
        del held
    return live.peak


class _Live(TorchDispatchMode):
    """The bytes of the storages that it was shown, or that an operation such as attention made."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and "attention" in str(func):
                self.count(tensor)
        return out

    def count(self, tensor: torch.Tensor) -> torch.Tensor:
        """Counts a tensor's storage until it is freed."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self._seen:
            self._seen.add(storage._cdata)
            self.bytes += storage.nbytes()
            self.peak = max(self.peak, self.bytes)
            weakref.finalize(storage, self._free, storage._cdata, storage.nbytes())
        return tensor

    def _free(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.bytes -= size
