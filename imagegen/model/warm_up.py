"""The first images, generated for nobody before the worker says that it is ready."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from PIL import Image

from imagegen.errors import OutOfMemory
from imagegen.memory.plan import REFERENCE
from imagegen.model.inputs import References
from imagegen.model.pipeline import FluxPipeline
from imagegen.models import Size

if TYPE_CHECKING:
    from imagegen.model.adapters import Scaled

log = logging.getLogger(__name__)


def warm_up(pipeline: FluxPipeline) -> None:
    """Generates at the usual sizes, without and with a reference, so that no job waits for what only a first image
    needs: kernels to be loaded and chosen, blocks to be compiled, memory to be taken from the GPU. Then the largest job
    that the plan promises: where it does not fit, less is promised from then on."""
    plan = pipeline.config.plan
    if pipeline.compiled and pipeline.config.lora_rank:
        from imagegen.model.adapters import Adapter, Scaled

        nothing = [Scaled(Adapter(0, {}), 0.0)]  # it changes no image, and compiles what a job with an adapter runs
        size, reference = _sizes(pipeline)
        for count in (0, 1) if pipeline.caches_keys_and_values(size, [reference]) else (0,):
            _fits(pipeline, count, nothing)
    if plan is None or plan.gpu is None:
        for count in (0, 1):
            _fits(pipeline, count)
        return
    cached = [n for n in range(1, plan.references + 1) if plan.kv_fits(plan.size, [REFERENCE] * n)]
    counts = sorted({0, min(1, plan.references), *cached[-1:], plan.references})
    for tried, count in enumerate(counts):
        if _fits(pipeline, count):
            continue
        low = counts[tried - 1] if tried else -1
        fitting = next((n for n in range(count - 1, low, -1) if _fits(pipeline, n)), low)
        pipeline.use_plan((pipeline.config.plan or plan).lowered(fitting))
        return


def _sizes(pipeline: FluxPipeline) -> tuple[Size, Size]:
    """Of the image and of each reference that it is warmed up with."""
    side = pipeline.config.spec.size
    return (side, side), (min(side, REFERENCE[0]),) * 2


def _fits(pipeline: FluxPipeline, references: int, loras: Sequence[Scaled] = ()) -> bool:
    """Generates an image of the default size with so many references; whether that fits."""
    spec = pipeline.config.spec
    size, reference = _sizes(pipeline)
    images = References([Image.new("RGB", reference)] * references)
    try:
        # Two steps: the second differs from the first where keys and values are cached.
        pipeline.edit(
            "",
            images,
            width=spec.size,
            height=spec.size,
            num_inference_steps=2,
            guidance_scale=spec.guidance_scale,
            seed=0,
            loras=loras,
        ).image.close()
    except OutOfMemory:
        if pipeline.caches_keys_and_values(size, [reference] * references):
            log.warning("%d references with cached keys and values do not fit the GPU's memory", references)
            pipeline.config = replace(pipeline.config, kv=False)
            return _fits(pipeline, references, loras)
        log.warning("%dx%d with %d references does not fit the GPU's memory", *size, references)
        return False
    return True
