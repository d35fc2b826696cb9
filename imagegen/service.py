"""The road that every job takes, whichever door it came by: check, references, the GPU's lane, delivery.

One thread owns the GPU and works off jobs in the order of their arrival. Everything that is not the GPU's runs beside
it in other threads: references are decoded while another job is drawn, and a picture is compressed while the next one
is. A job that is cancelled, or whose time runs out, leaves the lane after the step that it is in.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Literal, TypeVar

from PIL import Image

from imagegen import __version__, delivery, jobs
from imagegen.errors import (
    ConfigurationError,
    DeadlineExceeded,
    GpuFailed,
    ImageGenError,
    InvalidInput,
    NotReady,
    internal,
)
from imagegen.models import MODELS, ModelSpec, download_weights, find_weights, get_model
from imagegen.references import load_reference
from imagegen.server.flux_pipeline import FluxConfig, FluxPipeline
from imagegen.server.schemas import EditRequest, EditResponse, GenerateResponse, HealthResponse, Timings
from imagegen.settings import Settings

log = logging.getLogger(__name__)
T = TypeVar("T")

#: Threads for pictures' bytes; Pillow lets go of the interpreter while it decodes and compresses.
_CPU_THREADS = 4


class _Stop(BaseException):
    """Raised inside the denoising loop to leave it. Not an Exception: nothing on the way may swallow it."""


class Service:
    """A model and the road to it. Made without loading anything; `start` loads, `close` gives all back.

    Args:
        settings: of the process.
        progress: show bars for loading and steps on stderr.
    """

    def __init__(self, settings: Settings, progress: bool = False) -> None:
        self._settings = settings
        self._progress = progress
        self._gpu = ThreadPoolExecutor(1, "gpu")
        self._cpu = ThreadPoolExecutor(_CPU_THREADS, "cpu")
        self._loading: Future[FluxPipeline] | None = None
        self._lock = threading.Lock()
        self._dead: GpuFailed | None = None
        #: What is served; known from the start where the settings name it.
        self.spec: ModelSpec | None = MODELS.get(settings.model or "")

    def start(self) -> Future[FluxPipeline]:
        """Begins to load the model in the GPU's thread, once, and again after a failure; the future ends when it is
        loaded.

        The future raises ConfigurationError where the model is unknown or its weights cannot be had.
        """
        with self._lock:
            if self._loading is None or (self._loading.done() and self._loading.exception() is not None):
                self._loading = self._gpu.submit(self._load)
            return self._loading

    def close(self) -> None:
        """Ends the threads after the jobs that they are at, and unloads the model."""
        with self._lock:
            loading = self._loading
        if loading is not None:
            with suppress(Exception):
                self._gpu.submit(loading.result().unload).result()
        self._gpu.shutdown(cancel_futures=True)
        self._cpu.shutdown(cancel_futures=True)

    def health(self) -> HealthResponse:
        """Whether a job could run now."""
        name = self.spec.name if self.spec else self._settings.model or "unknown"
        loading = self._loading
        if self._dead is not None:
            return HealthResponse(status="failed", model=name, version=__version__, message=self._dead.message)
        if loading is None or not loading.done():
            return HealthResponse(status="loading", model=name, version=__version__)
        if (error := loading.exception()) is not None:
            message = (
                str(error) if isinstance(error, ConfigurationError | ImageGenError) else "the model could not be loaded"
            )
            return HealthResponse(status="failed", model=name, version=__version__, message=message)
        return HealthResponse(status="ready", model=name, device=loading.result().device, version=__version__)

    async def run(
        self,
        request: jobs.Request,
        *,
        default_seed: int | None = None,
        max_answer: int | None = None,
    ) -> GenerateResponse:
        """Runs one job.

        Args:
            default_seed: where the request names none; None: drawn below 2^32.
            max_answer: bytes that the door can carry.

        Raises:
            ImageGenError: one of the contract's, whatever went wrong.
            asyncio.CancelledError: the task was cancelled; the GPU is free after its step.
        """
        timeout = request.timeout or self._settings.timeout
        stop = threading.Event()
        try:
            async with asyncio.timeout(timeout):
                return await self._run(request, default_seed, max_answer, stop)
        except TimeoutError:
            raise DeadlineExceeded(
                f"timeout: the job did not end within {timeout:.1f} s, waiting included; at most 3600",
                "timeout",
            ) from None
        except GpuFailed as error:
            self._dead = error
            raise
        except ImageGenError:
            raise
        except Exception as error:
            raise internal(error) from None
        finally:
            stop.set()

    async def _run(
        self,
        request: jobs.Request,
        default_seed: int | None,
        max_answer: int | None,
        stop: threading.Event,
    ) -> GenerateResponse:
        timings, begun = Timings(), time.monotonic()

        # 1. The model, and what it alone can check
        if request.delivery == "url":
            raise InvalidInput(
                "delivery: 'url' needs an object store, and none is set up; allowed is 'base64'", "delivery"
            )
        if self.spec is not None:
            jobs.check(request, self.spec)
        pipeline = await self._ready()
        spec = pipeline.config.spec
        jobs.check(request, spec)
        timings.queue = time.monotonic() - begun

        # 2. References, in threads beside the GPU
        clock = time.monotonic()
        references = await self._references(request)
        timings.references = time.monotonic() - clock
        seed = secrets.randbelow(2**32) if default_seed is None else default_seed
        plan = jobs.plan(request, spec, references[0].size if references else None, seed)

        # 3. The GPU's lane; a picture is encoded while the next one is drawn
        clock = time.monotonic()
        files: list[Future[bytes]] = []

        def draw() -> list[Image.Image]:
            timings.queue += time.monotonic() - clock
            return self._draw(pipeline, request, plan, references, files, timings, stop)

        pictures = await _in_thread(self._gpu, draw)

        # 4. Delivery
        clock = time.monotonic()
        encoded = [await asyncio.wrap_future(file) for file in files]
        output_format, warnings = request.output_format, list(plan.warnings)
        if not delivery.fits(encoded, max_answer):
            output_format, encoded = await self._smaller(request, plan, pictures, encoded, max_answer)
            warnings.append(f"output_format: {request.output_format} was too large to send; this is {output_format}")
        images = await _in_thread(self._cpu, lambda: [delivery.to_base64(data) for data in encoded])
        now = time.monotonic()
        timings.deliver, timings.total = now - clock, now - begun
        return (EditResponse if isinstance(request, EditRequest) else GenerateResponse)(
            images=images,
            seeds=list(plan.seeds),
            width=plan.width,
            height=plan.height,
            output_format=output_format,
            model=spec.name,
            timings=Timings(**{name: round(value, 4) for name, value in timings}),
            warnings=warnings,
        )

    async def _ready(self) -> FluxPipeline:
        """The loaded pipeline; waits for it, and begins to load it if nothing has."""
        if self._dead is not None:
            raise self._dead
        try:
            return await asyncio.shield(asyncio.wrap_future(self.start()))
        except ConfigurationError as error:
            raise NotReady(str(error)) from None

    async def _references(self, request: jobs.Request) -> list[Image.Image]:
        if not isinstance(request, EditRequest):
            return []
        limit = int(self._settings.max_reference_mb * 1e6)
        loads = [
            asyncio.wrap_future(self._cpu.submit(load_reference, image, f"images[{i}]", limit))
            for i, image in enumerate(request.images)
        ]
        return list(await asyncio.gather(*loads))

    def _draw(
        self,
        pipeline: FluxPipeline,
        request: jobs.Request,
        plan: jobs.Plan,
        references: list[Image.Image],
        files: list[Future[bytes]],
        timings: Timings,
        stop: threading.Event,
    ) -> list[Image.Image]:
        """All pictures of a job, one after another, in the GPU's thread."""

        def on_step(step: int, total: int) -> None:
            if stop.is_set():
                raise _Stop

        pictures = []
        if stop.is_set():
            raise asyncio.CancelledError
        prompt = pipeline.encode_prompt(plan.prompt)
        timings.encode_prompt = prompt.seconds
        how: dict[str, Any] = {
            "width": plan.width,
            "height": plan.height,
            "num_inference_steps": plan.num_inference_steps,
            "guidance_scale": plan.guidance_scale,
        }
        try:
            for seed in plan.seeds:
                if references:
                    drawn = pipeline.edit(prompt, references, seed=seed, on_step=on_step, **how)
                else:
                    drawn = pipeline.generate(prompt, seed=seed, on_step=on_step, **how)
                timings.denoise += drawn.denoise
                timings.decode += drawn.decode
                pictures.append(drawn.image)
                files.append(self._encode(request, plan, seed, drawn.image, request.output_format))
        except _Stop:
            # Nobody waits for this any more: the caller was answered when the stop was set.
            raise asyncio.CancelledError from None
        return pictures

    def _encode(
        self,
        request: jobs.Request,
        plan: jobs.Plan,
        seed: int,
        picture: Image.Image,
        output_format: Literal["png", "jpeg", "webp"],
    ) -> Future[bytes]:
        assert self.spec is not None
        provenance = delivery.Provenance(
            self.spec.name, seed, plan.num_inference_steps, request.prompt if request.embed_prompt else None
        )
        return self._cpu.submit(delivery.encode, picture, output_format, request.output_quality, provenance)

    async def _smaller(
        self,
        request: jobs.Request,
        plan: jobs.Plan,
        pictures: list[Image.Image],
        encoded: list[bytes],
        limit: int | None,
    ) -> tuple[Literal["png", "jpeg", "webp"], list[bytes]]:
        """The answer in a smaller format, if the job allows it and one fits; else the error that says so."""
        assert limit is not None
        if request.allow_format_change:
            formats: tuple[Literal["webp", "jpeg"], ...] = ("webp", "jpeg")
            for output_format in formats:
                if output_format == request.output_format:
                    continue
                files = [
                    self._encode(request, plan, s, p, output_format) for s, p in zip(plan.seeds, pictures, strict=True)
                ]
                smaller = [await asyncio.wrap_future(file) for file in files]
                if delivery.fits(smaller, limit):
                    return output_format, smaller
                encoded = min(encoded, smaller, key=delivery.answer_size)
        raise delivery.too_large(encoded, limit)

    def _load(self) -> FluxPipeline:
        """Chooses the model, finds or downloads its weights, loads them. In the GPU's thread."""
        begun = time.monotonic()
        settings = self._settings
        name = settings.model or _default_model(settings.device)
        self.spec = get_model(name)
        if settings.device is None and self.spec is not get_model("micro") and not _has_card():
            raise ConfigurationError(
                f"{name} needs a CUDA card and none can be used; IMAGEGEN_MODEL=micro draws without "
                "one, IMAGEGEN_DEVICE=cpu insists"
            )
        path = find_weights(self.spec, settings) or download_weights(self.spec, settings, self._progress)
        config = FluxConfig(self.spec, path, device=settings.device, offload=settings.offload, progress=self._progress)
        pipeline = FluxPipeline(config)
        try:
            pipeline.load()
        except ConfigurationError:
            log.exception("loading %s from %s failed", name, path)
            raise
        log.info("%s is loaded on %s in %.1f s", name, pipeline.device, time.monotonic() - begun)
        return pipeline


def _default_model(device: str | None) -> str:
    """klein-9b where there is a card, else micro, said aloud."""
    if device != "cpu" and _has_card():
        return "klein-9b"
    log.warning("no CUDA card was found: serving micro, a miniature that draws coloured shapes; IMAGEGEN_MODEL chooses")
    return "micro"


def _has_card() -> bool:
    import torch

    return torch.cuda.is_available()


async def _in_thread(pool: ThreadPoolExecutor, work: Callable[[], T]) -> T:
    """Runs `work` in the pool. Cancelled while it waits there, it never begins."""
    return await asyncio.wrap_future(pool.submit(work))
