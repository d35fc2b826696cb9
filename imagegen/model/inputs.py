"""What a job's images are made of beside the model: computed by any thread before the GPU's turn, and sent at once."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from PIL import Image

from imagegen.compat import diffusers as compat
from imagegen.contract import prompts
from imagegen.model.images import image_to_bytes, to_pixels
from imagegen.model.transfer import pin, send
from imagegen.models import MULTIPLE, ModelSpec, Size

if TYPE_CHECKING:
    import torch

#: One of the 1,000 noise levels that the models know; a lower one is not told from none.
_LEAST_STRENGTH = 0.001


@dataclass(frozen=True)
class Tokens:
    """A prompt as its text encoder reads it.

    Args:
        read: its numbers (1, max_sequence_length), or their rows (1, max_sequence_length, hidden) of an embedding table
            that stays on the CPU.
        mask: (1, max_sequence_length).
        warnings: what of it is not read.
    """

    text: str
    read: torch.Tensor
    mask: torch.Tensor
    warnings: list[str]


@dataclass
class References:
    """The references of a job's images, encoded by the first of them for all.

    Args:
        images: RGB, sides multiples of 16 and at most a megapixel.
        pixels: of each, (1, height, width, 3) bytes; for a CPU what `to_pixels` makes of them.
        ids: positions (1, tokens, 4) of their latents.
        latents: (1, tokens, C), on the device.
    """

    images: list[Image.Image]
    pixels: list[torch.Tensor] = field(default_factory=list)
    ids: torch.Tensor | None = None
    latents: torch.Tensor | None = None


@dataclass
class Inputs:
    """The inputs of a job's images, beside their prompt.

    Args:
        negative: what is encoded for guidance, by the first image for all; None: there is none.
        text_ids, latent_ids: positions (1, tokens, 4) of the prompt and of an image.
        timesteps, sigmas: of the scheduler, (steps,) and (steps + 1,).
        strength: the noise level at which the steps begin; below 1 they begin at the first reference, of this size.
        noise: (1, tokens, C) by seed, where a CPU generates the images; a GPU makes its own.
    """

    size: Size
    num_inference_steps: int
    guidance_scale: float
    negative: Tokens | torch.Tensor | None
    references: References
    text_ids: torch.Tensor
    latent_ids: torch.Tensor
    timesteps: torch.Tensor
    sigmas: torch.Tensor
    strength: float = 1.0
    noise: dict[int, torch.Tensor] = field(default_factory=dict)
    _sent: bool = False

    def send(self, device: torch.device) -> None:
        """Sends all of it to the device, once; in the GPU's thread."""
        if self._sent:
            return
        self._sent, references = True, self.references
        positions = [] if references.ids is None else [references.ids]
        tensors = [self.text_ids, self.latent_ids, self.timesteps, self.sigmas, *positions, *references.pixels]
        self.text_ids, self.latent_ids, self.timesteps, self.sigmas, *rest = send(tensors, device)
        if rest:
            references.ids, *references.pixels = rest


@dataclass(frozen=True)
class OnDevice:
    """What a call takes in place of what diffusers would compute: all on the device.

    Args:
        rows, columns: of the image's tokens.
        noise: (1, tokens, C).
        references: latents (1, tokens, C) and positions; None: there are none.
    """

    rows: int
    columns: int
    noise: torch.Tensor
    text_ids: torch.Tensor
    latent_ids: torch.Tensor
    timesteps: torch.Tensor
    sigmas: torch.Tensor
    references: tuple[torch.Tensor, torch.Tensor] | None


