"""The GPU's lane: one thread that works off jobs in the order of their arrival, each step told, and that is left within
a step when nobody waits any more. A card that died, or that makes no step for too long, is the end of the lane."""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from PIL import Image

from imagegen.contract.events import Drawn, Step
from imagegen.contract.requests import ResolvedRequest
from imagegen.engine.job import Job
from imagegen.errors import GpuFailed, OutOfMemory
from imagegen.memory import plan as memory_plan
from imagegen.metrics import Metrics
from imagegen.model.caches import References
from imagegen.model.images import GeneratedImage
from imagegen.model.pipeline import FluxPipeline

T = TypeVar("T")

#: Weight of the newest job in the mean time of a job.
PACE_WEIGHT = 0.3
#: How often a job that waits looks whether the lane still moves.
_WATCH_SECONDS = 1.0


class _Stop(BaseException):
    """Raised inside the denoising loop to leave it. Not an Exception: nothing on the way may swallow it."""


#: Called with the seed and the picture as each is done.
Finished = Callable[[int, Image.Image], None]


class GpuExecutor:
    """One thread that owns the card.

    Args:
        stall_timeout: seconds without a step after which the card counts as dead.
        metrics: told how long the card worked.
    """

    def __init__(self, stall_timeout: float, metrics: Metrics) -> None:
        self._dead: str | None = None
        #: Seconds that a job takes lately; 0 before the first.
        self.mean_gpu_seconds = 0.0
        self._stall_timeout, self._metrics = stall_timeout, metrics
        self._thread = ThreadPoolExecutor(1, "gpu")
        self._moved: float | None = None

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Begins other work that needs the card, loading for example, behind the jobs that are here."""
        return self._thread.submit(work)

    async def run(self, job: Job, plan: ResolvedRequest, pipeline: FluxPipeline, finished: Finished) -> None:
        """Draws a job's pictures when its turn comes. Cancelled before that, it never begins.

        Raises:
            OutOfMemory: it did not fit; the lane goes on.
            GpuFailed: the card is dead, or was before.
        """
        queued = time.monotonic()
        context = contextvars.copy_context()  # what is logged there is this job's
        work = partial(context.run, self._draw, job, plan, pipeline, finished, queued)
        drawn = asyncio.wrap_future(self.submit(work))
        try:
            while not drawn.done():
                self.check()
                await asyncio.wait({drawn}, timeout=_WATCH_SECONDS)
            drawn.result()
        finally:
            drawn.cancel()

    @property
    def dead(self) -> str | None:
        """Why nothing can be drawn any more, and this process must be replaced; None while all is well.

        A card that has made no step for too long counts as dead from then on, also when nobody waits for it any more.
        """
        moved = self._moved
        if self._dead is None and moved is not None and time.monotonic() - moved > self._stall_timeout:
            self._dead = f"the card made no step for {self._stall_timeout:g} s; this worker must be replaced"
        return self._dead

    def check(self) -> None:
        """Raises GpuFailed where the card is dead."""
        if (dead := self.dead) is not None:
            raise GpuFailed(dead)

    def close(self, wait: bool) -> None:
        """Ends the thread after the job that it is in."""
        self._thread.shutdown(wait=wait and self.dead is None, cancel_futures=True)

    def _draw(self, job: Job, plan: ResolvedRequest, pipeline: FluxPipeline, finished: Finished, queued: float) -> None:
        if job.stop.is_set():
            return  # nobody waits for this any more
        self.check()
        begun = self._moved = time.monotonic()
        job.timings.queue += begun - queued
        try:
            draw(job, plan, pipeline, finished, self._note_step)
            if not job.stop.is_set():
                self.mean_gpu_seconds += (time.monotonic() - begun - self.mean_gpu_seconds) * (
                    PACE_WEIGHT if self.mean_gpu_seconds else 1
                )
        except OutOfMemory:
            sizes = [reference.size for reference in job.references]
            raise memory_plan.out_of_memory(
                pipeline.config.plan, (plan.width, plan.height), sizes, pipeline.device
            ) from None
        except GpuFailed as error:
            self._dead = error.message
            raise
        finally:
            self._moved = None
            if job.prompt_cached is not None:
                self._metrics.prompts.labels(str(job.prompt_cached).lower()).inc()
            self._metrics.gpu_busy.inc(time.monotonic() - begun)
            self._metrics.gpu_memory.set(pipeline.gpu_memory() or 0)
            job.notify(Drawn())

    def _note_step(self) -> None:
        self._moved = time.monotonic()


def preview_steps(steps: int, wanted: int) -> set[int]:
    """The steps of a picture, from 1, at which `wanted` previews are spread evenly; the last one is the picture."""
    return {round((i + 1) * steps / (wanted + 1)) for i in range(wanted)} & set(range(1, steps))


def draw(
    job: Job, plan: ResolvedRequest, pipeline: FluxPipeline, finished: Finished, moved: Callable[[], None]
) -> None:
    """Draws all pictures of a job in the calling thread; returns early once the job's `stop` is set.

    Args:
        finished: called with the seed and the picture as each is done.
        moved: called after each step.

    Raises:
        OutOfMemory, GpuFailed: of the card.
    """
    due = preview_steps(plan.num_inference_steps, job.previews)
    total, done, begun = plan.num_inference_steps * len(plan.seeds), 0, time.monotonic()

    queued: list[tuple[int, GeneratedImage]] = []

    def deliver() -> None:
        """Waits for the image that was queued last. Called when the next one's first step is queued behind it, so that
        the GPU goes from one to the other while this thread waits."""
        while queued:
            seed, generated = queued.pop()
            job.timings.denoise += generated.denoise
            job.timings.decode += generated.decode
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
                seed=seed,
                on_step=on_step,
            )
            queued.append((seed, generated))
        deliver()
        job.timings.encode_prompt = prompt.seconds
    except _Stop:
        return
