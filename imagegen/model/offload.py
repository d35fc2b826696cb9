"""Weights that wait on the CPU. The rest of the model does not know: ids and states go in and come out on the GPU."""

from __future__ import annotations

from typing import Any

import torch

from imagegen.compat.torch import inner_tensors

#: Where a tensor begins in a block: enough for every type and for CUDA's copies.
_ALIGNMENT = 512


class CpuEmbedding(torch.nn.Module):
    """An embedding table that stays where it is, whatever device the model around it is moved to.

    A prompt reads 512 of its 151,936 rows: those go to the GPU, and not 1.2 GB.
    """

    def __init__(self, weight: torch.Tensor, device: str) -> None:
        super().__init__()
        self._table = [weight]  # in a list, where neither a state dict nor a move finds it
        #: A model's device and type are those of its first parameter.
        self.first = torch.nn.Parameter(weight.new_empty(0, device=device), requires_grad=False)

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        """The rows (batch, tokens, hidden) of `ids` (batch, tokens), all where the table is; in any thread."""
        return torch.nn.functional.embedding(ids, self._table[0])

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """The same of ids on another device, and on that; the host waits for both copies."""
        return self.rows(ids.to(self._table[0].device)).to(ids.device)


class PinnedMemory:
    """Copies tensors into pinned memory, from which a GPU copies without waiting.

    torch rounds each pinned block up to a power of two, 12.2 GiB for the 9.7 of klein-9b's text encoder: tensors share
    blocks of `BLOCK` bytes.
    """

    BLOCK = 2**30

    def __init__(self) -> None:
        self._free = torch.empty(0, dtype=torch.uint8)

    def copy(self, tensor: torch.Tensor) -> torch.Tensor:
        """A pinned copy of a tensor of the CPU; of a quantised one, of each tensor that it is made of."""
        if (made_of := inner_tensors(tensor)) is not None:
            inner, rebuild = made_of
            return rebuild({name: self.copy(one) for name, one in inner.items()})
        size = -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
        if size > self._free.nbytes:
            self._free = torch.empty(max(size, self.BLOCK), dtype=torch.uint8, pin_memory=True)
        taken, self._free = self._free[: tensor.nbytes], self._free[size:]
        return taken.view(tensor.dtype).view(tensor.shape).copy_(tensor)


class OnloadHook:
    """Brings a module's weights to a device when it is called, and lets go of them there afterwards, also where it
    failed. What lies on the CPU is kept, pinned, so that nothing is copied back.

    Args:
        stays: the weights stay for the calls that follow, until `leave`.
    """

    def __init__(self, module: torch.nn.Module, device: str, stays: bool = False) -> None:
        self._device, self._here = torch.device(device), False
        self._home: list[tuple[torch.nn.Module, str, torch.nn.Parameter]] = []
        pinned = PinnedMemory()
        for child in module.modules():
            for name, parameter in list(child.named_parameters(recurse=False)):
                home = self._pinned(parameter, pinned)
                child.register_parameter(name, home)  # each goes as its copy comes, so that nothing is held twice
                self._home.append((child, name, home))
        module.register_forward_pre_hook(self._come, with_kwargs=True)
        if not stays:
            module.register_forward_hook(lambda *_: self.leave(), always_call=True)

    def _pinned(self, parameter: torch.nn.Parameter, pinned: PinnedMemory) -> torch.nn.Parameter:
        # One of 4 bits is more than its data: the scales are beside it, and move with it.
        if self._device.type != "cuda" or hasattr(parameter, "quant_state"):
            return parameter
        return torch.nn.Parameter(pinned.copy(parameter.data), requires_grad=False)

    def _come(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not self._here:
            self._here = True
            for child, name, home in self._home:
                weight = home.to(self._device, non_blocking=True)
                if not isinstance(weight, torch.nn.Parameter):
                    weight = torch.nn.Parameter(weight, requires_grad=False)
                child.register_parameter(name, weight)
        moved = {n: v.to(self._device) if isinstance(v, torch.Tensor) else v for n, v in kwargs.items()}
        return tuple(v.to(self._device) if isinstance(v, torch.Tensor) else v for v in args), moved

    def leave(self) -> None:
        """Lets go of the weights on the device, when what was asked of it is done; does nothing where none are."""
        if not self._here:
            return
        self._here = False
        for child, name, home in self._home:
            child.register_parameter(name, home)
