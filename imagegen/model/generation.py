"""One image: a call of the diffusers pipeline that reports its steps, shows previews, and can be stopped."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from PIL import Image

from imagegen.compat.diffusers import encode_image
from imagegen.model.images import GeneratedImage, Mark, to_pixels
from imagegen.model.inputs import Inputs, OnDevice, References
from imagegen.model.preview import estimate_end

if TYPE_CHECKING:
    import torch


class StepCallback(Protocol):
    """Called after each denoising step. Raising from it stops the image; a stop should be a BaseException, so that no
    handler of ordinary errors on the way swallows it."""

    def __call__(self, step: int, total: int, preview: Callable[[], Image.Image]) -> None:
        """Step `step` (from 1) of `total` is done, or the GPU is in it; `preview`, called at once or never, shows the
        image that it leads to."""


def generate(
    pipe: Any,
    inputs: Inputs,
    noise: torch.Tensor,
    arguments: dict[str, Any],
    on_step: StepCallback | None,
    device: torch.device,
) -> GeneratedImage:
    """Calls a diffusers pipeline for one image. On a GPU it returns when all work is queued.

    Args:
        noise: (1, tokens, C), on the device.
        arguments: of the call, beside what follows from `inputs`.
    """
    from imagegen.model.prepared import denoise

    steps, (width, height) = inputs.num_inference_steps, inputs.size
    latents, marks = noise, list[Mark]()

    # 1. What is reported of the steps
    def after_step(_: Any, step: int, __: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        nonlocal latents
        before, latents = latents, tensors["latents"]
        marks.append(Mark.on(device))
        # The host queues hundreds of kernels a step and runs ahead of the GPU, by all steps of a small image. Waiting
        # for the step before leaves the GPU one step of work, and what is reported, or stopped, at most one behind.
        if len(marks) > 1:
            marks[-2].wait()
        if on_step is not None:
            on_step(step + 1, steps, partial(estimate_end, pipe, before, latents, width, height))
        return tensors

    # 2. References are encoded, the steps run, the latents are decoded
    begun = Mark.on(device)
    inputs.send(device)
    references = _encoded(pipe, inputs.references)
    if inputs.strength < 1 and references is not None:
        # In flow matching, latents are noise by their level, and image by the rest. All levels of the schedule are
        # scaled alike; leaving out steps instead would know as few strengths as there are steps.
        x0 = references[0][:, : noise.shape[1]].to(noise.dtype)
        latents = noise = (1 - inputs.strength) * x0 + inputs.strength * noise
    prepared = OnDevice(
        rows=height // (2 * pipe.vae_scale_factor),
        columns=width // (2 * pipe.vae_scale_factor),
        noise=noise,
        text_ids=inputs.text_ids,
        latent_ids=inputs.latent_ids,
        timesteps=inputs.timesteps,
        sigmas=inputs.sigmas,
        references=references,
    )
    denoised = denoise(
        pipe,
        prepared,
        num_inference_steps=steps,
        callback_on_step_end=after_step,
        width=width,
        height=height,
        **arguments,
    )
    decoded = pipe.vae.decode(denoised, return_dict=False)[0]
    return GeneratedImage(decoded, begun, marks[-1])


def _encoded(pipe: Any, references: References) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The latents (1, tokens, C) of references and their positions, encoded for the first image of a job."""
    import torch

    if references.ids is None:
        return None
    if references.latents is None:
        dtype = pipe.vae.dtype
        images = (one if one.is_floating_point() else to_pixels(one) for one in references.pixels)
        references.latents = torch.cat([encode_image(pipe, image.to(dtype)) for image in images], dim=1)
        references.pixels = []
    return references.latents, references.ids
