"""What an exception says of the GPU: out of memory, after which it goes on, or dead, after which only a new process
helps. torch, Triton, cuBLAS, cuDNN and CUDA itself each have a way of their own to say so."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Literal, TypeVar

from imagegen.errors import GpuFailed, ImageGenError, OutOfMemory

T = TypeVar("T")

#: How they say that memory is missing, in lower case. CUDA: cudaErrorMemoryAllocation, which leaves the context alive;
#: Triton: `Triton Error [CUDA]: out of memory`; cuBLAS: its workspace; cuDNN 9: no plan whose workspace fits.
_MEMORY = (
    "out of memory",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
    "no valid execution plans",
    "unable to find a valid cudnn algorithm",
)


def translate_gpu_errors(work: Callable[[], T], free: Callable[[], None]) -> T:
    """Runs `work` on the GPU. Whatever ends it, the next call finds the GPU as it was.

    Args:
        free: takes off the GPU what a call that was broken off has left there.

    Raises:
        OutOfMemory, GpuFailed: for the GPU's own errors.
    """
    import torch

    failure: ImageGenError
    try:
        with torch.no_grad():
            return work()
    except GpuFailed:  # whoever raised it knows more than the errors that it came from
        raise
    except BaseException as error:
        fault = find_gpu_fault(error)
        if fault == "dead":
            raise GpuFailed("the GPU failed; this worker must be replaced") from None
        if fault is None:
            free()
            raise
        failure = OutOfMemory("the image does not fit the GPU's memory; ask for a smaller size or fewer references")
    # Outside of the handler, whose exception holds the frames that hold the tensors.
    free()
    gc.collect()
    torch.cuda.empty_cache()
    try:
        raise failure
    finally:
        del failure  # it refers to this frame, and that to it: what the frames hold would wait for the collector


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
