"""What is not computed twice: the embeddings of a prompt that comes again, and the references of a job's pictures."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from PIL import Image

from imagegen.compat.diffusers import execution_device
from imagegen.model.images import to_host, to_pixels

if TYPE_CHECKING:
    import torch


class PromptCache:
    """Embeddings of the prompts that came last, by their text, in the main memory: a GPU has none to spare, and a copy
    to it takes milliseconds where the text encoder takes its 5.3 TFLOP, and its way to the GPU where it is offloaded.

    Any thread may call. A prompt of klein-9b has 512 x 12,288 numbers of 2 bytes: 12.6 MB.

    Args:
        limit: bytes of embeddings that are kept; 0 keeps nothing.
    """

    def __init__(self, limit: int) -> None:
        self._limit, self._bytes = limit, 0
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, tuple[torch.Tensor, tuple[str, ...]]] = OrderedDict()

    def get(self, prompt: str) -> tuple[torch.Tensor, list[str]] | None:
        """The embeddings of a prompt, on the CPU, and its warnings."""
        with self._lock:
            if (kept := self._kept.get(prompt)) is None:
                return None
            self._kept.move_to_end(prompt)
        return kept[0], list(kept[1])

    def put(self, prompt: str, embeddings: torch.Tensor, warnings: list[str]) -> None:
        """Keeps a copy of what a prompt came to; those that were asked for longest ago make room for it."""
        if embeddings.nbytes > self._limit:
            return
        kept = to_host(embeddings)  # read by the GPU alone, after what it is made of
        with self._lock:
            if (old := self._kept.pop(prompt, None)) is not None:
                self._bytes -= old[0].nbytes
            self._kept[prompt] = kept, tuple(warnings)
            self._bytes += kept.nbytes
            while self._bytes > self._limit:
                _, (gone, _) = self._kept.popitem(last=False)
                self._bytes -= gone.nbytes

    @property
    def size(self) -> tuple[int, int]:
        """How many prompts are kept, and their bytes."""
        with self._lock:
            return len(self._kept), self._bytes


@dataclass
class References:
    """The references of a job's pictures, encoded by the first of them for all.

    Args:
        images: RGB, sides multiples of 16 and at most a megapixel.
        latents: what diffusers' `prepare_image_latents` made of them: latents (1, tokens, C) and their positions.
    """

    images: list[Image.Image]
    latents: tuple[torch.Tensor, torch.Tensor] | None = None


@contextmanager
def shared_reference_latents(pipe: Any, references: References) -> Iterator[None]:
    """While it is open, a diffusers pipeline takes the latents of its references from `references`, and puts them there
    where they are not yet. They depend on the pictures alone: diffusers takes the mode of the VAE's distribution, and
    so takes nothing from the image's own generator. The images are made into tensors on the GPU (`to_pixels`), and not
    at all where the latents are there."""
    original = pipe.prepare_image_latents

    def prepare(*arguments: Any, **settings: Any) -> tuple[torch.Tensor, torch.Tensor]:
        if references.latents is None:
            references.latents = original(*arguments, **settings)
        return references.latents

    def preprocess(image: Image.Image, **_: Any) -> torch.Tensor | None:
        return to_pixels(image, execution_device(pipe)) if references.latents is None else None

    stand_ins: list[tuple[Any, str, Callable[..., Any]]] = [
        (pipe, "prepare_image_latents", prepare),
        (pipe.image_processor, "preprocess", preprocess),
    ]
    for owner, name, function in stand_ins:
        setattr(owner, name, function)
    try:
        yield
    finally:
        for owner, name, _ in stand_ins:
            delattr(owner, name)
