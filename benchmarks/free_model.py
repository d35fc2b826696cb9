"""A model that costs nothing: its parts return at once what was prepared, so that what is left is the host's work."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel
from PIL import Image, ImageFilter
from transformers import Qwen3ForCausalLM
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer, Qwen3RMSNorm


def photo_like(width: int = 1024, height: int = 1024) -> Image.Image:
    """An image that compresses as a photograph does: smooth shapes of many colours under a fine grain (PNG at zlib's
    level 6: about 1.6 bytes a pixel)."""
    noise = np.random.default_rng(0)
    coarse = Image.fromarray(noise.integers(0, 256, (height // 64 + 1, width // 64 + 1, 3), np.uint8))
    smooth = coarse.resize((width, height), Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(4))
    grain = noise.normal(0, 3, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(smooth) + grain, 0, 255).astype(np.uint8))


@cache
def _decoded(rows: int, columns: int) -> torch.Tensor:
    pixels = torch.from_numpy(np.array(photo_like(8 * columns, 8 * rows)))
    return pixels.permute(2, 0, 1)[None].float().div_(127.5).sub_(1)


def make_free(transformer: Callable[[], None] = lambda: None) -> None:
    """Replaces the work of FLUX.2's parts, for this process: the text encoder returns zeros, the transformer its input,
    the VAE an image like a photograph.

    Args:
        transformer: called in the place of its work.
    """

    def forward(_: Any, hidden_states: torch.Tensor, **settings: Any) -> tuple[Any, ...]:
        transformer()
        return hidden_states, None  # the second: what a pipeline that caches keys and values keeps

    def encode_text(self: Any, input_ids: torch.Tensor, **_: Any) -> Any:
        state = torch.zeros(1, input_ids.shape[1], self.config.hidden_size)
        for module in (*self.model.layers, self.model.norm):
            module(state)  # whose states are taken as they are passed on
        return SimpleNamespace(hidden_states=[state] * (self.config.num_hidden_layers + 1))

    def encode(self: Any, image: torch.Tensor, **_: Any) -> Any:
        rows, columns = image.shape[2] // 8, image.shape[3] // 8
        return SimpleNamespace(latents=torch.zeros(1, self.config.latent_channels, rows, columns))

    replaced: list[tuple[Any, str, Any]] = [
        (Flux2Transformer2DModel, "forward", forward),
        (Qwen3ForCausalLM, "forward", encode_text),
        (Qwen3DecoderLayer, "forward", lambda _, state: state),
        (Qwen3RMSNorm, "forward", lambda _, state: state),
        (AutoencoderKLFlux2, "encode", encode),
        (AutoencoderKLFlux2, "decode", lambda _, latents, **__: (_decoded(*latents.shape[2:]),)),
    ]
    for owner, name, function in replaced:
        setattr(owner, name, function)
