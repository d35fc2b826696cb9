"""The one thread that uses the GPU, and whether the GPU still works."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from typing import TypeVar

from PIL import Image

from imagegen.contract.events import Generated
from imagegen.contract.requests import ResolvedRequest
from imagegen.engine.fair_queue import FairQueue
from imagegen.engine.generation import Finished, generate_images
from imagegen.engine.job import Job
from imagegen.errors import GpuFailed, OutOfMemory
from imagegen.memory import plan as memory_plan
from imagegen.model.pipeline import FluxPipeline
from imagegen.telemetry.metrics import Metrics

T = TypeVar("T")

#: Weight of the newest job in the mean time of a job.
NEWEST_WEIGHT = 0.3
#: Between two looks at the GPU while a job waits for it.
_WATCH_SECONDS = 1.0


class GpuExecutor:
    """One thread that uses the GPU, for one job after another: of the jobs that are ready each caller's in its turn.

    Args:
        stall_timeout: seconds without a step after which the GPU counts as dead.
        metrics: records how long the GPU worked.
    """

    def __init__(self, stall_timeout: float, metrics: Metrics) -> None:
        self._dead: str | None = None
        #: Mean seconds of a job on the GPU, the newest weighted most; 0 before the first.
        self.mean_gpu_seconds = 0.0
        self._stall_timeout, self._metrics = stall_timeout, metrics
        self._thread = ThreadPoolExecutor(1, "gpu")
        self._ready: FairQueue[tuple[Future[None], Callable[[], None]]] = FairQueue()
        self._lock = threading.Lock()
        self._moved: float | None = None

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Begins other work that needs the GPU, loading for example, behind the jobs that are here."""
        return self._thread.submit(work)

    async def run(self, job: Job, plan: ResolvedRequest, pipeline: FluxPipeline, finished: Finished) -> None:
        """Generates a job's images when its turn comes. Cancelled before that, it never begins.

        Raises:
            OutOfMemory: it did not fit; the GPU can be used on.
            GpuFailed: the GPU is dead, or was before.
        """
        queued = time.monotonic()
        context = contextvars.copy_context()  # what is logged there is this job's
        work = partial(context.run, self._generate, job, plan, pipeline, finished, queued)
        future: Future[None] = Future()
        with self._lock:
            self._ready.put(job.caller, job.begun, (future, work), tuple(one.name for one in job.loras.used))
        self._metrics.gpu_time.change(ready=1)
        self.submit(self._run_next)
        generated = asyncio.wrap_future(future)
        try:
            while not generated.done():
                self.check()
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
            ending = self.submit(last)
            while self.dead is None and not ending.done():
                wait({ending}, timeout=_WATCH_SECONDS)
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _run_next(self) -> None:
        with self._lock:
            future, work = self._ready.get()
        self._metrics.gpu_time.change(ready=-1)
        if not future.set_running_or_notify_cancel():
            return
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - for whoever waits, as concurrent.futures has it
            future.set_exception(error)
        else:
            future.set_result(None)

    def _generate(
        self, job: Job, plan: ResolvedRequest, pipeline: FluxPipeline, finished: Finished, queued: float
    ) -> None:
        if job.stop.is_set():
            return  # nobody waits for it any more
        self.check()
        begun = self._moved = time.monotonic()
        job.spent("queue", begun - queued)
        self._metrics.gpu_time.change(busy=True)

        def count_and_finish(seed: int, image: Image.Image) -> None:
            self._metrics.generated.inc()
            finished(seed, image)

        try:
            generate_images(job, plan, pipeline, count_and_finish, self._note_step)
            if not job.stop.is_set():
                weight = NEWEST_WEIGHT if self.mean_gpu_seconds else 1
                self.mean_gpu_seconds += (time.monotonic() - begun - self.mean_gpu_seconds) * weight
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
            self._metrics.gpu_time.change(busy=False)
            job.spend(time.monotonic() - begun, self._metrics)
            self._metrics.gpu_memory.set(pipeline.gpu_memory() or 0)
            job.notify(Generated())

    def _note_step(self) -> None:
        self._moved = time.monotonic()
