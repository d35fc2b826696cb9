"""The inside of diffusers (0.42): names that begin with "_", and a function that no page documents.

FLUX.2's pipeline has no public way to do its steps by themselves, and the parts of it that compute the layout of
latents are the only description of that layout. A version without one of these names fails at its first use, which for
those of a pipeline is the load; one that computes otherwise fails in tests/compat/test_diffusers.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def execution_device(pipe: Any) -> torch.device:
    """Where a pipeline computes. Its public `device` is where its first part is stored: with offload, the CPU."""
    device: torch.device = pipe._execution_device
    return device


def attention_backend(transformer: Any) -> str:
    """The kernel that `set_attention_backend` chose, "default" before it. There is a setter alone."""
    chosen = transformer.transformer_blocks[0].attn.processor._attention_backend
    return str(getattr(chosen, "value", "default"))


def unpatchify(pipe: Any, latents: torch.Tensor) -> torch.Tensor:
    """The VAE's latents (B, C, 2H, 2W) of the transformer's (B, 4C, H, W)."""
    whole: torch.Tensor = pipe._unpatchify_latents(latents)
    return whole


def pack(latents: torch.Tensor) -> torch.Tensor:
    """The transformer's tokens (B, H x W, 4C) of the VAE's latents (B, C, 2H, 2W)."""
    from diffusers import Flux2KleinPipeline

    tokens: torch.Tensor = Flux2KleinPipeline._pack_latents(Flux2KleinPipeline._patchify_latents(latents))
    return tokens


def position_ids(latents: torch.Tensor, references: int, text_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions (tokens, 4) of an image and its references, all as large as `latents` (1, C, H, W), and of a text."""
    import torch
    from diffusers import Flux2KleinPipeline

    ids = [Flux2KleinPipeline._prepare_latent_ids(latents)[0]]
    if references:
        ids.append(Flux2KleinPipeline._prepare_image_ids([latents] * references)[0])
    return torch.cat(ids), Flux2KleinPipeline._prepare_text_ids(torch.empty(1, text_tokens, 1))[0]


def time_shift(tokens: int, steps: int) -> float:
    """The logarithm of the shift of the noise levels, which the pipeline computes from the size of the image."""
    from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

    return float(compute_empirical_mu(tokens, steps))
