"""One job while it runs: what was asked for, who is notified, and what is known of it so far."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field

from PIL import Image

from imagegen.contract.events import Event, Generated, Listener
from imagegen.contract.requests import Request
from imagegen.contract.responses import Timings
from imagegen.contract.schemas import EditRequest
from imagegen.editing.photo import PhotoEdit
from imagegen.engine.admission import Place, Upload
from imagegen.engine.loras import Chosen
from imagegen.outputs.object_store import ObjectStore
from imagegen.telemetry.metrics import Metrics
from imagegen.telemetry.tracing import JobTrace


@dataclass
class Job:
    """One job. Whoever sets `stop` no longer waits for it."""

    id: str
    request: Request
    #: Of its images, where the request names none.
    default_seed: int
    #: For what callers share; None: the only one.
    caller: str | None = None
    listener: Listener | None = None
    #: How often each image is shown as it forms.
    previews: int = 0
    #: Bytes that its transport can carry; None: any.
    max_answer: int | None = None
    store: ObjectStore | None = None
    upload: Upload | None = None
    place: Place | None = None
    #: Where its listener is called.
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    #: Of time.monotonic().
    begun: float = field(default_factory=time.monotonic)
    stop: threading.Event = field(default_factory=threading.Event)
    timings: Timings = field(default_factory=Timings)
    references: list[Image.Image] = field(default_factory=list)
    #: Of its first reference, at that one's own size; None where the whole image is the answer.
    edit: PhotoEdit | None = None
    #: The LoRA adapters that it asks for.
    loras: Chosen = field(default_factory=Chosen)
    warnings: list[str] = field(default_factory=list)
    trace: JobTrace = field(default_factory=lambda: JobTrace("job"))
    #: ok or an error's code, once it has ended.
    outcome: str | None = None
    #: Whether the cache had the prompt's embeddings; None before they are there.
    prompt_cached: bool | None = None
    #: Seconds of the GPU that are not counted yet.
    _gpu_seconds: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def spent(self, stage: str, seconds: float, ago: float = 0.0) -> None:
        """Part of a stage took `seconds` and ended `ago` seconds before now: for the job's timings and its trace."""
        with self._lock:  # several threads put a job's images into their photo
            setattr(self.timings, stage, getattr(self.timings, stage) + seconds)
        self.trace.stage(stage, seconds, ago)

    def spend(self, seconds: float, metrics: Metrics) -> None:
        """The GPU has worked for it; counted by its outcome, also where that was known before the GPU was done."""
        with self._lock:
            self._gpu_seconds += seconds
            self._count_gpu_seconds(metrics)

    def end(self, outcome: str, metrics: Metrics) -> None:
        """It has ended, and is counted."""
        metrics.jobs.labels(self.request.mode, outcome).inc()
        with self._lock:
            self.outcome = outcome
            self._count_gpu_seconds(metrics)

    def _count_gpu_seconds(self, metrics: Metrics) -> None:
        if self.outcome is not None:
            metrics.job_gpu_seconds.labels(self.request.mode, self.outcome).inc(self._gpu_seconds)
            self._gpu_seconds = 0.0

    def notify(self, event: Event) -> None:
        """Notifies the listener, from any thread, in the loop's; of nothing after the job has ended."""
        with suppress(RuntimeError):  # the loop was closed, and with it whoever listened
            self.loop.call_soon_threadsafe(self._notify, event)

    def _notify(self, event: Event) -> None:
        if self.stop.is_set():
            return
        if isinstance(event, Generated) and self.place is not None:
            self.place.give_back()
        if self.listener is not None:
            self.listener(event)

    def let_go_of_references(self) -> None:
        """Frees the request's references as they were sent, up to 27 MB each, which nobody needs once they are decoded.
        Whoever else holds the request has them no more."""
        let_go_of_references(self.request)
        if self.upload is not None:
            self.upload.release()


def let_go_of_references(request: Request) -> None:
    """Empties a request's references; requests are frozen, for all but these bytes."""
    if isinstance(request, EditRequest):
        request.images[:] = [""] * len(request.images)
        if request.mask is not None:
            object.__setattr__(request, "mask", "")
