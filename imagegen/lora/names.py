"""The names that trainers give to an adapter's matrices, and the layers that these mean.

Four namings are in use for FLUX.2: diffusers' and peft's (`transformer.transformer_blocks.0.attn.to_q.lora_A.weight`),
ai-toolkit's and BFL's (`diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight`), kohya's and musubi-tuner's
(`lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight`), and BFL's names without a prefix. The tables are those of
diffusers 0.42 (`lora_conversion_utils`), which reads whole tensors for what a header already tells.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from typing import Literal, NamedTuple

from imagegen.lora.layers import layers
from imagegen.models import ModelSpec

Matrix = Literal["down", "up", "alpha"]


class Target(NamedTuple):
    """What a module of a file changes: a layer, and which rows of the file's `up` matrix are its own: of `of` equal
    parts those of `parts`, in this order."""

    layer: str
    parts: tuple[int, ...] = (0,)
    of: int = 1


_SUFFIXES: dict[str, Matrix] = {
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora_A.default.weight": "down",
    ".lora_B.default.weight": "up",
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    ".alpha": "alpha",
}
_PREFIXES = (
    "base_model.model.transformer.",
    "base_model.model.",
    "transformer.",
    "model.diffusion_model.",
    "diffusion_model.",
    "",
)
#: What a key holds whose kind of adapter is not run here.
_OTHER_KINDS = {
    r"\.lokr_": "a LoKr",
    r"\.hada_": "a LoHa",
    r"\.dora_scale|\.lora_magnitude_vector": "a DoRA",
    r"\.(diff|diff_b|set_weight)$": "a difference of whole weights",
    r"\.oft_|\.boft_": "an OFT",
    r"\.lora_[AB](\.default)?\.bias$|\.lora_(up|down)\.bias$": "a LoRA with biases",
    r"^(lora_te|text_encoder|te\d?_)|\.text_model\.|\blayers[._]\d+[._](self_attn|mlp)[._]": (
        "an adapter of the text encoder"
    ),
}
#: Layers of other models.
_OTHER_MODELS = {
    r"single_blocks[._]\d+[._]modulation|img_mod|txt_mod|\.norm1?(_context)?\.linear|\.proj_mlp|\.ff(_context)?\.net\."
    r"|_norm1?(_context)?_linear|_proj_mlp|_ff_net_|vector_in": "FLUX.1",
    r"(?<!single_)(double|transformer)_blocks[._](8|9|1\d)[._]": "FLUX.1",
    r"single_(transformer_)?blocks[._](3[89]|4\d)[._]": "FLUX.2 [dev]",
    r"down_blocks|up_blocks|mid_block|input_blocks|output_blocks": "Stable Diffusion",
    r"layers[._]\d+[._](attention|feed_forward|adaLN)": "Z-Image",
    r"transformer_blocks\.\d+\.(img|txt)_(mlp|mod)": "Qwen-Image",
}
_PLAIN = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_guidance_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_guidance_embed.timestep_embedder.linear_2",
    "final_layer.linear": "proj_out",
    "single_stream_modulation.lin": "single_stream_modulation.linear",
    "double_stream_modulation_img.lin": "double_stream_modulation_img.linear",
    "double_stream_modulation_txt.lin": "double_stream_modulation_txt.linear",
}
_DOUBLE = {
    "img_attn.proj": "attn.to_out.0",
    "txt_attn.proj": "attn.to_add_out",
    "img_mlp.0": "ff.linear_in",
    "img_mlp.2": "ff.linear_out",
    "txt_mlp.0": "ff_context.linear_in",
    "txt_mlp.2": "ff_context.linear_out",
}
_QKV = {
    "img_attn.qkv": ("to_q", "to_k", "to_v"),
    "txt_attn.qkv": ("add_q_proj", "add_k_proj", "add_v_proj"),
}


@cache
def modules(spec: ModelSpec) -> dict[str, tuple[Target, ...]]:
    """Each name that a trainer may give to a module of this model, without its prefix, and what it means."""
    own = layers(spec)
    found: dict[str, tuple[Target, ...]] = {layer: (Target(layer),) for layer in own}
    found |= {theirs: (Target(layer),) for theirs, layer in _PLAIN.items()}
    # BFL's layer gives shift and scale, diffusers' the other way round.
    found["final_layer.adaLN_modulation.1"] = (Target("norm_out.linear", (1, 0), 2),)
    for i in range(spec.architecture.double_blocks):
        block = f"transformer_blocks.{i}"
        found |= {f"double_blocks.{i}.{theirs}": (Target(f"{block}.{layer}"),) for theirs, layer in _DOUBLE.items()}
        for theirs, parts in _QKV.items():
            targets = tuple(Target(f"{block}.attn.{part}", (at,), 3) for at, part in enumerate(parts))
            found[f"double_blocks.{i}.{theirs}"] = targets
    for i in range(spec.architecture.single_blocks):
        block = f"single_transformer_blocks.{i}.attn"
        found[f"single_blocks.{i}.linear1"] = (Target(f"{block}.to_qkv_mlp_proj"),)
        found[f"single_blocks.{i}.linear2"] = (Target(f"{block}.to_out"),)
    return found


@cache
def _flat(spec: ModelSpec) -> dict[str, str]:
    """The same names as kohya and LyCORIS write them, with underscores for dots."""
    return {name.replace(".", "_"): name for name in modules(spec)}


def read_key(key: str, spec: ModelSpec) -> tuple[str, Matrix] | None:
    """A key of a file: a name of `modules` and the matrix that it holds; None where it is none of this model's."""
    suffix = next((one for one in _SUFFIXES if key.endswith(one)), None)
    if suffix is None:
        return None
    module = key.removesuffix(suffix)
    if (flat := re.sub(r"^(lora_unet|lora_transformer|lycoris)_", "", module)) != module:
        name = _flat(spec).get(flat)
    else:
        prefix = next(one for one in _PREFIXES if module.startswith(one))
        name = module.removeprefix(prefix)
        name = name if name in modules(spec) else None
    return None if name is None else (name, _SUFFIXES[suffix])


def other_kind(keys: Iterable[str]) -> str | None:
    """The kind of adapter that is not run here, by its keys; None where they tell of none."""
    return _first(_OTHER_KINDS, keys)


def other_model(keys: Iterable[str]) -> str | None:
    """The model of another family that keys belong to; None where they tell of none."""
    return _first(_OTHER_MODELS, keys)


def _first(patterns: dict[str, str], keys: Iterable[str]) -> str | None:
    named = list(keys)
    return next((kind for pattern, kind in patterns.items() if any(re.search(pattern, key) for key in named)), None)
