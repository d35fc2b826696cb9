"""What Prometheus may read of a worker. One registry a service, so that two in one process do not mix.

Names and units follow https://prometheus.io/docs/practices/naming/. No label has a value that a caller chooses.
"""

from __future__ import annotations

import platform
import shutil
from collections.abc import Iterable
from pathlib import Path

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Enum,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from imagegen.errors import ImageGenError
from imagegen.telemetry.gpu_device import GpuDevice
from imagegen.telemetry.gpu_time import IDLE_REASONS, GpuTime

disable_created_metrics()  # type: ignore[no-untyped-call] # a second series for each, of use to nobody here

#: Fine between 0.2 and 2 s, where most images are: 0.38 s and 0.53 s must not look alike.
_SECONDS = (0.01, 0.03, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1, 1.3, 1.6, 2, 3, 5, 10, 30, 60, 120, 300, 600)
_CHARACTERS = (30, 100, 300, 1_000, 3_000, 10_000)
#: Sizes of images, in units of 1024x1024 pixels.
_SIZES = (0.25, 0.5, 1, 2, 4)
#: Of a job that is refused before it is known whether it is an edit, and of others.
MODES = ("unknown", "generate", "edit")
STATES = ("starting", "loading", "idle", "ready", "busy", "draining", "failed")


def size_class(width: int, height: int) -> str:
    """The label of an image's size: the least of 0.25, 0.5, 1, 2 and 4 times 1024x1024 pixels that it is not over."""
    pixels = width * height / 2**20
    return next((f"{size:g}" for size in _SIZES if pixels <= size), "more")


