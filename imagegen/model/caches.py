"""What is not computed twice: the embeddings of a prompt that comes again."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

from imagegen.model.transfer import to_host

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
        self._kept: OrderedDict[str, torch.Tensor] = OrderedDict()

    def get(self, prompt: str) -> torch.Tensor | None:
        """The embeddings of a prompt, on the CPU."""
        with self._lock:
            if (kept := self._kept.get(prompt)) is not None:
                self._kept.move_to_end(prompt)
        return kept

    def put(self, prompt: str, embeddings: torch.Tensor) -> None:
        """Keeps a copy of a prompt's embeddings; those that were asked for longest ago make room for it."""
        if embeddings.nbytes > self._limit:
            return
        kept = to_host(embeddings)  # read by the GPU alone, after what it is made of
        with self._lock:
            if (old := self._kept.pop(prompt, None)) is not None:
                self._bytes -= old.nbytes
            self._kept[prompt] = kept
            self._bytes += kept.nbytes
            while self._bytes > self._limit:
                _, gone = self._kept.popitem(last=False)
                self._bytes -= gone.nbytes

    @property
    def size(self) -> tuple[int, int]:
        """How many prompts are kept, and their bytes."""
        with self._lock:
            return len(self._kept), self._bytes
