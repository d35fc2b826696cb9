"""A job in the GPU's lane: its pictures, one after another, each step told, and left at once when nobody waits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial

from PIL import Image

from imagegen.events import Event, Step
from imagegen.jobs import Plan, Request
from imagegen.server.flux_pipeline import FluxPipeline
from imagegen.server.schemas import Timings


class _Stop(BaseException):
    """Raised inside the denoising loop to leave it. Not an Exception: nothing on the way may swallow it."""


@dataclass
class Job:
    """One job on its way. Any thread may call `notify`; whoever sets `stop` no longer waits for the job."""

    request: Request
    notify: Callable[[Event], None]
    previews: int
    stop: threading.Event = field(default_factory=threading.Event)
    timings: Timings = field(default_factory=Timings)
    references: list[Image.Image] = field(default_factory=list)
    pictures: list[Image.Image] = field(default_factory=list)
    files: list[Future[bytes]] = field(default_factory=list)


def preview_steps(steps: int, wanted: int) -> set[int]:
    """The steps of a picture, from 1, at which `wanted` previews are spread evenly; the last one is the picture."""
    return {round((i + 1) * steps / (wanted + 1)) for i in range(wanted)} & set(range(1, steps))


def draw(job: Job, plan: Plan, pipeline: FluxPipeline, finished: Callable[[int, Image.Image], None]) -> None:
    """Draws all pictures of a job in the calling thread; returns early once the job's `stop` is set.

    Args:
        finished: called with the seed and the picture as each is done.

    Raises:
        OutOfMemory, GpuFailed: of the card.
    """
    due = preview_steps(plan.num_inference_steps, job.previews)
    total, done, begun = plan.num_inference_steps * len(plan.seeds), 0, time.monotonic()

    def on_step(step: int, steps: int, preview: Callable[[], Image.Image]) -> None:
        nonlocal done
        if job.stop.is_set():
            raise _Stop
        done += 1
        left = (time.monotonic() - begun) / done * (total - done)
        job.notify(Step(done, total, round(left, 2), preview() if step in due else None))

    try:
        prompt = pipeline.encode_prompt(plan.prompt)
        job.timings.encode_prompt = prompt.seconds
        one = partial(pipeline.edit, prompt, job.references) if job.references else partial(pipeline.generate, prompt)
        for seed in plan.seeds:
            drawn = one(
                width=plan.width,
                height=plan.height,
                num_inference_steps=plan.num_inference_steps,
                guidance_scale=plan.guidance_scale,
                seed=seed,
                on_step=on_step,
            )
            job.timings.denoise += drawn.denoise
            job.timings.decode += drawn.decode
            job.pictures.append(drawn.image)
            finished(seed, drawn.image)
    except _Stop:
        return
