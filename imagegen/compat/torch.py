"""The inside of torch (2.13): what torch.compile leaves in modules, raises, and assumes of sizes; products of 8-bit
integers, tensors that are made of others, and pinned memory.

Nothing of it has a public name. A version that changes it fails in tests/compat/test_torch.py. With another compiler
images would stay right, but a GPU whose compiler fails would answer no job, or each new size would be compiled again;
without the others quantised weights could not be multiplied, or offloaded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn


def errors_of_compilation() -> tuple[type[Exception], ...]:
    """What torch raises when something cannot be compiled: no compiler, an operation that it does not know, a limit."""
    from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

    return TorchDynamoException, FailOnRecompileLimitHit


def forget_compiled(module: nn.Module) -> None:
    """Takes back `compile` of a module and of those inside it: they run eagerly again."""
    for one in module.modules():
        one._compiled_call_impl = None


def treat_equal_sizes_as_different() -> None:
    """For the process: two sizes that are equal in one call may differ in the next, and are one graph nonetheless."""
    from torch.fx.experimental import _config as shapes

    shapes.use_duck_shape = False


def multiply_integers(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """The int32 product (rows, columns) of int8 matrices (rows, inner) and (inner, columns)."""
    import torch

    return torch._int_mm(one, other)


def inner_tensors(
    tensor: torch.Tensor,
) -> tuple[dict[str, torch.Tensor], Callable[[dict[str, torch.Tensor]], torch.Tensor]] | None:
    """The tensors that a quantised one is made of, by name, and what makes such a tensor of others; None of a plain
    tensor."""
    from torch.utils._python_dispatch import is_traceable_wrapper_subclass

    if not is_traceable_wrapper_subclass(tensor):
        return None
    names, context = tensor.__tensor_flatten__()

    def rebuild(inner: dict[str, torch.Tensor]) -> torch.Tensor:
        made: torch.Tensor = type(tensor).__tensor_unflatten__(inner, context, tensor.size(), tensor.stride())
        return made

    return {name: getattr(tensor, name) for name in names}, rebuild


def empty_host_cache() -> None:
    """Gives pinned memory that is not in use back to the system. torch has a public name for it since 2.12."""
    import torch

    public = getattr(torch.accelerator, "empty_host_cache", None)
    (public or torch._C._host_emptyCache)()


def free_workspaces() -> None:
    """Gives back what cuBLAS keeps for its products, 32 MiB a stream on an H100, that of recorded work included, which
    cannot be done again then. A build for CPUs has none."""
    import torch

    if (clear := getattr(torch._C, "_cuda_clearCublasWorkspaces", None)) is not None:
        clear()
