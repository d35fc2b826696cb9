"""Whether the GPU path works at all: micro, with its own weights, on the device against the CPU."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.measure import Device
from imagegen.errors import OutOfMemory
from imagegen.model.config import FluxConfig
from imagegen.model.group_norm import SpreadGroupNorm
from imagegen.model.pipeline import FluxPipeline
from imagegen.models import MICRO_PATH, get_model

_HOW: dict[str, Any] = {"width": 128, "height": 128, "num_inference_steps": 4, "guidance_scale": 1.0, "seed": 7}
_PROMPT = "a red circle on a blue background"
#: Mean difference of a byte between images of the same noise in bf16 and in float32, that are the same to the eye.
_SAME = 12.0


class _Stop(BaseException):
    pass


def smoke(device: Device) -> Iterator[tuple[str, bool, str]]:
    """Each check: its name, whether it is met, and what was seen. One that fails does not end the others."""
    import torch

    spec = get_model("micro")
    on_cpu = FluxPipeline(FluxConfig(spec, MICRO_PATH, device="cpu"))
    there = FluxPipeline(FluxConfig(spec, MICRO_PATH, device=device.name))
    # The noise is another on a GPU: the CPU's image is of the GPU's own, so what is compared is what they mean.
    with on_cpu, there:
        wanted = on_cpu.generate(_PROMPT, **_HOW).image

        def same(image: Image.Image, other: Image.Image) -> str:
            means = [np.asarray(one, float)[:8].mean((0, 1)) for one in (image, other)]
            difference = float(np.abs(means[0] - means[1]).mean())
            if difference > _SAME:
                raise ValueError(f"the background is {means[0].round()} and not {means[1].round()}")
            return f"the background differs by {difference:.1f} of 255"

        def stop(step: int, total: int, preview: object) -> None:
            raise _Stop

        def cancel() -> str:
            try:
                there.generate(_PROMPT, on_step=stop, **_HOW)
            except _Stop:
                return same(there.generate(_PROMPT, **_HOW).image, wanted)
            raise ValueError("nothing stopped it")

        def lack() -> str:
            if not device.is_cuda:
                return "a CPU has no limit"
            try:
                there.translating_gpu_errors(lambda: torch.empty(2**45, dtype=torch.uint8, device=device.name))
            except OutOfMemory:
                return same(there.generate(_PROMPT, **_HOW).image, wanted)
            raise ValueError("32 TiB were found")

        checks: dict[str, Callable[[], str]] = {
            "an image": lambda: same(there.generate(_PROMPT, **_HOW).image, wanted),
            "an edit": lambda: str(there.edit("make the background green", [wanted], **_HOW).image.size),
            "a stop in a step": cancel,
            "out of memory": lack,
            "the VAE's norms": lambda: _norms(device),
        }
        for what, check in checks.items():
            yield _result(what, check)
    gc.collect()

    def freed() -> str:
        held = torch.cuda.memory_allocated(device.name) if device.is_cuda else 0
        if held > 10**7:
            raise ValueError(f"{held / 1e6:.0f} MB are left")
        return f"{held / 1e6:.1f} MB are left"

    yield _result("unloading", freed)


def _norms(device: Device) -> str:
    """At the worst of what is expected, a mean of a hundred deviations."""
    import torch

    norm = SpreadGroupNorm(32, 128, eps=1e-6, device=device.name)
    values = 100 + torch.randn(1, 128, 256, 256, device=device.name)
    with torch.no_grad():
        off = (norm(values) - torch.nn.GroupNorm.forward(norm, values)).abs().max().item()
    if off > 0.05:
        raise ValueError(f"{off:.3f} deviations off torch's own")
    return f"{off:.4f} deviations off torch's own"


def _result(what: str, check: Callable[[], str]) -> tuple[str, bool, str]:
    try:
        return what, True, check()
    except Exception as error:  # noqa: BLE001 - what fails is the result
        return what, False, f"{type(error).__name__}: {str(error)[:300]}"
