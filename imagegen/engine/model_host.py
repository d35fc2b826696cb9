"""The life of the model: chosen, loaded once, loaded again some time after a failure, unloaded; and its state."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol

from imagegen.contract.responses import HealthResponse
from imagegen.contract.start_times import StartTimes
from imagegen.engine.gpu_executor import GpuExecutor
from imagegen.errors import ConfigurationError, LoadFailed, NotReady, Unavailable
from imagegen.memory.plan import MemoryPlan
from imagegen.model.loading import choose_model
from imagegen.models import MODELS, ModelSpec
from imagegen.settings import Settings

#: A failed load is not tried again sooner: until then each job is answered with its error at once.
_RETRY_SECONDS = 30.0


class HasPlan(Protocol):
    """The configuration of a loaded model."""

    @property
    def plan(self) -> MemoryPlan | None:
        """Where its parts live; None where that is not known here."""


class LoadedModel(Protocol):
    """What the state of a worker needs of its model: imagegen.model.pipeline.FluxPipeline, or one elsewhere."""

    @property
    def config(self) -> HasPlan:
        """How it was loaded."""

    @property
    def device(self) -> str | None:
        """Where it is."""

    @property
    def times(self) -> StartTimes | None:
        """Seconds of each stage of the start."""

    def gpu_memory(self) -> int | None:
        """Bytes of the GPU's memory that it holds."""

    def unload(self) -> None:
        """Frees its memory."""


class ModelHost:
    """Holds the one model of this process.

    Args:
        executor: loads and unloads in its thread.
        load: returns the loaded model. It may call `note_stage`, and sets `spec` as soon as the model is chosen.
    """

    def __init__(self, settings: Settings, executor: GpuExecutor, load: Callable[[ModelHost], LoadedModel]) -> None:
        self._settings, self._executor, self._load = settings, executor, load
        #: What is served: known from the start where the settings name it, else as soon as it is chosen.
        self.spec: ModelSpec | None = MODELS.get(settings.model or "")
        self._loading: Future[LoadedModel] | None = None
        self._model: LoadedModel | None = None
        self._closed = False
        self._stage = "starting"
        self._lock = threading.Lock()
        self._failed_at = 0.0

    def choose(self) -> None:
        """Chooses the model, where the settings do not name it by whether there is a GPU; takes seconds then.

        Raises:
            ConfigurationError: there is no such model, or it cannot run here.
        """
        if self.spec is None:
            self.spec = choose_model(self._settings)

    def note_stage(self, stage: str) -> None:
        """Records what loading is doing."""
        self._stage = stage

    def start(self) -> Future[LoadedModel]:
        """Begins to load the model, once, and again some time after a failure; the future ends when it is loaded.

        The future raises ConfigurationError where the model is unknown or its weights are not available, and NotReady
        where the host was closed meanwhile.
        """
        with self._lock:
            failed = self._loading is not None and self._loading.done() and self._loading.exception() is not None
            if self._loading is None or (failed and time.monotonic() - self._failed_at > _RETRY_SECONDS):
                self._loading = self._executor.submit(self._load_once)
            return self._loading

    def _load_once(self) -> LoadedModel:
        try:
            model = self._load(self)
        except BaseException:
            self._failed_at = time.monotonic()
            raise
        with self._lock:
            if not self._closed:
                self._model = model
                return model
        model.unload()
        raise NotReady("the worker is ending; another will answer", retry_after=1)

    @property
    def failed(self) -> str | None:
        """Why the model cannot be loaded, now or later; None where it is, or may be."""
        loading = self._loading
        if loading is None or not loading.done():
            return None
        error = loading.exception()
        return str(error) if isinstance(error, ConfigurationError) and not isinstance(error, Unavailable) else None

    async def ready(self) -> None:
        """Waits until the model is loaded, and begins to load it if nothing has.

        Raises:
            LoadFailed: it cannot be loaded.
            NotReady: it cannot be loaded now, or the worker is ending.
            GpuFailed: the GPU is dead.
        """
        self._executor.check()
        try:
            await asyncio.shield(asyncio.wrap_future(self.start()))
        except Unavailable as error:
            raise NotReady(str(error), retry_after=math.ceil(_RETRY_SECONDS)) from None
        except ConfigurationError as error:
            raise LoadFailed(str(error)) from None

    def check_loaded(self) -> None:
        """Raises NotReady while the model is loading."""
        if self._loading is not None and not self._loading.done():
            raise NotReady(f"the model is not loaded yet ({self._stage})", retry_after=5)

    def close(self) -> None:
        """Unloads the model and ends the GPU's thread. A load that is going on is not waited for: its thread unloads
        what it has loaded, and ends. A GPU that hangs is waited for until it counts as dead."""
        with self._lock:
            if self._closed:
                return
            self._closed, model, loading = True, self._model, self._loading
        if model is not None:
            self._executor.close(model.unload)
        else:
            self._executor.close(None if loading is not None and not loading.done() else lambda: None)

    def describe(self, state: HealthResponse) -> None:
        """Fills in the state of the model: `status` from starting to ready or failed, and what is known of it."""
        state.model = self.spec.name if self.spec else self._settings.model or "unknown"
        loading = self._loading
        if self._executor.dead is not None:
            state.status, state.message = "failed", self._executor.dead
        elif loading is None:
            state.status = "starting" if self._settings.preload_models else "idle"
        elif not loading.done():
            state.status, state.stage = "loading", self._stage
        elif (error := loading.exception()) is not None:
            state.status, state.message = "failed", "the model could not be loaded; the log says why"
            if isinstance(error, ConfigurationError):
                state.message = str(error)
        else:
            model = loading.result()
            state.status = "ready"
            state.device, state.gpu_memory, state.start = model.device, model.gpu_memory(), model.times
            if (plan := model.config.plan) is not None:
                state.memory = plan.state
