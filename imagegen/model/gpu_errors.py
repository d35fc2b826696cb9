"""What an exception says of the GPU: out of memory, after which it goes on, or dead, after which only a new process
helps. torch, Triton, cuBLAS, cuDNN and CUDA itself each have a way of their own to say so."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

#: How they say that memory is missing, in lower case. CUDA: cudaErrorMemoryAllocation, which leaves the context alive;
#: Triton: `Triton Error [CUDA]: out of memory`; cuBLAS: its workspace; cuDNN 9: no plan whose workspace could be had.
_MEMORY = (
    "out of memory",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
    "no valid execution plans",
    "unable to find a valid cudnn algorithm",
)


def find_gpu_fault(error: BaseException) -> Literal["memory", "dead"] | None:
    """What `error`, or what it came from, says of the GPU; None where it says nothing.

    torch.compile wraps what is raised while it compiles, so the whole chain of causes is looked at.
    """
    import torch

    for one in _chain(error):
        text = str(one).lower()
        if isinstance(one, torch.OutOfMemoryError):
            return "memory"
        if isinstance(one, RuntimeError) and any(said in text for said in _MEMORY):
            return "memory"
        if isinstance(one, torch.AcceleratorError):
            return "dead"
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An exception, and those that it was raised from, or while it was handled, each once."""
    found, left = set[int](), [error]
    while left:
        one = left.pop()
        if id(one) in found:
            continue
        found.add(id(one))
        yield one
        inner = getattr(one, "inner_exception", None)  # of torch._dynamo.exc.BackendCompilerFailed
        left += [other for other in (inner, one.__context__, one.__cause__) if isinstance(other, BaseException)]
