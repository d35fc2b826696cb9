"""What makes an image faster or slower, each switched by itself: kernels for attention, compilation, scales."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal
from unittest import mock

from imagegen.model import acceleration, assembly, prompt, quantization
from imagegen.model.acceleration import Attention, is_installed

#: The layers with the longest rows (16,384 in klein-9b), for which fp8 with a scale a row is slow (pytorch 153809).
_LONG_ROWS = r"single_transformer_blocks\.\d+\.attn\.to_out"


@dataclass(frozen=True)
class Lever:
    """A way to run that is compared with the usual one.

    Args:
        config: fields of FluxConfig.
        inside: what is open while the pipeline is loaded and used.
        references: how many an image has, one measurement for each.
    """

    name: str
    precision: Literal["bf16", "fp8"]
    config: dict[str, Any] = field(default_factory=dict)
    inside: Callable[[], AbstractContextManager[None]] = nullcontext
    references: tuple[int, ...] = (0,)


def levers(compiled: bool, most: int) -> list[Lever]:
    """All of them, in the order of their worth; `most`: references that an image may have."""
    usual: dict[str, Any] = {"compile": compiled}
    kernels: list[Attention] = ["native", "cudnn"]
    if is_installed("flash_attn_interface"):
        kernels.append("flash3")
    return [
        Lever("not compiled", "bf16", references=(0, 1, most)),
        Lever("not compiled", "fp8", references=(0, 1, most)),
        *(Lever(f"attention by {kernel}", "bf16", {**usual, "attention": kernel}) for kernel in kernels),
        Lever("a scale for each whole weight of the layers with the longest rows", "fp8", usual, _one_scale),
        Lever("the VAE with torch's own norms", "bf16", usual, _own_norms, (0, 1)),
        Lever("the text encoder not recorded", "bf16", usual, _not_recorded),
        Lever("compiled with max-autotune", "bf16", usual, _autotuned),
    ]


@contextmanager
def _one_scale() -> Iterator[None]:
    original = quantization.recipe

    def recipe(part: str, precision: Literal["fp8", "int8"]) -> Any:
        return original(part, precision, _LONG_ROWS if part == "transformer" and precision == "fp8" else None)

    with mock.patch.object(quantization, "recipe", recipe):
        yield


@contextmanager
def _own_norms() -> Iterator[None]:
    with mock.patch.object(assembly, "speed_up_vae"):
        yield


@contextmanager
def _not_recorded() -> Iterator[None]:
    with mock.patch.object(prompt, "Graph", side_effect=prompt.NotRecorded("to measure what it is worth")):
        yield


@contextmanager
def _autotuned() -> Iterator[None]:
    def compile_blocks(pipe: Any) -> None:
        pipe.transformer.compile_repeated_blocks(fullgraph=True, dynamic=True, mode="max-autotune-no-cudagraphs")

    with mock.patch.object(acceleration, "compile_blocks", compile_blocks):
        yield
