"""What runs a job that was admitted: the Runner protocol, and the runner of this process."""

from __future__ import annotations

import asyncio
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import ModuleType
from typing import Protocol

from PIL import Image

from imagegen import logs
from imagegen.contract import requests
from imagegen.contract.events import Generated, References
from imagegen.contract.responses import EditResponse, GenerateResponse, Timings
from imagegen.contract.schemas import EditRequest
from imagegen.contract.start_times import StartTimes
from imagegen.editing.photo import PhotoEdit, plan_edit
from imagegen.engine.admission import Admission
from imagegen.engine.gpu_executor import NEWEST_WEIGHT, GpuExecutor
from imagegen.engine.job import Job
from imagegen.engine.loras import Chosen, LoraLibrary
from imagegen.engine.model_host import LoadedModel, ModelHost
from imagegen.inputs.decoders import Decoders
from imagegen.inputs.decoding import Purpose, Reference, is_url
from imagegen.model.loading import choose_model, load, read_ahead
from imagegen.model.pipeline import FluxPipeline
from imagegen.models import ModelSpec
from imagegen.outputs import delivery
from imagegen.outputs.signing import Signer, load_signer
from imagegen.settings import Settings
from imagegen.telemetry.gpu_device import GpuDevice, open_device
from imagegen.telemetry.metrics import Metrics

log = logging.getLogger(__name__)

#: Threads for images' bytes; Pillow releases the interpreter lock while it decodes and compresses.
CPU_THREADS = 4
#: Threads that plan edits of photos, which take a second for the largest; so that no image waits for them.
PHOTO_THREADS = 2


class Runner(Protocol):
    """Where jobs run: in this process (LocalRunner), or in others (deploy.ray_serve)."""

    #: Mean seconds of late until a job is ready for the GPU.
    mean_prepare_seconds: float
    #: Jobs that keep it busy: those on a GPU, and the next one of each.
    jobs_at_once: int

    def load(self, host: ModelHost) -> LoadedModel:
        """Loads the model; called in the GPU's thread. Sets `host.spec` as soon as the model is chosen.

        Raises:
            ConfigurationError: the model is unknown, or its weights are not available.
        """

    async def run(self, job: Job) -> GenerateResponse:
        """Runs a job with the loaded model, and notifies the job of its events from References to Generated.

        Raises:
            ImageGenError: one of the contract's.
        """

    def close(self) -> None:
        """Frees what it holds beside the model."""


