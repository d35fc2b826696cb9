"""An edit that begins at a reference under some noise, and not at noise alone: less noise, less change.

Flow matching's latents at the level sigma are (1 - sigma) * x0 + sigma * noise. With `strength` s the steps begin at
the level s, with x0 the encoded reference, and all levels of the schedule are s times their usual ones. (Leaving out
steps instead, as diffusers' image-to-image pipelines do, has as few strengths as there are steps: klein's lowest of
four levels is 0.767 at 1024x1024.)
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from imagegen.compat.diffusers import execution_device, time_shift
from imagegen.model.caches import References

if TYPE_CHECKING:
    import torch

#: One of the 1,000 levels that the models know; a lower one is not told from none.
_LEAST = 0.001


def begin_at_reference(
    pipe: Any, references: References, steps: int, strength: float, generator: torch.Generator, dtype: torch.dtype
) -> dict[str, Any]:
    """The arguments of a call of diffusers' pipeline that begins at its first reference.

    Args:
        references: the first one has the size of the image.
        steps: denoising steps.
        strength: over 0 and below 1.
        generator: of the noise, which is the same as without a strength.
        dtype: of the latents.
    """
    from diffusers.utils.torch_utils import randn_tensor

    first, side = references.images[0], 2 * pipe.vae_scale_factor
    width, height = first.width // side, first.height // side
    device, tokens = execution_device(pipe), width * height
    latents, _ = pipe.prepare_image_latents(
        images=[pipe.image_processor.preprocess(image) for image in references.images],
        batch_size=1,
        generator=generator,
        device=device,
        dtype=pipe.vae.dtype,
    )
    x0 = latents[:, :tokens].transpose(1, 2).reshape(1, -1, height, width).to(dtype)
    noise = randn_tensor(x0.shape, generator=generator, device=device, dtype=dtype)
    sigma = max(strength, _LEAST)
    return {"latents": (1 - sigma) * x0 + sigma * noise, "sigmas": noise_levels(tokens, steps, sigma)}


def noise_levels(tokens: int, steps: int, strength: float) -> list[float]:
    """The pipeline's argument `sigmas` by which its levels are `strength` times their usual ones.

    The scheduler shifts what it is given, sigma = m * t / (m * t + 1 - t) with m = exp(mu) (`FlowMatchEulerDiscrete
    Scheduler.time_shift`, exponential); so it is given t = sigma / (sigma + m * (1 - sigma)).

    Args:
        tokens: of the image, by which the pipeline chooses mu.
    """
    m = math.exp(time_shift(tokens, steps))
    usual = [m * t / (m * t + 1 - t) for t in (1 - step / steps for step in range(steps))]
    return [strength * sigma / (strength * sigma + m * (1 - strength * sigma)) for sigma in usual]
