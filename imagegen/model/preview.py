"""The image that a step of denoising leads to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from PIL import Image

from imagegen.compat import diffusers as compat
from imagegen.model.images import to_bytes

if TYPE_CHECKING:
    import torch


def estimate_end(pipe: Any, before: torch.Tensor, after: torch.Tensor, width: int, height: int) -> Image.Image:
    """The image at the end of the straight line on which the last step lies, decoded as `pipe` decodes its last ones.

    `before` and `after` (1, tokens, C) are the latents around the step; on the straight
    path of flow matching x_sigma = (1 - sigma) * x_0 + sigma * noise, the line through both ends in x_0 at sigma 0.
    (Not from the transformer's output: with guidance that is one of two.)
    """
    import torch

    scheduler, vae = pipe.scheduler, pipe.vae
    was, sigma = scheduler.sigmas[scheduler.step_index - 1 : scheduler.step_index + 1].tolist()
    with torch.no_grad():
        velocity = (after - before) / (sigma - was)
        x0 = (after - sigma * velocity).to(vae.dtype)
        scale = 2 * pipe.vae_scale_factor
        x0 = x0.transpose(1, 2).reshape(1, -1, height // scale, width // scale)
        mean = vae.bn.running_mean.view(1, -1, 1, 1).to(x0)
        deviation = torch.sqrt(vae.bn.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps).to(x0)
        pipe.maybe_free_model_hooks()  # a transformer that is fetched leaves room for it, and comes again
        decoded = vae.decode(compat.unpatchify(pipe, x0 * deviation + mean), return_dict=False)[0]
        return Image.fromarray(to_bytes(decoded).cpu().numpy()[0])