class LocalRunner:
    """Runs jobs in this process. What needs no GPU runs beside it: references are decoded while another job is on
    the GPU, and an image is compressed while the next one is generated.

    Args:
        progress: show bars for loading and steps on stderr.
    """

    jobs_at_once = 2

    def __init__(
        self,
        settings: Settings,
        executor: GpuExecutor,
        admission: Admission,
        metrics: Metrics,
        progress: bool = False,
    ) -> None:
        self._settings, self._executor, self._admission = settings, executor, admission
        self._metrics, self._progress = metrics, progress
        self.mean_prepare_seconds = 0.0
        self._cpu = ThreadPoolExecutor(CPU_THREADS, "cpu")
        self._photos = ThreadPoolExecutor(PHOTO_THREADS, "photo")
        self._decoders = Decoders()
        self._signer: Signer | None = None
        #: Those that jobs may name, once `load` has looked for them.
        self.loras: LoraLibrary | None = None
        self._pipeline: FluxPipeline | None = None

    def load(self, host: ModelHost) -> FluxPipeline:
        """Loads the model.

        Raises:
            ConfigurationError: the model is unknown, or its weights are not available.
        """
        times = StartTimes.of_process()
        self._decoders.start()  # beside what follows, on another core
        with times.measure("find"):
            path = read_ahead(self._settings)
        host.note_stage("choosing the model")
        with times.importing():  # of torch, to ask for a GPU
            host.spec = choose_model(self._settings)
        self._signer = load_signer(self._settings)
        host.note_stage("looking for LoRA adapters")
        self.loras = LoraLibrary(self._settings, host.spec)
        self._pipeline = load(host.spec, self._settings, self._progress, host.note_stage, path, times)
        self._metrics.watch(_device_of(self._pipeline))
        self._metrics.gpu_time.begin()
        return self._pipeline

    async def run(self, job: Job) -> GenerateResponse:
        """Runs a job.

        Raises:
            ImageGenError: one of the contract's.
        """
        request, timings, pipeline, library = job.request, job.timings, self._pipeline, self.loras
        if pipeline is None or library is None:
            raise RuntimeError("load() comes first")
        spec = pipeline.config.spec

        # 1. Adapters and references, beside the GPU: fetched in the event loop, decoded in processes
        job.loras = await self._choose_loras(job, library, pipeline)
        await self._read_references(job, spec)
        edit = job.edit
        first = job.references[0].size if job.references else None
        plan = requests.plan(request, spec, first, job.default_seed)
        requests.check_work(plan, self._settings)
        if plan.strength < 1 and first != (plan.width, plan.height):  # it begins at the reference, so of its size
            size = plan.width, plan.height
            job.references[0] = await asyncio.to_thread(job.references[0].resize, size, Image.Resampling.LANCZOS)
        logs.note(model=spec.name, size=f"{plan.width}x{plan.height}", steps=plan.num_inference_steps)
        if pipeline.config.plan is not None:
            pipeline.config.plan.check((plan.width, plan.height), [image.size for image in job.references])

        # 2. The GPU; an image is encoded while the next one is generated
        finish = None if edit is None else partial(_finish, edit, job)
        images = delivery.Delivery(
            self._cpu, spec.name, request, plan.num_inference_steps, job.loras.used, self._signer, finish
        )
        width, height = (plan.width, plan.height) if edit is None else edit.size
        clock = time.monotonic()
        async with self._admission.delivery(job.caller, len(plan.seeds) * width * height):
            job.spent("queue", time.monotonic() - clock)
            if plan.strength == 0:  # the reference itself
                for seed in plan.seeds:
                    images.begin(seed, job.references[0])
                job.notify(Generated())
            else:
                await self._executor.run(job, plan, pipeline, images.begin)
            if not pipeline.times.first_picture:
                pipeline.times.first_picture = timings.encode_prompt + timings.denoise + timings.decode
                log.info("the first image is ready: %s", pipeline.times.show())

            # 3. Delivery
            clock = time.monotonic()
            await images.finished()
            answer = (EditResponse if isinstance(request, EditRequest) else GenerateResponse)(
                images=[],
                seeds=list(plan.seeds),
                width=width,
                height=height,
                output_format=request.output_format,
                model=spec.name,
                timings=timings,
                loras=list(job.loras.used),
                warnings=[*plan.warnings, *job.warnings],
            )
            await images.finish(answer, job.max_answer, job.store, job.id)
        job.spent("deliver", time.monotonic() - clock)
        timings.total = time.monotonic() - job.begun
        answer.timings = Timings(**{name: round(value, 4) for name, value in timings})
        return answer

    def freeze(self) -> None:
        """Ends its processes, between `load` and a snapshot of this process."""
        self._decoders.close()

    def thaw(self) -> None:
        """Starts them anew; the start's times begin here."""
        self._decoders = Decoders()
        self._decoders.start()
        if self._pipeline is not None:
            self._pipeline.times = StartTimes()
        self._metrics.gpu_time.begin()

    def close(self) -> None:
        """Ends the threads after what they are doing, which is not waited for: no job needs it any more."""
        self._decoders.close()
        for pool in (self._cpu, self._photos):
            pool.shutdown(wait=False, cancel_futures=True)

    async def _choose_loras(self, job: Job, library: LoraLibrary, pipeline: FluxPipeline) -> Chosen:
        """The job's adapters; those by URL for one job of a caller after the other."""
        clock = time.monotonic()
        try:
            if not any(lora.url for lora in job.request.loras):
                return await library.choose(job.request.loras, pipeline)
            async with self._admission.reading(), self._admission.adapters(job.caller):
                return await library.choose(job.request.loras, pipeline)
        finally:
            job.spent("references", time.monotonic() - clock)

    async def _read_references(self, job: Job, spec: ModelSpec) -> None:
        """Fills `job.references` and `job.edit`."""
        clock = time.monotonic()
        try:
            if isinstance(job.request, EditRequest):
                job.notify(References())
                masked = job.request.mask is not None
                async with self._admission.reading():
                    loaded = await self._load_all(job.request, job.caller)
                job.let_go_of_references()
                job.warnings += [warning for reference in loaded for warning in reference.warnings]
                job.references = [reference.image for reference in loaded]
                if job.request.keeps_photo:
                    mask = job.references.pop() if masked else None
                    plan = partial(plan_edit, job.request, job.references[0], mask, spec)
                    job.edit = await self._admission.decode(job.caller, lambda: self._photos.submit(plan))
                    job.references[0] = job.edit.crop
                    job.warnings += job.edit.warnings
                    job.warnings += delivery.warnings_of_loss(job.request, job.request.output_format)
        finally:  # those that never came have taken their time too
            job.spent("references", time.monotonic() - clock)
            self.mean_prepare_seconds += (job.timings.references - self.mean_prepare_seconds) * NEWEST_WEIGHT

    async def _load_all(self, request: EditRequest, caller: str | None) -> list[Reference]:
        """The references, and behind them the mask if there is one."""
        wanted: list[tuple[str, str, Purpose]] = [
            (image, f"images[{i}]", "photo" if i == 0 and request.keeps_photo else "reference")
            for i, image in enumerate(request.images)
        ]
        if request.mask is not None:
            wanted.append((request.mask, "mask", "mask"))
        loads = [asyncio.create_task(self._load_reference(*one, caller)) for one in wanted]
        try:
            return await asyncio.gather(*loads)
        finally:
            for task in loads:  # one bad reference ends the job
                task.cancel()

    async def _load_reference(self, value: str, field: str, purpose: Purpose, caller: str | None) -> Reference:
        if not is_url(value):
            self._metrics.reference_bytes.labels("request").inc(len(value) * 3 // 4)  # base64
            return await self._decode(value, field, purpose, caller)
        fetching = await asyncio.to_thread(_import_fetching)
        async with self._admission.download(caller):
            source = await fetching.fetch(value, field, self._settings)
            self._metrics.reference_bytes.labels("url").inc(len(source))
            return await self._decode(source, field, purpose, caller)

    async def _decode(self, source: str | bytes, field: str, purpose: Purpose, caller: str | None) -> Reference:
        limit = int(self._settings.max_reference_mb * 1e6)
        return await self._admission.decode(caller, lambda: self._decoders.submit(source, field, limit, purpose))


def _finish(edit: PhotoEdit, job: Job, generated: Image.Image) -> Image.Image:
    """A photo with its edit, in a thread beside the GPU; what was done is noted in the job's warnings and timings."""
    if isinstance(job.request, EditRequest) and job.request.strength == 0:
        return edit.photo
    clock = time.monotonic()
    finished = edit.finish(generated)
    job.warnings += [warning for warning in finished.warnings if warning not in job.warnings]
    job.spent("composite", time.monotonic() - clock)
    return finished.image


def _device_of(pipeline: FluxPipeline) -> GpuDevice | None:
    if pipeline.device is None or not pipeline.device.startswith("cuda"):
        return None
    import torch

    return open_device(str(torch.cuda.get_device_properties(pipeline.device).uuid))


def _import_fetching() -> ModuleType:
    """In a thread, and with the first URL: aiohttp takes half a second that no start has to wait for."""
    from imagegen.inputs import fetching

    return fetching
