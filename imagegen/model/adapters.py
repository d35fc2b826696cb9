"""LoRA on a loaded transformer: each Linear layer gets a pair of buffers beside its weight, into which the adapters of
a job are copied. Nothing is merged, so the weights stay as they are, in bf16, fp8, int8 and nf4 alike.

The buffers are there before the blocks are compiled and keep their shape, so another adapter compiles nothing; a job
without adapters runs the layer alone, in a graph of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional

from imagegen.lora.header import Broken, Header, Tensor
from imagegen.lora.layers import layers
from imagegen.models import ModelSpec

_TYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F64": torch.float64,
    "I64": torch.int64,
    "I32": torch.int32,
}


class Matrices(NamedTuple):
    """What an adapter adds to a layer: `(x @ down.T) @ up` with `down` (rank, in) and `up` (rank, out)."""

    down: torch.Tensor
    up: torch.Tensor


@dataclass(frozen=True, eq=False)
class Adapter:
    """An adapter in main memory, in the type in which the transformer computes."""

    rank: int
    layers: dict[str, Matrices]

    @property
    def bytes(self) -> int:
        """Main memory that it takes; matrices that several layers share count once."""
        parts = {id(part): part.nbytes for pair in self.layers.values() for part in pair}
        return sum(parts.values())


class Scaled(NamedTuple):
    """An adapter of a job, and how much of it."""

    adapter: Adapter
    scale: float


def read_adapter(file: Path, header: Header, dtype: torch.dtype) -> Adapter:
    """Reads the tensors of a file whose header was checked.

    Raises:
        Broken: a value is not finite, or an alpha is none.
        OSError: the file cannot be read.
    """
    found: dict[str, Matrices] = {}
    with file.open("rb") as stream:

        def tensor(stored: Tensor) -> torch.Tensor:
            stream.seek(stored.begin)
            data = bytearray(stream.read(stored.end - stored.begin))
            if len(data) != stored.end - stored.begin:
                raise Broken("ends within a tensor")
            return torch.frombuffer(data, dtype=_TYPES[stored.dtype]).reshape(stored.shape).float()

        for module in header.modules:
            factor = module.factor if module.alpha is None else float(tensor(module.alpha)) / module.rank
            down = tensor(module.down).to(dtype)
            up = (tensor(module.up).t() * factor).to(dtype)
            if not (torch.isfinite(down).all() and torch.isfinite(up).all()):
                raise Broken(f"{module.name} holds values that are not finite")
            for target in module.targets:
                columns = up.chunk(target.of, dim=1)
                own = torch.cat([columns[part] for part in target.parts], dim=1) if target.of > 1 else up
                found[target.layer] = Matrices(down, own.contiguous())
    return Adapter(header.rank, found)


class _State:
    """Whether the layers add their buffers now, and the scale of each rank of them."""

    def __init__(self, scales: torch.Tensor) -> None:
        self.active, self.scales = False, scales


class LoraLinear(nn.Module):
    """A Linear layer, and beside it the buffers of the adapters that are active.

    Args:
        base: the layer, of any precision; it stays as it is.
        state: of all layers of the transformer.
        rank: of the buffers.
    """

    def __init__(self, base: nn.Module, shape: tuple[int, int], state: _State, rank: int) -> None:
        super().__init__()
        rows, columns = shape
        self.base, self._state = base, state
        # Not registered: they stay on the GPU where the layer's weight is offloaded.
        self.down, self.up = (state.scales.new_zeros(rank, width) for width in (columns, rows))

    @property
    def weight(self) -> Any:
        """The layer's own."""
        return self.base.weight

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """(..., in) to (..., out)."""
        out: torch.Tensor = self.base(states)
        if self._state.active:
            inner = functional.linear(states.flatten(0, -2), self.down) * self._state.scales
            out.flatten(0, -2).addmm_(inner, self.up)  # in place: a second output would be the largest tensor of all
        return out


class LoraLayers:
    """The layers of a transformer with room for adapters of a total rank.

    Args:
        transformer: of diffusers, loaded; its Linear layers are wrapped.
        rank: ranks of all adapters of a job together.
        device, dtype: where and in which type it computes.
    """

    def __init__(
        self, transformer: nn.Module, spec: ModelSpec, rank: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.rank, self.dtype = rank, dtype
        self._state = _State(torch.zeros(rank, device=device, dtype=dtype))
        self._layers: dict[str, LoraLinear] = {}
        for name, shape in layers(spec).items():
            self._layers[name] = LoraLinear(transformer.get_submodule(name), shape, self._state, rank)
            transformer.set_submodule(name, self._layers[name])
        #: The adapters that the buffers hold, in their order; they stay there until others come.
        self._held: list[Adapter] = []

    @property
    def bytes(self) -> int:
        """Memory of the buffers."""
        buffers = [self._state.scales, *(part for one in self._layers.values() for part in (one.down, one.up))]
        return sum(buffer.nbytes for buffer in buffers)

    @contextmanager
    def applied(self, adapters: Sequence[Scaled]) -> Iterator[None]:
        """Inside, the transformer is as the adapters change it; after it, whatever happened, as it was loaded.

        Raises:
            ValueError: their ranks are together more than the buffers have.
        """
        if not adapters:
            yield
            return
        self._hold([one.adapter for one in adapters])
        scales = [one.scale for one in adapters for _ in range(one.adapter.rank)]
        scales += [0.0] * (self.rank - len(scales))
        self._state.scales.copy_(torch.tensor(scales), non_blocking=True)  # the host waits for no job before this one
        self._state.active = True
        try:
            yield
        finally:
            self._state.active = False

    def _hold(self, adapters: list[Adapter]) -> None:
        """Copies adapters into the buffers, one below the other, unless they are there."""
        if sum(one.rank for one in adapters) > self.rank:
            raise ValueError(f"the adapters' ranks are together over {self.rank}")
        if len(adapters) == len(self._held) and all(a is b for a, b in zip(adapters, self._held, strict=True)):
            return
        self._held = []  # a copy that fails leaves nothing that would be taken for whole
        for name, layer in self._layers.items():
            at = 0
            for adapter in adapters:
                pair = adapter.layers.get(name)
                rank = pair.down.shape[0] if pair is not None else 0
                if pair is not None:
                    layer.down[at : at + rank].copy_(pair.down, non_blocking=True)
                    layer.up[at : at + rank].copy_(pair.up, non_blocking=True)
                layer.up[at + rank : at + adapter.rank].zero_()
                layer.down[at + rank : at + adapter.rank].zero_()
                at += adapter.rank
            layer.down[at:].zero_()
            layer.up[at:].zero_()
        self._held = adapters