class Preparation:
    """Makes inputs in any thread, to the bit as diffusers would in the GPU's.

    Args:
        pipe: whose tokenizer, scheduler and sizes are used.
        device: for which they are made.
        dtype: of the noise.
    """

    def __init__(self, pipe: Any, spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> None:
        self._pipe, self._spec, self._device, self._dtype = pipe, spec, device, dtype
        self._on_cpu = device.type == "cpu"  # where other threads can do what a GPU does itself
        self._tokenizing = threading.Lock()  # a tokenizer keeps its settings for cutting in itself

    def tokens(self, prompt: str) -> Tokens:
        """A prompt in the model's chat template, padded or cut to the length that the text encoder reads."""
        from imagegen.model.offload import CpuEmbedding

        tokenizer, table = self._pipe.tokenizer, self._pipe.text_encoder.get_input_embeddings()
        with self._tokenizing:
            made = tokenizer(
                prompts.in_chat_template(tokenizer, prompt),
                return_tensors="pt",
                padding="max_length",
                truncation=True,
                max_length=self._spec.max_sequence_length,
            )
            warnings = prompts.warnings(self._spec, prompt, tokenizer)
        ids = made["input_ids"]
        read = table.rows(ids) if isinstance(table, CpuEmbedding) else ids
        return Tokens(prompt, self._pin(read), self._pin(made["attention_mask"]), warnings)

    def inputs(
        self,
        references: References,
        *,
        width: int,
        height: int,
        num_inference_steps: int,
        guidance_scale: float,
        seeds: Sequence[int],
        negative_prompt: str = "",
        strength: float = 1.0,
    ) -> Inputs:
        """The inputs of images of one size, each with the noise of its seed."""
        strength = max(strength, _LEAST_STRENGTH)
        self._read(references)
        guided = guidance_scale > 1 and not self._pipe.config.is_distilled
        positions = self._within(compat.latent_ids(*_tokens_of((width, height))), [(width, height)])
        timesteps, sigmas = self._noise_levels(positions.shape[1], num_inference_steps)
        inputs = Inputs(
            size=(width, height),
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            negative=self.tokens(negative_prompt) if guided else None,
            references=references,
            text_ids=self._pin(compat.text_ids(self._spec.max_sequence_length)),
            latent_ids=self._pin(positions),
            timesteps=self._pin(timesteps if strength == 1 else timesteps * strength),
            sigmas=self._pin(sigmas if strength == 1 else sigmas * strength),
            strength=strength,
        )
        if self._on_cpu:
            inputs.noise = {seed: self.noise((width, height), seed) for seed in seeds}
        return inputs

    def noise(self, size: Size, seed: int) -> torch.Tensor:
        """The noise (1, tokens, C) of an image, made on the device by a generator of its own."""
        import torch
        from diffusers.utils.torch_utils import randn_tensor

        shape = (1, self._pipe.transformer.config.in_channels, *_tokens_of(size))
        generator = torch.Generator(self._device).manual_seed(seed)
        return compat.pack_patches(randn_tensor(shape, generator, self._device, self._dtype))

    def _read(self, references: References) -> None:
        """Makes references' bytes and positions."""
        if references.images and references.ids is None:
            pixels = [image_to_bytes(image) for image in references.images]
            references.pixels = [to_pixels(one) if self._on_cpu else self._pin(one) for one in pixels]
            sizes = [image.size for image in references.images]
            ids = compat.reference_ids([_tokens_of(size) for size in sizes])
            references.ids = self._pin(self._within(ids, sizes))

    def _within(self, ids: torch.Tensor, sizes: Sequence[Size]) -> torch.Tensor:
        """Positions (1, tokens, 4) of images, spread over no more than the model was trained on.

        A model that knows small images alone would else repeat in a large one what is asked for once (position
        interpolation, https://arxiv.org/abs/2306.15595).
        """
        longest = max(side for size in sizes for side in size)
        if self._spec.good_size is None or longest <= self._spec.good_size:
            return ids
        spread = ids.float()
        spread[..., 1:3] *= self._spec.good_size / longest  # time, row, column, layer
        return spread

    def _noise_levels(self, tokens: int, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The scheduler's timesteps and sigmas, of a scheduler of its own: it keeps them in itself."""
        from diffusers import FlowMatchEulerDiscreteScheduler

        scheduler = FlowMatchEulerDiscreteScheduler.from_config(self._pipe.scheduler.config)
        compat.set_noise_levels(scheduler, tokens, steps)
        return scheduler.timesteps, scheduler.sigmas

    def _pin(self, tensor: torch.Tensor) -> torch.Tensor:
        return pin(tensor, self._device)


def _tokens_of(size: Size) -> tuple[int, int]:
    """Rows and columns of the transformer's tokens of an image of a size in pixels."""
    return size[1] // MULTIPLE, size[0] // MULTIPLE
