"""One worker's service, the same for every transport: a job is admitted, waits for the model, runs within its deadline,
and is counted.

Admission decides which jobs are taken, ModelHost keeps the model, a Runner runs jobs on it, in this process or in
others. A job that is cancelled, or whose time runs out, leaves the GPU after the step that it is in.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from imagegen import __version__, logs
from imagegen.contract import requests
from imagegen.contract.events import Listener, Queued
from imagegen.contract.responses import GenerateResponse, HealthResponse, QueueState
from imagegen.engine import lora_sources
from imagegen.engine.admission import Admission, Upload
from imagegen.engine.gpu_executor import GpuExecutor
from imagegen.engine.job import Job
from imagegen.engine.loras import describe
from imagegen.engine.model_host import ModelHost
from imagegen.engine.runner import LocalRunner, Runner
from imagegen.errors import DeadlineExceeded, ImageGenError, InvalidInput, NotReady, Overloaded, internal
from imagegen.models import ModelSpec
from imagegen.outputs.object_store import ObjectStore
from imagegen.settings import Settings
from imagegen.telemetry import tracing
from imagegen.telemetry.metrics import Metrics, size_class


class Service:
    """A model and all that a job needs around it. Made without loading anything; `start` loads, `close` frees all.

    Args:
        settings: of the process.
        progress: show bars for loading and steps on stderr.
        runner: where jobs run; None: in this process.
    """

    def __init__(self, settings: Settings, progress: bool = False, runner: Runner | None = None) -> None:
        self.settings = settings
        self.metrics = Metrics()
        tracing.configure(settings)
        self.executor = GpuExecutor(settings.stall_timeout, self.metrics)
        self.admission = Admission(settings, self.metrics, lambda: self.executor.mean_gpu_seconds)
        self.runner: Runner = runner or LocalRunner(settings, self.executor, self.admission, self.metrics, progress)
        self.host = ModelHost(settings, self.executor, self.runner.load)
        #: Where images go that were asked for by URL, or are too large to send.
        self.store = ObjectStore.from_settings(settings)

    @property
    def spec(self) -> ModelSpec | None:
        """What is served: known from the start where the settings name it, else as soon as it is chosen."""
        return self.host.spec

    def choose(self) -> None:
        """Chooses the model, where the settings do not name it by whether there is a GPU; takes seconds then.

        Raises:
            ConfigurationError: there is no such model, or it cannot run here.
        """
        self.host.choose()

    def start(self) -> Future[Any]:
        """Begins to load the model, once, and again some time after a failure; the future ends when it is loaded.

        The future raises ConfigurationError where the model is unknown or its weights are not available.
        """
        return self.host.start()

    def freeze(self) -> None:
        """Makes this process, whose model is loaded, fit for a snapshot of its memory, from which several may go on:
        it has no other process, no open socket, and no random numbers that two of them would share.

        What a job draws at random comes from the operating system (`secrets`), which a snapshot does not hold.
        """
        if isinstance(self.runner, LocalRunner):
            self.runner.freeze()

    def thaw(self) -> None:
        """Goes on after a snapshot: other generators of random numbers are seeded anew, clocks begin at 0."""
        seed_anew()
        if isinstance(self.runner, LocalRunner):
            self.runner.thaw()

    def drain(self) -> None:
        """From now on jobs that come are refused; those that are here are finished, but for references that are slow to
        read."""
        self.admission.drain()

    def close(self) -> None:
        """Ends the threads after their jobs and unloads the model; does not wait for a load that is going on."""
        self.drain()
        self.host.close()
        self.runner.close()
        tracing.close()

    def health(self) -> HealthResponse:
        """The state that the service is in; it can take a job while idle, ready or busy."""
        admission = self.admission
        queue = QueueState(running=admission.running, waiting=admission.waiting, limit=admission.max_queue)
        state = HealthResponse(status="idle", model="unknown", version=__version__, queue=queue)
        self.host.describe(state)
        if self.metrics.device is not None:
            state.gpu = self.metrics.device.state
        if state.status == "ready" and admission.running:
            state.status = "busy"
        if admission.draining and state.status != "failed":
            state.status = "draining"
        return state

    def loras(self, spec: ModelSpec) -> list[dict[str, Any]]:
        """The LoRA adapters for the model: those of the worker as it has checked them; until it has, those of the
        settings that are on this machine.

        Raises:
            ConfigurationError: IMAGEGEN_LORAS is wrong.
        """
        library = self.runner.loras if isinstance(self.runner, LocalRunner) else None
        entries = lora_sources.list_entries(self.settings, spec, fetch=False) if library is None else library.entries
        return describe(list(entries.values()))

    def metrics_text(self) -> bytes:
        """The metrics of this moment, in Prometheus' text format."""
        self._record_state()
        return self.metrics.text()

    def figures(self) -> dict[str, float]:
        """The same by name and labels."""
        self._record_state()
        return self.metrics.figures()

    def _record_state(self) -> None:
        """Brings the metrics that are a state, and no count of events, up to date."""
        state, metrics, admission = self.health(), self.metrics, self.admission
        metrics.state.state(state.status)
        metrics.running.set(admission.running)
        metrics.oldest.set(admission.oldest_seconds)
        memory = state.memory
        metrics.record_build(
            version=state.version,
            model=state.model,
            transformer=memory.transformer if memory else "",
            text_encoder=memory.text_encoder if memory else "",
            offload=memory.offload if memory else "",
            device=state.device or "",
        )
        metrics.record_disk(temporary=Path(tempfile.gettempdir()), cache=self.settings.hf_home.expanduser())
        for stage, seconds in state.start or ():
            metrics.start.labels(stage).set(seconds)

    @property
    def fatal(self) -> str | None:
        """Why this process must be replaced; None while it may still serve."""
        if self.executor.dead is not None:
            return self.executor.dead
        return None if self.settings.keep_failed else self.host.failed

    def upload(self, caller: str | None, length: int = 0, wait_for_model: bool = True, stored: bool = False) -> Upload:
        """A transport is going to read a job's body: not one of a job that would be refused.

        Args:
            caller, wait_for_model: as for `run`.
            length: bytes of it, where that is known.
            stored: its job will wait in a store.

        Raises:
            NotReady: the worker is ending, or loading and the job would not wait for that.
            Overloaded: the queue is full, or too much is being read.
        """
        with self._counting_refusals():
            if not wait_for_model:
                self.host.check_loaded()
            return self.admission.upload(caller, length, stored)

    @contextmanager
    def _counting_refusals(self) -> Iterator[None]:
        try:
            yield
        except (NotReady, Overloaded) as error:
            self.metrics.jobs.labels("unknown", error.code).inc()
            raise

    async def run(
        self,
        request: requests.Request,
        *,
        caller: str | None = None,
        job_id: str | None = None,
        default_seed: int | None = None,
        max_answer: int | None = None,
        store: ObjectStore | None = None,
        upload: Upload | None = None,
        wait_for_model: bool = True,
        stored: bool = False,
        listener: Listener | None = None,
        previews: int = 0,
    ) -> GenerateResponse:
        """Runs one job.

        Args:
            caller: who asks, for the shares of Admission: the name of a key, or an address; None: the only one.
            job_id: names its objects in the store; None: random.
            default_seed: where the request names none; None: random, below 2^32.
            max_answer: bytes that the transport can carry.
            store: the job's own object store; None: the worker's, if it has one.
            upload: its body, released as soon as nobody needs it, with the request's references.
            wait_for_model: False: a job that comes while the model is loading is refused with NotReady.
            stored: it has waited in a store of jobs, and takes no place of those that hold a connection.
            listener: notified of what happens.
            previews: how often it is shown each image as it forms.

        Raises:
            ImageGenError: one of the contract's, whatever went wrong.
            asyncio.CancelledError: the task was cancelled; the GPU is free after its step.
        """
        job = Job(
            id=job_id or secrets.token_hex(8),
            request=request,
            default_seed=secrets.randbelow(2**32) if default_seed is None else default_seed,
            caller=caller,
            listener=listener,
            previews=previews if listener else 0,
            max_answer=max_answer,
            store=store or self.store,
            upload=upload,
            trace=tracing.JobTrace(request.mode, model=self.spec.name if self.spec else "unknown"),
        )
        outcome = "ok"
        try:
            if not wait_for_model:
                self.host.check_loaded()
            with self.admission.place(caller, stored) as job.place:
                answer = await self._run_in_time(job)
            self._count(request.mode, answer)
            return answer
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        except ImageGenError as error:
            outcome = error.code
            raise requests.renamed(error, request.spoken) from None
        except Exception as error:  # noqa: BLE001 - a bug is answered, with an id that is in the log
            outcome = "internal"
            raise internal(error) from None
        finally:
            job.stop.set()
            if upload is not None:
                upload.release()
            job.end(outcome, self.metrics)
            job.trace.end(outcome, **logs.noted("images", "size", "steps", "requestId"))
            logs.note(outcome=outcome, timings={name: round(value, 4) for name, value in job.timings if value})

    def _count(self, mode: str, answer: GenerateResponse) -> None:
        for stage, seconds in answer.timings:
            if stage != "total":
                self.metrics.stages.labels(mode, stage).observe(seconds)
        size = size_class(answer.width, answer.height)
        self.metrics.job_seconds.labels(mode, size).observe(answer.timings.total)
        self.metrics.pictures.inc(len(answer.images) or len(answer.urls))

    async def _run_in_time(self, job: Job) -> GenerateResponse:
        timeout = min(job.request.timeout or self.settings.timeout, self.settings.timeout)
        try:
            async with asyncio.timeout(timeout):
                return await self._run(job)
        except TimeoutError:
            raise DeadlineExceeded(
                f"timeout: the job did not end within {timeout:.1f} s, waiting included", "timeout"
            ) from None

    async def _run(self, job: Job) -> GenerateResponse:
        request = job.request
        words = {"prompt": request.prompt} if self.settings.log_prompts else {}
        self.metrics.prompt_length.observe(len(request.prompt))
        logs.note(mode=request.mode, images=request.num_images, **words)
        if request.delivery == "url" and job.store is None:
            raise InvalidInput(
                "delivery: 'url' needs an object store, and there is none; leave it out to get the images themselves",
                "delivery",
            )
        if self.spec is not None:
            requests.check(request, self.spec, self.settings)
        job.notify(Queued(job.place.ahead if job.place else 0))
        clock = time.monotonic()
        await self.host.ready()
        job.spent("load", time.monotonic() - clock)
        if self.spec is not None:  # it may have been chosen only now
            requests.check(request, self.spec, self.settings)
        job.spent("queue", time.monotonic() - job.begun - job.timings.load)
        return await self.runner.run(job)


def seed_anew() -> None:
    """Seeds the process's generators of random numbers, of which those that go on from one snapshot have the same."""
    random.seed()
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()
    if "torch" in sys.modules:
        sys.modules["torch"].seed()