class Metrics:
    """The worker's figures."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)

        # 1. Requests and jobs
        self.requests = Counter(
            "imagegen_requests",
            "HTTP requests by their route and the status of their answer.",
            ["route", "status"],
            registry=registry,
        )
        self.jobs = Counter(
            "imagegen_jobs",
            "Jobs by outcome: ok, or the code of their error.",
            ["mode", "outcome"],
            registry=registry,
        )
        self.job_seconds = Histogram(
            "imagegen_job_seconds",
            "Time of the jobs that succeeded, by the size of their images in units of 1024x1024 pixels.",
            ["mode", "size"],
            registry=registry,
            buckets=_SECONDS,
        )
        self.stages = Histogram(
            "imagegen_stage_seconds", "Time of a job's stages.", ["mode", "stage"], registry=registry, buckets=_SECONDS
        )
        self.generated = Counter("imagegen_images_generated", "Images that the GPU has made.", registry=registry)
        self.pictures = Counter("imagegen_pictures", "Images that were delivered.", registry=registry)

        # 2. What jobs bring
        self.prompts = Counter(
            "imagegen_prompts", "Prompts by whether their embeddings were kept.", ["cached"], registry=registry
        )
        self.prompt_length = Histogram(
            "imagegen_prompt_characters", "Length of prompts.", registry=registry, buckets=_CHARACTERS
        )
        self.reference_bytes = Counter(
            "imagegen_reference_bytes",
            "Bytes of reference images, by where they came from: the request itself, or a URL.",
            ["source"],
            registry=registry,
        )

        # 3. Limits and the queue
        self.refused = Counter(
            "imagegen_refused",
            "Requests refused by a limit, because of all callers (total) or of one (share).",
            ["limit", "because"],
            registry=registry,
        )
        self.in_use = Gauge("imagegen_in_use", "What of each limit is in use.", ["limit"], registry=registry)
        self.limit = Gauge("imagegen_limit", "What there is of each limit.", ["limit"], registry=registry)
        self.waiting = Gauge("imagegen_queue_length", "Jobs that wait for the GPU.", registry=registry)
        self.running = Gauge("imagegen_jobs_running", "Jobs that run.", registry=registry)
        self.oldest = Gauge(
            "imagegen_oldest_job_seconds", "Age of the oldest job that the GPU is not done with.", registry=registry
        )

        # 4. The GPU's time, which is what is paid
        self.gpu_busy = Counter("imagegen_gpu_busy_seconds", "Seconds in which the GPU worked.", registry=registry)
        self.gpu_idle = Counter(
            "imagegen_gpu_idle_seconds",
            "Seconds in which the GPU did not work though the model was loaded: there was no job (no_job); the jobs "
            "here waited for reference images or for memory (preparing); a job was ready and not begun (host).",
            ["reason"],
            registry=registry,
        )
        self.job_gpu_seconds = Counter(
            "imagegen_job_gpu_seconds",
            "Seconds of the GPU by the outcome of the job that they were for.",
            ["mode", "outcome"],
            registry=registry,
        )
        self.gpu_time = GpuTime(self._spend)
        #: The GPU itself, once the model is loaded and its state is known.
        self.device: GpuDevice | None = None
        self.gpu_memory = Gauge("imagegen_gpu_memory_bytes", "Memory of the GPU that torch holds.", registry=registry)

        # 5. Stored jobs
        self.stored_waiting = Gauge("imagegen_stored_jobs_waiting", "Jobs of /jobs that wait.", registry=registry)
        self.stored_limit = Gauge(
            "imagegen_stored_jobs_limit", "Jobs of /jobs that may wait (IMAGEGEN_JOBS_MAX_WAITING).", registry=registry
        )
        self.stored_bytes = Gauge(
            "imagegen_stored_bytes", "Bytes of the references and images of stored jobs.", registry=registry
        )
        self.webhooks = Counter(
            "imagegen_webhooks",
            "Tries to deliver a webhook: delivered, failed and to be repeated, or given up.",
            ["outcome"],
            registry=registry,
        )

        # 6. The worker
        self.state = Enum("imagegen_state", "What the worker is doing.", registry=registry, states=list(STATES))
        self.start = Gauge(
            "imagegen_start_seconds", "Seconds of each stage of the start.", ["stage"], registry=registry
        )
        self.disk = Gauge(
            "imagegen_disk_free_bytes",
            "What is free where the worker writes: temporary files, and the cache of weights.",
            ["folder"],
            registry=registry,
        )
        self.build = Gauge(
            "imagegen_build_info",
            "What runs here, with the value 1.",
            ["version", "model", "transformer", "text_encoder", "offload", "device", "python"],
            registry=registry,
        )
        self._begin_at_zero()

    def record_build(self, **what: str) -> None:
        """Says what runs here, by the labels of imagegen_build_info; an empty string is what is not known."""
        self.build.clear()
        self.build.labels(python=platform.python_version(), **what).set(1)

    def record_disk(self, **folders: Path) -> None:
        """Says what is free at each folder; a folder that is not there yet counts as the one that it will be in."""
        for name, folder in folders.items():
            there = next((path for path in (folder, *folder.parents) if path.exists()), Path("/"))
            self.disk.labels(name).set(shutil.disk_usage(there).free)

    def watch(self, device: GpuDevice | None) -> None:
        """From now on also shows the state of this GPU, if it is one whose state is known."""
        if device is not None and self.device is None:
            self.device = device
            self._registry.register(device)

    def text(self) -> bytes:
        """All figures in Prometheus' text format."""
        self.gpu_time.settle()
        return generate_latest(self._registry)

    def figures(self) -> dict[str, float]:
        """All figures by name and labels, as in the text format; of histograms the sum and the count."""
        self.gpu_time.settle()
        return {
            sample.name + _labels(sample.labels.items()): sample.value
            for family in self._registry.collect()
            for sample in family.samples
            if not sample.name.endswith("_bucket")
        }

    def _spend(self, state: str, seconds: float) -> None:
        (self.gpu_busy if state == "busy" else self.gpu_idle.labels(state)).inc(seconds)

    def _begin_at_zero(self) -> None:
        """A series that begins with its first event has no rate for it; it begins at 0."""
        for outcome in ("delivered", "failed", "given_up"):
            self.webhooks.labels(outcome)
        for mode in MODES:
            for outcome in ("ok", *(error.code for error in ImageGenError.__subclasses__())):
                self.jobs.labels(mode, outcome)
                self.job_gpu_seconds.labels(mode, outcome)
        for reason in IDLE_REASONS:
            self.gpu_idle.labels(reason)
        for cached in ("true", "false"):
            self.prompts.labels(cached)
        for source in ("request", "url"):
            self.reference_bytes.labels(source)


def _labels(pairs: Iterable[tuple[str, str]]) -> str:
    inside = ",".join(f'{name}="{value}"' for name, value in pairs)
    return f"{{{inside}}}" if inside else ""
