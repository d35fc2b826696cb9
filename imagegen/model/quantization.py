"""The precisions in which weights are kept: which layers are quantised, and what becomes of one."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Literal

from imagegen.compat import torchao

if TYPE_CHECKING:
    import torch
    from torchao.quantization import FqnToConfig

#: The Linear layers that are quantised, by their names in each part: those inside the blocks, with 96 % of the
#: transformer's weights. What stands before and after them, and what modulates them, stays as it is.
_QUANTIZED = {
    "transformer": r"transformer_blocks\.\d+\.attn\.(to_[qkv]|to_out\.0|to_add_out|add_[qkv]_proj)"
    r"|transformer_blocks\.\d+\.ff(_context)?\.linear_\w+"
    r"|single_transformer_blocks\.\d+\.attn\.(to_qkv_mlp_proj|to_out)",
    "text_encoder": r"model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj",
}
#: A row's or a token's largest value counts as at least this: of one that is all zeros torchao's fp8 would make NaN.
_SMALLEST = 1e-12


def recipe(part: str, precision: Literal["fp8", "int8"], per_tensor: str | None = None) -> FqnToConfig:
    """torchao's settings for a part: 8-bit weights, and activations made 8-bit as they come.

    One scale is kept for each row of a weight and each token; `per_tensor`, a pattern of layers' full names, chooses
    those that have one for the whole tensor in fp8.
    """
    from torchao.quantization import (
        Float8DynamicActivationFloat8WeightConfig,
        FqnToConfig,
        Int8DynamicActivationInt8WeightConfig,
        PerRow,
        PerTensor,
    )

    if precision == "int8":
        return FqnToConfig({f"re:{_QUANTIZED[part]}": Int8DynamicActivationInt8WeightConfig()})

    def fp8(granularity: Any) -> Any:
        return Float8DynamicActivationFloat8WeightConfig(granularity=granularity, activation_value_lb=_SMALLEST)

    configs = {f"re:{_QUANTIZED[part]}": fp8(PerRow())}
    if per_tensor:
        configs = {f"re:{per_tensor}": fp8(PerTensor()), **configs}
    return FqnToConfig(configs)


def layer_config(recipe: FqnToConfig, name: str) -> Any:
    """What a recipe says of the layer called `name`; None where it stays as it is."""
    return next((c for pattern, c in recipe.fqn_to_config.items() if re.fullmatch(pattern[3:], name)), None)


def quantize(weight: torch.Tensor, config: Any) -> torch.Tensor:
    """The weight (out, in) as torchao's `quantize_` would leave it, made on the device that it is on.

    `quantize_` refuses fp8 where there is no GPU that could run it; the weight itself can be made anywhere.
    """
    import torch
    from torchao.quantization import Float8Tensor, Int8DynamicActivationInt8WeightConfig, Int8Tensor
    from torchao.quantization.quantize_.workflows import QuantizeTensorToFloat8Kwargs, QuantizeTensorToInt8Kwargs

    weight = weight.to(torch.bfloat16)  # what it is quantised from on a GPU, and what PerRow asks for
    activations, weights = config.granularity if isinstance(config.granularity, list) else [config.granularity] * 2
    if isinstance(config, Int8DynamicActivationInt8WeightConfig):
        int8 = QuantizeTensorToInt8Kwargs(
            granularity=activations, mapping_type=config.act_mapping_type, reduce_range=config.reduce_range
        )
        quantized: torch.Tensor = Int8Tensor.from_hp(
            weight, granularity=weights, act_quant_kwargs=int8, reduce_range=config.reduce_range
        )
        return quantized
    fp8 = QuantizeTensorToFloat8Kwargs(
        config.activation_dtype,
        activations,
        hp_value_lb=config.activation_value_lb,
        hp_value_ub=config.activation_value_ub,
        kernel_preference=config.kernel_preference,
    )
    quantized = Float8Tensor.from_hp(
        weight,
        float8_dtype=config.weight_dtype,
        granularity=weights,
        hp_value_lb=config.activation_value_lb,
        mm_config=config.mm_config,
        kernel_preference=config.kernel_preference,
        act_quant_kwargs=fp8,
    )
    return quantized


def has_layer(part: str, name: str) -> bool:
    """Whether the layer called `name` is one of those that are quantised."""
    return re.fullmatch(_QUANTIZED[part], name) is not None


def is_quantized(weight: torch.Tensor) -> bool:
    """Whether a weight is one of torchao's 8-bit ones."""
    from torchao.quantization import Float8Tensor, Int8Tensor

    return isinstance(weight, (Float8Tensor, Int8Tensor))


def restore(name: str, tensors: dict[str, torch.Tensor], note: str) -> torch.Tensor:
    """The quantised weight called `name`, from the tensors and the note that a file has of it."""
    return torchao.unflatten(name, tensors, note)


def set_nf4(module: torch.nn.Module, name: str, weight: torch.Tensor, home: str) -> None:
    """Puts a Linear of bitsandbytes' 4-bit NormalFloat in the place of the one called `name`.

    Args:
        weight: (out, in) on the device that quantises it, in the type in which it computes.
        home: where it then lives.
    """
    import bitsandbytes as bnb

    rows, columns = weight.shape
    linear = bnb.nn.Linear4bit(columns, rows, False, compute_dtype=weight.dtype, quant_type="nf4", device="meta")
    small = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4", module=linear)
    linear.weight = small.to(weight.device).to(home)
    module.set_submodule(name, linear)
