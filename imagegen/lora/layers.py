"""The layers of a transformer that an adapter can change: all its Linear layers, by diffusers' names."""

from __future__ import annotations

from functools import cache

from imagegen.models import ModelSpec

#: Rows (what a layer gives) and columns (what it takes).
Shape = tuple[int, int]


@cache
def layers(spec: ModelSpec) -> dict[str, Shape]:
    """Each layer's shape; `tests/lora/test_layers.py` compares them with the real class on the meta device."""
    a = spec.architecture
    h, r = a.hidden, a.mlp_ratio
    found: dict[str, Shape] = {
        "x_embedder": (h, a.channels),
        "context_embedder": (h, 3 * a.text_hidden),
        "time_guidance_embed.timestep_embedder.linear_1": (h, a.timestep_channels),
        "time_guidance_embed.timestep_embedder.linear_2": (h, h),
        "double_stream_modulation_img.linear": (6 * h, h),
        "double_stream_modulation_txt.linear": (6 * h, h),
        "single_stream_modulation.linear": (3 * h, h),
        "norm_out.linear": (2 * h, h),
        "proj_out": (a.channels, h),
    }
    square = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    for i in range(a.double_blocks):
        block = f"transformer_blocks.{i}"
        found |= {f"{block}.attn.{name}": (h, h) for name in square}
        for part in ("ff", "ff_context"):
            found |= {f"{block}.{part}.linear_in": (2 * r * h, h), f"{block}.{part}.linear_out": (h, r * h)}
    for i in range(a.single_blocks):
        block = f"single_transformer_blocks.{i}.attn"
        found |= {f"{block}.to_qkv_mlp_proj": ((3 + 2 * r) * h, h), f"{block}.to_out": (h, (1 + r) * h)}
    return found


def elements(spec: ModelSpec) -> int:
    """Numbers in the two matrices of an adapter of rank 1 for all layers."""
    return sum(rows + columns for rows, columns in layers(spec).values())
