"""A job's images, one after another, in the GPU's thread."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from PIL import Image

from imagegen.contract.events import Step
from imagegen.contract.requests import ResolvedRequest
from imagegen.engine.job import Job
from imagegen.model.caches import References
from imagegen.model.images import GeneratedImage
from imagegen.model.pipeline import FluxPipeline

#: Called with the seed and the image as each is done.
Finished = Callable[[int, Image.Image], None]


class _Stop(BaseException):
    """Raised inside the denoising loop to leave it. Not an Exception: nothing on the way may swallow it."""


def preview_steps(steps: int, wanted: int) -> set[int]:
    """The steps of an image, from 1, at which `wanted` previews are spread evenly; the last step gives the image."""
    return {round((i + 1) * steps / (wanted + 1)) for i in range(wanted)} & set(range(1, steps))


def generate_images(
    job: Job, plan: ResolvedRequest, pipeline: FluxPipeline, finished: Finished, moved: Callable[[], None]
) -> None:
    """Generates all images of a job in the calling thread; returns early once the job's `stop` is set.

    Args:
        finished: called with the seed and the image as each is done.
        moved: called after each step.

    Raises:
        OutOfMemory, GpuFailed: of the GPU.
    """
    due = preview_steps(plan.num_inference_steps, job.previews)
    total, done, begun = plan.num_inference_steps * len(plan.seeds), 0, time.monotonic()

    queued: list[tuple[int, GeneratedImage]] = []

    def deliver() -> None:
        """Waits for the image that was queued last. Called when the next one's first step is queued behind it, so that
        the GPU goes from one to the other while this thread waits."""
        while queued:
            seed, generated = queued.pop()
            job.spent("denoise", generated.denoise, ago=generated.decode)
            job.spent("decode", generated.decode)
            moved()
            finished(seed, generated.image)

    def on_step(step: int, steps: int, preview: Callable[[], Image.Image]) -> None:
        nonlocal done
        deliver()
        moved()
        if job.stop.is_set():
            raise _Stop
        done += 1
        left = (time.monotonic() - begun) / done * (total - done)
        job.notify(Step(done, total, round(left, 2), preview() if step in due else None))

    try:
        prompt = pipeline.encode_prompt(plan.prompt)
        job.prompt_cached = prompt.cached
        job.warnings += prompt.warnings
        references = References(job.references)
        one = partial(pipeline.edit, prompt, references) if job.references else partial(pipeline.generate, prompt)
        for seed in plan.seeds:
            generated = one(
                width=plan.width,
                height=plan.height,
                num_inference_steps=plan.num_inference_steps,
                guidance_scale=plan.guidance_scale,
                negative_prompt=plan.negative_prompt,
                seed=seed,
                on_step=on_step,
            )
            queued.append((seed, generated))
        deliver()
        job.spent("encode_prompt", prompt.seconds, ago=time.monotonic() - begun - prompt.seconds)
    except _Stop:
        return
