"""What the three trainings share: a progress line with an estimate, checkpoints, and weights written in one go."""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch
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


class Checkpoint:
    """Lets a training go on as if it had not been stopped, if what it draws at random is seeded by the step.

    Args:
        parts: what the training changes, by name.
        recipe: what must be the same to go on, by name.
    """

    def __init__(
        self, path: Path, parts: dict[str, nn.Module | torch.optim.Optimizer], recipe: dict[str, float]
    ) -> None:
        self._path, self._parts, self._recipe = path, parts, recipe

    def restore(self) -> int:
        """Puts the parts back as they were saved; returns how many steps were done, 0 where nothing was saved.

        Raises:
            ValueError: the checkpoint is of another recipe.
        """
        if not self._path.exists():
            return 0
        state = torch.load(self._path, weights_only=True)
        for name, wanted in self._recipe.items():
            if state.get(name) != wanted:
                raise ValueError(f"{self._path} is of {state.get(name)} {name}; it cannot go on with {wanted}")
        for name, part in self._parts.items():
            part.load_state_dict(state[name])
        done: int = state["done"]
        return done

    def save(self, done: int) -> None:
        """After `done` steps; a stop amid it leaves the checkpoint before."""
        partial = Path(f"{self._path}.part")
        state = {name: part.state_dict() for name, part in self._parts.items()}
        torch.save({**state, **self._recipe, "done": done}, partial)
        os.replace(partial, self._path)


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
