"""A job's images, one after another, in the GPU's thread."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from imagegen.contract.events import Step
from imagegen.contract.requests import ResolvedRequest
from imagegen.engine.job import Job
from imagegen.model.images import GeneratedImage
from imagegen.model.inputs import Inputs, References, Tokens
from imagegen.model.pipeline import FluxPipeline
from imagegen.model.prompt import Prompt

#: Called with the seed and the image as each is done.
Finished = Callable[[int, Image.Image], None]


@dataclass(frozen=True)
class Prepared:
    """What a job needs on the GPU beside the model."""

    tokens: Tokens
    inputs: Inputs


class _Stop(BaseException):
    """Raised inside the denoising loop to leave it. Not an Exception: nothing on the way may swallow it."""


def preview_steps(steps: int, wanted: int) -> set[int]:
    """The steps of an image, from 1, at which `wanted` previews are spread evenly; the last step gives the image."""
    return {round((i + 1) * steps / (wanted + 1)) for i in range(wanted)} & set(range(1, steps))


def prepare(job: Job, plan: ResolvedRequest, pipeline: FluxPipeline) -> Prepared:
    """What needs no GPU; in another thread than the GPU's, which then never waits for it."""
    inputs = pipeline.preparation.inputs(
        References(job.references),
        width=plan.width,
        height=plan.height,
        num_inference_steps=plan.num_inference_steps,
        guidance_scale=plan.guidance_scale,
        negative_prompt=plan.negative_prompt,
        seeds=plan.seeds,
        strength=plan.strength,
    )
    return Prepared(pipeline.preparation.tokens(plan.prompt), inputs)


def generate_images(
    job: Job,
    plan: ResolvedRequest,
    prepared: Prepared,
    pipeline: FluxPipeline,
    queued: Callable[[int, GeneratedImage], None],
    moved: Callable[[], None],
) -> Prompt | None:
    """Generates all images of a job in the calling thread; returns its prompt, or None early once the job's `stop` is
    set. On a GPU it returns when all work is queued.

    Args:
        queued: called with the seed and the image as soon as the GPU has been asked for all of it.
        moved: called after each step.

    Raises:
        OutOfMemory, GpuFailed: of the GPU.
    """
    due = preview_steps(plan.num_inference_steps, job.previews)
    steps, done, begun = plan.num_inference_steps * len(plan.seeds), 0, time.monotonic()

    def on_step(step: int, total: int, preview: Callable[[], Image.Image]) -> None:
        nonlocal done
        moved()
        if job.stop.is_set():
            raise _Stop
        done += 1
        left = (time.monotonic() - begun) / done * (steps - done)
        job.notify(Step(done, steps, round(left, 2), preview() if step in due else None))

    try:
        prompt = pipeline.encode_prompt(prepared.tokens)
        job.prompt_cached = prompt.cached
        job.warnings += prompt.warnings
        for seed in plan.seeds:
            queued(seed, pipeline.generate_prepared(prepared.inputs, prompt, seed, on_step, job.loras.adapters))
    except _Stop:
        return None
    return prompt
