"""A prompt on its way to the transformer: its embeddings, and what of it is not in them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from imagegen.model.caches import PromptCache
from imagegen.model.images import Mark
from imagegen.model.inputs import Tokens
from imagegen.model.transfer import send

if TYPE_CHECKING:
    import torch

#: Of the text encoder, whose states are the embeddings: `text_encoder_out_layers` of diffusers' `encode_prompt`.
_LAYERS = (9, 18, 27)


@dataclass
class Prompt:
    """A prompt's embeddings (1, max_sequence_length, 3 * hidden), made once for all images of a job, and what of it
    is not in them; `cached` where they were there already."""

    embeddings: torch.Tensor
    begun: Mark
    done: Mark
    warnings: list[str]
    cached: bool = False

    @property
    def seconds(self) -> float:
        """What it took; waits until the GPU has done it."""
        self.done.wait()
        return self.begun.seconds_to(self.done)


class PromptEncoder:
    """Encodes prompts, and keeps the embeddings of the last ones.

    Args:
        pipe: the diffusers pipeline, whose text encoder is used.
        cache: bytes of main memory for embeddings.
    """

    def __init__(self, pipe: Any, device: torch.device, cache: int) -> None:
        self._pipe, self._device = pipe, device
        self._kept = PromptCache(cache)

    def encode(self, tokens: Tokens) -> Prompt:
        """A prompt's embeddings; on a GPU it returns when the work is queued."""
        kept = self._kept.get(tokens.text)
        begun = Mark.on(self._device)
        if kept is not None:
            # In the GPU's own queue: the host may be ahead of the copy that fills what was kept.
            embeddings = kept.to(self._device, non_blocking=True)
        else:
            embeddings = self._encode(tokens)
            self._kept.put(tokens.text, embeddings)
        return Prompt(embeddings, begun, Mark.on(self._device), tokens.warnings, cached=kept is not None)

    def _encode(self, tokens: Tokens) -> torch.Tensor:
        """As diffusers' `encode_prompt`, of numbers that were made before."""
        import torch

        read, mask = send([tokens.read, tokens.mask], self._device)
        given = {"inputs_embeds" if read.is_floating_point() else "input_ids": read}
        states = self._pipe.text_encoder(
            **given, attention_mask=mask, output_hidden_states=True, use_cache=False
        ).hidden_states
        used = torch.stack([states[layer] for layer in _LAYERS], dim=1)  # (1, 3, tokens, hidden)
        return used.permute(0, 2, 1, 3).flatten(2)
