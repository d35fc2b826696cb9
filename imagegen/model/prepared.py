"""Flux2KleinPipeline with its inputs prepared: diffusers' own denoising loop, whose positions, noise, noise levels and
references come from `Inputs`, and are not computed, nor copied with a wait, in the GPU's thread."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from imagegen.model.inputs import OnDevice
from imagegen.model.offload import OnloadHook


class PreparedScheduler(FlowMatchEulerDiscreteScheduler):  # type: ignore[misc] # diffusers' classes are not typed
    """Takes its noise levels from where they are, while there are some."""

    prepared: OnDevice | None = None

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        sigmas: Any = None,
        mu: float | None = None,
        timesteps: Any = None,
    ) -> None:
        """As of diffusers, which computes them on the CPU and waits for their copies."""
        if self.prepared is None:
            super().set_timesteps(num_inference_steps, device, sigmas, mu, timesteps)
            return
        self.timesteps, self.sigmas = self.prepared.timesteps, self.prepared.sigmas
        self.num_inference_steps = len(self.timesteps)
        self._step_index = self._begin_index = None


class _Reference:
    """Stands for a reference whose latents are there: of a size that needs no resizing."""

    size = (16, 16)


class _ImageProcessor:
    """Lets `_Reference` pass."""

    def check_image_input(self, image: object) -> None:
        """Any."""

    def preprocess(self, image: object, **_: Any) -> None:
        """Nothing: `prepare_image_latents` needs none."""


class _Transformer:
    """The transformer, with its type at hand: diffusers walks through all its modules for it, in each step."""

    def __init__(self, transformer: Any) -> None:
        self._transformer, self.dtype = transformer, transformer.dtype

    def __call__(self, *arguments: Any, **settings: Any) -> Any:
        return self._transformer(*arguments, **settings)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transformer, name)


class _Prepared:
    """Of a diffusers pipeline of FLUX.2 klein. Without `prepared` it is that pipeline."""

    prepared: OnDevice | None = None
    #: What brings the transformer for the steps of an image, where it waits on the CPU.
    fetched: OnloadHook | None = None
    scheduler: PreparedScheduler
    image_processor: Any
    transformer: Any

    @property
    def _execution_device(self) -> torch.device:
        if self.prepared is not None:  # diffusers walks through all modules
            return self.prepared.noise.device
        device: torch.device = super()._execution_device  # type: ignore[misc]
        return device

    def encode_prompt(self, *arguments: Any, prompt_embeds: torch.Tensor | None = None, **settings: Any) -> Any:
        if self.prepared is None or prompt_embeds is None:
            return super().encode_prompt(*arguments, prompt_embeds=prompt_embeds, **settings)  # type: ignore[misc]
        return prompt_embeds, self.prepared.text_ids

    def prepare_latents(self, *arguments: Any, **settings: Any) -> Any:
        if self.prepared is None:
            return super().prepare_latents(*arguments, **settings)  # type: ignore[misc]
        return self.prepared.noise, self.prepared.latent_ids

    def prepare_image_latents(self, *arguments: Any, **settings: Any) -> Any:
        if self.prepared is None:
            return super().prepare_image_latents(*arguments, **settings)  # type: ignore[misc]
        return self.prepared.references

    def _unpack_latents_with_ids(self, latents: torch.Tensor, ids: torch.Tensor, *size: int) -> torch.Tensor:
        if self.prepared is None:
            whole: torch.Tensor = super()._unpack_latents_with_ids(latents, ids, *size)  # type: ignore[misc]
            return whole
        # The tokens are in the order of their positions.
        return latents.transpose(1, 2).reshape(1, -1, self.prepared.rows, self.prepared.columns)

    def maybe_free_model_hooks(self) -> None:
        """Lets the transformer go; diffusers does it at the end of a call."""
        if self.fetched is not None:
            self.fetched.leave()

    @contextmanager
    def using(self, prepared: OnDevice) -> Iterator[None]:
        """While it is open, a call computes none of it."""
        processor, transformer = self.image_processor, self.transformer
        self.prepared = self.scheduler.prepared = prepared
        self.image_processor, self.transformer = _ImageProcessor(), _Transformer(transformer)
        try:
            yield
        finally:
            self.prepared = self.scheduler.prepared = None
            self.image_processor, self.transformer = processor, transformer


@cache
def prepared_class(kind: Any) -> Any:
    """A diffusers pipeline's class that can take prepared inputs."""
    return type(kind.__name__, (_Prepared, kind), {})


def denoise(pipe: Any, prepared: OnDevice, **arguments: Any) -> torch.Tensor:
    """A call of the pipeline up to the latents (1, C, height / 8, width / 8) that its VAE decodes.

    Args:
        arguments: of its call.
    """
    count = 1 if prepared.references is not None else 0
    with pipe.using(prepared):
        latents: torch.Tensor = pipe(image=[_Reference()] * count or None, output_type="latent", **arguments).images
    return latents
