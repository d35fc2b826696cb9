"""A prompt on its way to the transformer: its embeddings, and what of it is not in them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from imagegen.contract import prompts
from imagegen.model.caches import PromptCache
from imagegen.model.images import Mark
from imagegen.models import ModelSpec

if TYPE_CHECKING:
    import torch


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
    """Encodes prompts, and keeps what the last ones came to.

    Args:
        pipe: the diffusers pipeline without a cache of keys and values.
        cache: bytes of main memory for the embeddings of the prompts that came last.
    """

    def __init__(self, pipe: Any, spec: ModelSpec, device: torch.device, cache: int) -> None:
        self._pipe, self._spec, self._device = pipe, spec, device
        self._kept = PromptCache(cache)

    def encode(self, prompt: str) -> Prompt:
        """The prompt's embeddings; on a GPU it returns when the work is queued."""
        kept = self._kept.get(prompt)
        begun = Mark.on(self._device)
        if kept is not None:
            embeddings, warnings = kept[0].to(self._device, non_blocking=True), kept[1]
        else:
            embeddings, _ = self._pipe.encode_prompt(prompt, max_sequence_length=self._spec.max_sequence_length)
            warnings = prompts.warnings(self._spec, prompt, self._pipe.tokenizer)
            self._kept.put(prompt, embeddings, warnings)
        return Prompt(embeddings, begun, Mark.on(self._device), warnings, cached=kept is not None)
