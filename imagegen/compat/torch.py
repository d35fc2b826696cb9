"""The inside of torch (2.13): what torch.compile leaves in modules, raises, and assumes of sizes.

Nothing of it has a public name. A version that changes it fails in tests/compat/test_torch.py: images would stay right,
but a GPU whose compiler fails would answer no job, or each new size would be compiled again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
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
