"""What the three trainings share: a progress line with an estimate, and weights written in one go."""

from __future__ import annotations

import os
import time
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import nn


class Progress:
    """Prints the running means of what it is told, the pace and what is left, every `every` steps."""

    def __init__(self, name: str, steps: int, first: int = 0, every: int = 50) -> None:
        self._name, self._steps, self._first, self._every = name, steps, first, every
        self._begun = time.monotonic()
        self._sums: dict[str, list[float]] = {}

    def note(self, **values: float) -> None:
        """Adds figures to the means of the next line."""
        for key, value in values.items():
            self._sums.setdefault(key, []).append(value)

    def __call__(self, step: int, **values: float) -> None:
        """Step `step` (from 0) is done; `values` are noted."""
        self.note(**values)
        done = step + 1
        if done % self._every and done != self._steps:
            return
        pace = (time.monotonic() - self._begun) / (done - self._first)
        figures = "  ".join(f"{key} {sum(seen) / len(seen):.4f}" for key, seen in sorted(self._sums.items()))
        left = pace * (self._steps - done) / 60
        print(f"{self._name} {done}/{self._steps}  {figures}  {pace:.3f} s each, {left:.0f} min left", flush=True)
        self._sums.clear()


def save(model: nn.Module, path: str | Path) -> None:
    """Writes the weights so that a reader finds the old file or the whole new one.

    Tied weights are written once.
    """
    seen: set[int] = set()
    weights = {}
    for name, value in model.state_dict().items():
        if value.data_ptr() not in seen:
            seen.add(value.data_ptr())
            weights[name] = value.detach().contiguous()
    partial = Path(f"{path}.part")
    save_file(weights, partial)
    os.replace(partial, path)


def load(model: nn.Module, path: str | Path) -> None:
    """Reads weights that `save` wrote.

    Raises:
        ValueError: a weight of the model other than a tied one is missing, or the file holds one too many.
    """
    missing, unexpected = model.load_state_dict(load_file(path), strict=False)
    if unexpected or [name for name in missing if name != "lm_head.weight"]:
        raise ValueError(f"{path} does not fit: missing {missing}, unexpected {unexpected}")
