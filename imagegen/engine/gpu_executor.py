"""The thread that gives the GPU its work, the one that takes what is done, and whether the GPU still works."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import TypeVar

from imagegen.contract.events import Generated
from imagegen.contract.requests import ResolvedRequest
from imagegen.engine.fair_queue import FairQueue
from imagegen.engine.generation import Finished, Prepared, generate_images, prepare
from imagegen.engine.job import Job
from imagegen.errors import GpuFailed, OutOfMemory
from imagegen.memory import plan as memory_plan
from imagegen.model.images import GeneratedImage
from imagegen.model.pipeline import FluxPipeline
from imagegen.model.prompt import Prompt
from imagegen.telemetry.metrics import Metrics

T = TypeVar("T")

#: Weight of the newest job in the mean time of a job.
NEWEST_WEIGHT = 0.3
#: Between two looks at the GPU while a job waits for it.
_WATCH_SECONDS = 1.0


@dataclass
class _Turn:
    """A job on the GPU."""

    job: Job
    plan: ResolvedRequest
    pipeline: FluxPipeline
    finished: Finished
    queued: float = field(default_factory=time.monotonic)
    #: What is logged there is this job's.
    context: contextvars.Context = field(default_factory=contextvars.copy_context)
    future: Future[None] = field(default_factory=Future)
    images: list[Future[None]] = field(default_factory=list)
    begun: float = 0.0
    #: All of its work has been given to the GPU.
    over: bool = False
    prepared: Prepared = field(init=False)


class GpuExecutor:
    """One thread that gives the GPU its work, one job after another: of those that are ready each caller's in its turn.
    Another thread waits for the images, so that the next job's work is queued before the last one's is done.

    Args:
        stall_timeout: seconds without a step after which the GPU counts as dead.
        metrics: records how long the GPU worked.
    """

    def __init__(self, stall_timeout: float, metrics: Metrics) -> None:
        self._dead: str | None = None
        #: Mean seconds of a job on the GPU, the newest weighted most; 0 before the first.
        self.mean_gpu_seconds = 0.0
        self._stall_timeout, self._metrics = stall_timeout, metrics
        self._thread, self._taking = ThreadPoolExecutor(1, "gpu"), ThreadPoolExecutor(1, "images")
        self._ready: FairQueue[_Turn] = FairQueue()
        self._lock = threading.Lock()
        self._turns = 0
        self._moved: float | None = None
        self._free_since = 0.0

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Begins other work that needs the GPU, loading for example, behind the jobs that are here."""
        return self._thread.submit(work)

    async def run(self, job: Job, plan: ResolvedRequest, pipeline: FluxPipeline, finished: Finished) -> None:
        """Generates a job's images when its turn comes. Cancelled before that, it never begins.

        Args:
            finished: called with each image, in a thread, which it should not hold up.

        Raises:
            OutOfMemory: it did not fit; the GPU can be used on.
            GpuFailed: the GPU is dead, or was before.
        """
        turn = _Turn(job, plan, pipeline, finished)
        turn.prepared = await asyncio.to_thread(prepare, job, plan, pipeline)
        with self._lock:
            self._ready.put(job.caller, job.begun, turn, tuple(one.name for one in job.loras.used) or None)
        self._metrics.gpu_time.change(ready=1)
        self.submit(self._run_next)
        generated = asyncio.wrap_future(turn.future)
        try:
            late = False
            while not generated.done():
                # Where another job's failure killed the GPU, images that were done before it get a moment to be taken.
                if late or not turn.over:
                    self.check()
                late = self.dead is not None
                await asyncio.wait({generated}, timeout=_WATCH_SECONDS)
            generated.result()
        finally:
            generated.cancel()

    @property
    def dead(self) -> str | None:
        """Why nothing can be generated any more, and this process must be replaced; None while all is well.

        A GPU that has made no step for too long counts as dead from then on, also when nobody waits for it any more.
        """
        moved = self._moved
        if self._dead is None and moved is not None and time.monotonic() - moved > self._stall_timeout:
            self._dead = f"the GPU made no step for {self._stall_timeout:g} s; this worker must be replaced"
        return self._dead

    def check(self) -> None:
        """Raises GpuFailed where the GPU is dead."""
        if (dead := self.dead) is not None:
            raise GpuFailed(dead)

    def close(self, last: Callable[[], None] | None) -> None:
        """Ends the thread after the job that it is in.

        Args:
            last: done at the end, and waited for, unless the GPU dies before; None: nothing is waited for.
        """
        if last is not None:
            ending = self.submit(lambda: (self._taking.submit(lambda: None).result(), last()))
            while self.dead is None and not ending.done():
                wait({ending}, timeout=_WATCH_SECONDS)
        for thread in (self._thread, self._taking):
            thread.shutdown(wait=False, cancel_futures=True)

    def _run_next(self) -> None:
        """A job's turn, in the GPU's thread."""
        with self._lock:
            turn = self._ready.get()
        self._metrics.gpu_time.change(ready=-1)
        if turn.future.set_running_or_notify_cancel():
            turn.context.run(self._generate, turn)

    def _generate(self, turn: _Turn) -> None:
        job, prompt = turn.job, None
        failure: BaseException | None = None
        with self._lock:
            self._turns += 1
            turn.begun = self._moved = time.monotonic()
            self._metrics.gpu_time.change(busy=True)
        job.spent("queue", turn.begun - turn.queued)

        def queued(seed: int, image: GeneratedImage) -> None:
            turn.images.append(self._taking.submit(turn.context.copy().run, self._take, turn, seed, image))

        try:
            self.check()
            if not job.stop.is_set():  # else nobody waits for it any more
                prompt = generate_images(job, turn.plan, turn.prepared, turn.pipeline, queued, self._note_step)
                turn.over = True
        except OutOfMemory:
            size, references = (turn.plan.width, turn.plan.height), [reference.size for reference in job.references]
            failure = memory_plan.out_of_memory(turn.pipeline.config.plan, size, references, turn.pipeline.device)
        except BaseException as error:  # noqa: BLE001 - for whoever waits, as concurrent.futures has it
            failure = error
            self._note_failure(error)
        self._taking.submit(turn.context.copy().run, self._end, turn, prompt, failure)
        del failure  # it refers to this frame, and that to it: what its frames hold would wait for the collector

    def _take(self, turn: _Turn, seed: int, image: GeneratedImage) -> None:
        """Waits for an image, in the thread for that."""
        turn.job.spent("denoise", image.denoise, ago=image.decode)
        turn.job.spent("decode", image.decode)
        self._note_step()
        self._metrics.generated.inc()
        turn.finished(seed, image.image)

    def _end(self, turn: _Turn, prompt: Prompt | None, failure: BaseException | None) -> None:
        """Ends a job's turn after its images, in the thread that takes them."""
        job, now = turn.job, time.monotonic()
        try:
            for image in turn.images:
                image.result()
            if prompt is not None:
                job.spent("encode_prompt", prompt.seconds, ago=now - turn.begun - prompt.seconds)
        except BaseException as error:  # noqa: BLE001 - as above
            failure = failure or error
            self._note_failure(error)
        # Its work began when the last job's was done.
        busy, self._free_since = now - max(turn.begun, self._free_since), now
        if prompt is not None and failure is None:
            weight = NEWEST_WEIGHT if self.mean_gpu_seconds else 1
            self.mean_gpu_seconds += (busy - self.mean_gpu_seconds) * weight
        with self._lock:
            self._turns -= 1
            if self._turns == 0:
                self._moved = None
                self._metrics.gpu_time.change(busy=False)
        if job.prompt_cached is not None:
            self._metrics.prompts.labels(str(job.prompt_cached).lower()).inc()
        job.spend(busy, self._metrics)
        self._metrics.gpu_memory.set(turn.pipeline.gpu_memory() or 0)
        job.notify(Generated())
        if failure is None:
            turn.future.set_result(None)
        else:
            turn.future.set_exception(failure)

    def _note_failure(self, failure: BaseException) -> None:
        if isinstance(failure, GpuFailed) and self._dead is None:
            self._dead = failure.message

    def _note_step(self) -> None:
        self._moved = time.monotonic()
