"""One image: a call of the diffusers pipeline that reports its steps, shows previews, and can be stopped."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from PIL import Image

from imagegen.model.caches import References, shared_reference_latents
from imagegen.model.images import GeneratedImage, Mark
from imagegen.model.preview import estimate_end
from imagegen.model.strength import begin_at_reference

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
    arguments: dict[str, Any],
    references: References | None,
    seed: int,
    on_step: StepCallback | None,
    device: torch.device,
    strength: float = 1.0,
) -> GeneratedImage:
    """Calls a diffusers pipeline for one image. On a GPU it returns when all work is queued.

    Args:
        arguments: of the call, beside the images and what follows.
        seed: of the generator of the noise.
        strength: below 1 the steps begin at the first reference, which then has the size of the image.
    """
    import torch

    before: list[torch.Tensor] = []
    marks: list[Mark] = []

    # 1. What is reported of the steps
    def keep_latents(_: Any, __: Any, inputs: dict[str, Any]) -> None:
        before[:] = [inputs["hidden_states"][:, inputs.get("num_ref_tokens", 0) :]]

    def after_step(_: Any, step: int, __: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        marks.append(Mark.on(device))
        # The host queues hundreds of kernels a step and runs ahead of the GPU, by all steps of a small image. Waiting
        # for the step before leaves the GPU one step of work, and what is reported, or stopped, at most one behind.
        if len(marks) > 1:
            marks[-2].wait()
        if on_step is not None:
            size = arguments["width"], arguments["height"]
            preview = partial(estimate_end, pipe, before[0], tensors["latents"], *size)
            on_step(step + 1, arguments["num_inference_steps"], preview)
        return tensors

    # 2. References are encoded, the steps run, the latents are decoded
    images = references.images if references and references.images else None
    generator, begun = torch.Generator(device).manual_seed(seed), Mark.on(device)
    hook = pipe.transformer.register_forward_pre_hook(keep_latents, with_kwargs=True)
    try:
        with shared_reference_latents(pipe, references) if references and images else nullcontext():
            if references and strength < 1:
                steps, dtype = arguments["num_inference_steps"], arguments["prompt_embeds"].dtype
                arguments = arguments | begin_at_reference(pipe, references, steps, strength, generator, dtype)
            decoded = pipe(
                image=images,
                generator=generator,
                callback_on_step_end=after_step,
                output_type="pt",
                **arguments,
            ).images
    finally:
        hook.remove()
    return GeneratedImage(decoded, begun, marks[-1])
