"""The inside of diffusers (0.42): names that begin with "_", and a function that no page documents.

FLUX.2's pipeline has no public way to do its steps by themselves, and the parts of it that compute the layout of
latents are the only description of that layout. A version without one of these names fails at its first use, which for
those of a pipeline is the load; one that computes otherwise fails in tests/compat/test_diffusers.py.
"""

from __future__ import annotations

from collections.abc import Sequence
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

    tokens: torch.Tensor = pack_patches(Flux2KleinPipeline._patchify_latents(latents))
    return tokens


def pack_patches(patches: torch.Tensor) -> torch.Tensor:
    """The transformer's tokens (B, H x W, 4C) of patches (B, 4C, H, W)."""
    from diffusers import Flux2KleinPipeline

    tokens: torch.Tensor = Flux2KleinPipeline._pack_latents(patches)
    return tokens


def latent_ids(height: int, width: int) -> torch.Tensor:
    """Positions (1, height x width, 4) of an image of so many rows and columns of tokens."""
    import torch
    from diffusers import Flux2KleinPipeline

    ids: torch.Tensor = Flux2KleinPipeline._prepare_latent_ids(torch.empty(1, 1, height, width, device="meta"))
    return ids


def reference_ids(sizes: Sequence[tuple[int, int]]) -> torch.Tensor:
    """Positions (1, tokens, 4) of references of so many rows and columns of tokens each, one after another."""
    import torch
    from diffusers import Flux2KleinPipeline

    latents = [torch.empty(1, 1, *size, device="meta") for size in sizes]
    ids: torch.Tensor = Flux2KleinPipeline._prepare_image_ids(latents)
    return ids


def text_ids(tokens: int) -> torch.Tensor:
    """Positions (1, tokens, 4) of a text."""
    import torch
    from diffusers import Flux2KleinPipeline

    ids: torch.Tensor = Flux2KleinPipeline._prepare_text_ids(torch.empty(1, tokens, 1, device="meta"))
    return ids


def position_ids(latents: torch.Tensor, references: int, text_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions (tokens, 4) of an image and its references, all as large as `latents` (1, C, H, W), and of a text."""
    import torch

    size: tuple[int, int] = (latents.shape[2], latents.shape[3])
    ids = [latent_ids(*size)[0]]
    if references:
        ids.append(reference_ids([size] * references)[0])
    return torch.cat(ids), text_ids(text_tokens)[0]


def time_shift(tokens: int, steps: int) -> float:
    """The logarithm of the shift of the noise levels, which the pipeline computes from the size of the image."""
    from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

    return float(compute_empirical_mu(tokens, steps))


def set_noise_levels(scheduler: Any, tokens: int, steps: int) -> None:
    """Sets the timesteps and sigmas of a scheduler as the pipeline does for an image of so many tokens."""
    import numpy as np
    from diffusers.pipelines.flux2.pipeline_flux2_klein import retrieve_timesteps

    sigmas = None if getattr(scheduler.config, "use_flow_sigmas", False) else np.linspace(1.0, 1 / steps, steps)
    retrieve_timesteps(scheduler, steps, "cpu", sigmas=sigmas, mu=time_shift(tokens, steps))


def encode_image(pipe: Any, image: torch.Tensor) -> torch.Tensor:
    """Latents (1, tokens, C) of an image (1, 3, height, width) from -1 to 1. diffusers takes the mode of the VAE's
    distribution, and so nothing of the image's own generator."""
    return pack_patches(pipe._encode_vae_image(image=image, generator=None))
