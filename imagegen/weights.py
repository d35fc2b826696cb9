"""The weights of a pipeline: which are needed, in which precision, and how they come from a folder to a device."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch
    from torchao.quantization import FqnToConfig

#: The pipeline reads the states after the text encoder's layers 9, 18 and 27 (diffusers' `text_encoder_out_layers`).
TEXT_ENCODER_LAYERS = 27
#: The Linear layers that are quantised, by their names in each part: those inside the blocks, with 96 % of the
#: transformer's weights. What stands before and after them, and what modulates them, stays as it is.
_QUANTIZED = {
    "transformer": r"transformer_blocks\.\d+\.attn\.(to_[qkv]|to_out\.0|to_add_out|add_[qkv]_proj)"
    r"|transformer_blocks\.\d+\.ff(_context)?\.linear_\w+"
    r"|single_transformer_blocks\.\d+\.attn\.(to_qkv_mlp_proj|to_out)",
    "text_encoder": r"model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj",
}


def needed(part: str, name: str, layers: int) -> bool:
    """Whether the tensor `name` of a part is read for a picture, where its text encoder has `layers` layers.

    Nothing after the last layer that the pipeline reads is. A text encoder that ends there is read through its norm:
    that is then the state after its last layer; the head is not read in any.
    """
    if part != "text_encoder":
        return True
    if match := re.match(r"model\.layers\.(\d+)\.", name):
        return int(match[1]) < TEXT_ENCODER_LAYERS
    return not name.startswith("lm_head.") and not (name.startswith("model.norm.") and layers > TEXT_ENCODER_LAYERS)


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
    configs = {f"re:{_QUANTIZED[part]}": Float8DynamicActivationFloat8WeightConfig(granularity=PerRow())}
    if per_tensor:
        configs = {f"re:{per_tensor}": Float8DynamicActivationFloat8WeightConfig(granularity=PerTensor()), **configs}
    return FqnToConfig(configs)


def layer_config(recipe: FqnToConfig, name: str) -> Any:
    """What a recipe says of the layer called `name`; None where it stays as it is."""
    return next((c for pattern, c in recipe.fqn_to_config.items() if re.fullmatch(pattern[3:], name)), None)


def quantize(weight: torch.Tensor, config: Any) -> torch.Tensor:
    """The weight (out, in) as torchao's `quantize_` would leave it, made on the device that it is on.

    `quantize_` refuses fp8 where there is no card that could run it; the weight itself can be made anywhere.
    """
    import torch
    from torchao.quantization import Float8Tensor, Int8DynamicActivationInt8WeightConfig, Int8Tensor
    from torchao.quantization.quantize_.workflows import QuantizeTensorToFloat8Kwargs, QuantizeTensorToInt8Kwargs

    weight = weight.to(torch.bfloat16)  # what it is quantised from on a card, and what PerRow asks for
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
        mm_config=config.mm_config,
        kernel_preference=config.kernel_preference,
        act_quant_kwargs=fp8,
    )
    return quantized
