"""Tensors on their way to a GPU and back, without a wait of the host or of the GPU's queue."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def pin(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor in main memory from which `device` copies without a wait; the same where that is a CPU."""
    return tensor.pin_memory() if device.type == "cuda" else tensor


def send(tensors: Sequence[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    """Pinned tensors on a device. A GPU copies them beside the work that it is doing; what is queued from now on waits
    for them there, and nothing waits here."""
    if device.type != "cuda":
        return list(tensors)
    import torch

    stream, queue = _copies(device), torch.cuda.current_stream(device)
    with torch.cuda.stream(stream):
        sent = [tensor.to(device, non_blocking=True) for tensor in tensors]
    queue.wait_stream(stream)
    for tensor in sent:
        tensor.record_stream(
            queue
        )  # its memory is the other stream's, which must not reuse it before the queue is done
    return sent


@cache
def _copies(device: torch.device) -> Any:
    """The stream for copies to a GPU."""
    import torch

    return torch.cuda.Stream(device)


def to_host(tensor: torch.Tensor) -> torch.Tensor:
    """A copy in main memory. Of a GPU's tensor it is complete only when the GPU's queue has come to it: later work of
    the GPU can use it at once, and the host after a `Mark`."""
    if tensor.device.type != "cuda":
        return tensor.to("cpu", copy=True)
    import torch

    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
