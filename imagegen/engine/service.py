"""The road that every job takes, whichever door it came by: check, references, the GPU's lane, delivery.

One thread owns the GPU and works off jobs in the order of their arrival. Everything that is not the GPU's runs beside
it in other threads: references are decoded while another job is drawn, and a picture is compressed while the next one
is. A job that is cancelled, or whose time runs out, leaves the lane after the step that it is in.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from types import ModuleType

from imagegen import __version__, logs
from imagegen.contract import requests
from imagegen.contract.events import Event, Listener, Queued, References
from imagegen.contract.schemas import (
    EditRequest,
    EditResponse,
    GenerateResponse,
    HealthResponse,
    QueueState,
    Timings,
)
from imagegen.contract.start_times import StartTimes
from imagegen.engine.gpu_executor import PACE_WEIGHT, GpuExecutor, Job
from imagegen.errors import (
    ConfigurationError,
    DeadlineExceeded,
    ImageGenError,
    InvalidInput,
    NotReady,
    Overloaded,
    internal,
)
from imagegen.inputs.decoding import Reference, is_url, load_reference
from imagegen.metrics import Metrics
from imagegen.model.loading import choose_model, load, read_ahead
from imagegen.model.pipeline import FluxPipeline
from imagegen.models import MODELS, ModelSpec
from imagegen.outputs import delivery
from imagegen.outputs.object_store import ObjectStore
from imagegen.outputs.signing import Signer, load_signer
from imagegen.settings import Settings

log = logging.getLogger(__name__)

#: Threads for pictures' bytes; Pillow lets go of the interpreter while it decodes and compresses.
_CPU_THREADS = 4
#: A failed load is not tried again sooner: until then each job is answered with its error at once.
_RETRY_SECONDS = 30.0


class Service:
    """A model and the road to it. Made without loading anything; `start` loads, `close` gives all back.

    Args:
        settings: of the process.
        progress: show bars for loading and steps on stderr.
    """

    def __init__(self, settings: Settings, progress: bool = False) -> None:
        self.settings = settings
        self.metrics = Metrics()
        #: Set once: jobs that come are refused, those that are here are finished.
        self.draining = False
        self._progress = progress
        #: Where pictures go that were asked for by URL, or are too large to send.
        self.store = ObjectStore.from_settings(settings)
        self.executor = GpuExecutor(settings.stall_timeout, self.metrics)
        self._cpu = ThreadPoolExecutor(_CPU_THREADS, "cpu")
        #: Threads of their own: a picture that is slow to decode keeps no finished one from being sent.
        self._decoders = ThreadPoolExecutor(_CPU_THREADS, "decoder")
        self._loading: Future[FluxPipeline] | None = None
        self._stage = "starting"
        self._lock = threading.Lock()
        self._signer: Signer | None = None
        self._failed_at = 0.0
        #: Seconds that pass lately before a job is ready for the GPU.
        self.mean_prepare_seconds = 0.0
        #: Bodies that are being read by the doors; they will be jobs, and count as such before more are read.
        self.reading = 0
        self._admitted = 0
        self._spec: ModelSpec | None = MODELS.get(settings.model or "")

    @property
    def spec(self) -> ModelSpec | None:
        """What is served: known from the start where the settings name it, else as soon as loading has chosen."""
        return self._spec

    def choose(self) -> None:
        """Chooses the model, where the settings do not name it by whether there is a card; takes seconds then.

        Raises:
            ConfigurationError: there is no such model, or it cannot run here.
        """
        if self._spec is None:
            self._spec = choose_model(self.settings)

    def start(self) -> Future[FluxPipeline]:
        """Begins to load the model, once, and again some time after a failure; the future ends when it is loaded.

        The future raises ConfigurationError where the model is unknown or its weights cannot be had.
        """
        with self._lock:
            failed = self._loading is not None and self._loading.done() and self._loading.exception() is not None
            if self._loading is None or (failed and time.monotonic() - self._failed_at > _RETRY_SECONDS):
                self._loading = self.executor.submit(self._load)
            return self._loading

    def _load(self) -> FluxPipeline:
        try:
            times = StartTimes.of_process()
            with times.measure("find"):
                path = read_ahead(self.settings)
            self._note_stage("choosing the model")
            with times.importing():  # of torch, to ask for a card
                self._spec = choose_model(self.settings)
            self._signer = load_signer(self.settings)
            return load(self._spec, self.settings, self._progress, self._note_stage, path, times)
        except BaseException:
            self._failed_at = time.monotonic()
            raise

    def close(self) -> None:
        """Ends the threads after their jobs and unloads the model; does not wait for a load that is going on."""
        self.draining = True
        with self._lock:
            loading = self._loading
        done = loading is None or loading.done()
        if loading is not None and done and self.executor.dead is None:
            with suppress(Exception):
                self.executor.submit(loading.result().unload).result()
        self.executor.close(wait=done)
        self._cpu.shutdown(cancel_futures=True)
        self._decoders.shutdown(cancel_futures=True)

    def health(self) -> HealthResponse:
        """The state that the service is in; it can take a job while idle, ready or busy."""
        state = HealthResponse(
            status="idle",
            model=self.spec.name if self.spec else self.settings.model or "unknown",
            version=__version__,
            queue=QueueState(running=min(self._admitted, 1), waiting=self._waiting(), limit=self.settings.max_queue),
        )
        loading = self._loading
        if self.executor.dead is not None:
            state.status, state.message = "failed", self.executor.dead
        elif loading is None:
            state.status = "starting" if self.settings.preload_models else "idle"
        elif not loading.done():
            state.status, state.stage = "loading", self._stage
        elif (error := loading.exception()) is not None:
            state.status, state.message = "failed", "the model could not be loaded; the log says why"
            if isinstance(error, ConfigurationError):
                state.message = str(error)
        else:
            pipeline = loading.result()
            state.status = "busy" if self._admitted else "ready"
            state.device, state.gpu_memory = pipeline.device, pipeline.gpu_memory()
            state.start = pipeline.times
            if (plan := pipeline.config.plan) is not None:
                state.memory = plan.state
        if self.draining and state.status != "failed":
            state.status = "draining"
        return state

    async def run(
        self,
        request: requests.Request,
        *,
        job_id: str | None = None,
        default_seed: int | None = None,
        max_answer: int | None = None,
        store: ObjectStore | None = None,
        wait_for_model: bool = True,
        listener: Listener | None = None,
        previews: int = 0,
    ) -> GenerateResponse:
        """Runs one job.

        Args:
            job_id: names its objects in the store; None: drawn.
            default_seed: where the request names none; None: drawn below 2^32.
            max_answer: bytes that the door can carry.
            store: the job's own object store; None: the worker's, if it has one.
            wait_for_model: False: a job that comes while the model is loading is refused with NotReady.
            listener: told what happens.
            previews: how often it is shown each picture as it forms.

        Raises:
            ImageGenError: one of the contract's, whatever went wrong.
            asyncio.CancelledError: the task was cancelled; the GPU is free after its step.
        """
        timeout = request.timeout or self.settings.timeout
        loop = asyncio.get_running_loop()
        job = Job(
            id=job_id or secrets.token_hex(8),
            request=request,
            notify=threadsafe_listener(loop, listener),
            previews=previews if listener else 0,
            max_answer=max_answer,
            store=store or self.store,
        )
        outcome = "ok"
        self.check_open(wait_for_model)
        self._admitted += 1
        self.metrics.waiting.set(self._waiting())
        try:
            async with asyncio.timeout(timeout):
                answer = await self._run(job, default_seed)
            for stage, seconds in answer.timings:
                self.metrics.stages.labels(stage).observe(seconds)
            self.metrics.pictures.inc(len(answer.images))
            return answer
        except TimeoutError:
            outcome = DeadlineExceeded.code
            raise DeadlineExceeded(
                f"timeout: the job did not end within {timeout:.1f} s, waiting included; at most 3600", "timeout"
            ) from None
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        except ImageGenError as error:
            outcome = error.code
            raise
        except Exception as error:
            outcome = "internal"
            raise internal(error) from None
        finally:
            job.stop.set()
            self._admitted -= 1
            self.metrics.waiting.set(self._waiting())
            self.metrics.jobs.labels(outcome).inc()
            logs.note(outcome=outcome, timings={name: round(value, 4) for name, value in job.timings if value})

    def check_open(self, wait_for_model: bool = True, reading: int = 0) -> None:
        """Whether a job would be admitted now; a door asks before it reads a body of a hundred megabytes, and counts
        those that it is reading.

        Raises:
            NotReady: the worker is ending, or loading and the job would not wait for that.
            Overloaded: the queue is full.
        """
        loading = self._loading
        if self.draining:
            raise NotReady("the worker is ending; another will answer", retry_after=1)
        if not wait_for_model and loading is not None and not loading.done():
            raise NotReady(f"the model is not loaded yet ({self._stage})", retry_after=5)
        if self._admitted + reading > self.settings.max_queue:
            wait = max(1, math.ceil(self.executor.mean_gpu_seconds))
            raise Overloaded(f"{self._waiting()} jobs wait already; try again in {wait} s", retry_after=wait)

    async def _run(self, job: Job, default_seed: int | None) -> GenerateResponse:
        request, timings, begun = job.request, job.timings, time.monotonic()
        words = {"prompt": request.prompt} if self.settings.log_prompts else {}
        logs.note(mode=request.mode, images=request.num_images, **words)

        # 1. The model, and what it alone can check
        if request.delivery == "url" and job.store is None:
            raise InvalidInput(
                "delivery: 'url' needs an object store, and there is none; 'base64' is allowed", "delivery"
            )
        if self.spec is not None:
            requests.check(request, self.spec, self.settings)
        job.notify(Queued(self._admitted - 1))
        pipeline = await self._ready()
        spec = pipeline.config.spec
        requests.check(request, spec, self.settings)
        timings.queue = time.monotonic() - begun

        # 2. References, beside the GPU: fetched in the event loop, decoded in threads
        clock = time.monotonic()
        try:
            if isinstance(request, EditRequest):
                job.notify(References())
                loaded = await self._references(request)
                job.references = [reference.picture for reference in loaded]
                job.warnings += [warning for reference in loaded for warning in reference.warnings]
        finally:  # those that never came have taken their time too
            timings.references = time.monotonic() - clock
            self.mean_prepare_seconds += (timings.references - self.mean_prepare_seconds) * PACE_WEIGHT
        seed = secrets.randbelow(2**32) if default_seed is None else default_seed
        plan = requests.plan(request, spec, job.references[0].size if job.references else None, seed)
        logs.note(model=spec.name, size=f"{plan.width}x{plan.height}", steps=plan.num_inference_steps)
        if pipeline.config.plan is not None:
            pipeline.config.plan.check((plan.width, plan.height), [image.size for image in job.references])

        # 3. The GPU's lane; a picture is encoded while the next one is drawn
        clock = time.monotonic()
        pictures = delivery.Delivery(self._cpu, spec.name, request, plan.num_inference_steps, self._signer)
        await self.executor.run(job, plan, pipeline, pictures.begin)
        if not pipeline.times.first_picture:
            pipeline.times.first_picture = timings.encode_prompt + timings.denoise + timings.decode
            log.info("the first picture is there: %s", pipeline.times.show())

        # 4. Delivery
        clock = time.monotonic()
        warnings = [*plan.warnings, *job.warnings]
        answer = (EditResponse if isinstance(request, EditRequest) else GenerateResponse)(
            images=[],
            seeds=list(plan.seeds),
            width=plan.width,
            height=plan.height,
            output_format=request.output_format,
            model=spec.name,
            timings=timings,
            warnings=warnings,
        )
        await pictures.finish(answer, job.max_answer, job.store, job.id)
        now = time.monotonic()
        timings.deliver, timings.total = now - clock, now - begun
        answer.timings = Timings(**{name: round(value, 4) for name, value in timings})
        return answer

    async def _ready(self) -> FluxPipeline:
        """The loaded pipeline; waits for it, and begins to load it if nothing has."""
        self.executor.check()
        try:
            return await asyncio.shield(asyncio.wrap_future(self.start()))
        except ConfigurationError as error:
            raise NotReady(str(error)) from None

    async def _references(self, request: EditRequest) -> list[Reference]:
        loads = [asyncio.create_task(self._reference(image, f"images[{i}]")) for i, image in enumerate(request.images)]
        try:
            return await asyncio.gather(*loads)
        finally:
            for load in loads:  # one that is bad is enough
                load.cancel()

    async def _reference(self, value: str, field: str) -> Reference:
        source: str | bytes = value
        if is_url(value):
            fetching = await asyncio.to_thread(_import_fetching)
            source = await fetching.fetch(value, field, self.settings)
        limit = int(self.settings.max_reference_mb * 1e6)
        return await asyncio.wrap_future(self._decoders.submit(load_reference, source, field, limit))

    def _waiting(self) -> int:
        return max(0, self._admitted - 1)

    def _note_stage(self, stage: str) -> None:
        self._stage = stage


def _import_fetching() -> ModuleType:
    """In a thread, and with the first URL: aiohttp takes half a second that no start has to wait for."""
    from imagegen.inputs import fetching

    return fetching


def threadsafe_listener(loop: asyncio.AbstractEventLoop, listener: Listener | None) -> Callable[[Event], None]:
    """A function for any thread that tells the listener in the loop's."""
    if listener is None:
        return lambda event: None

    def tell(event: Event) -> None:
        with suppress(RuntimeError):  # the loop was closed, and with it whoever listened
            loop.call_soon_threadsafe(listener, event)

    return tell
