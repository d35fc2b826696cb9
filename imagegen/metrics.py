"""What Prometheus may read of a worker. One registry a service, so that two in one process do not mix."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class Metrics:
    """The worker's figures."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "imagegen_requests", "HTTP requests by the status of their answer.", ["status"], registry=self._registry
        )
        self.jobs = Counter(
            "imagegen_jobs", "Jobs by outcome: ok, or the code of their error.", ["outcome"], registry=self._registry
        )
        self.pictures = Counter("imagegen_pictures", "Images generated.", registry=self._registry)
        self.prompts = Counter(
            "imagegen_prompts",
            "Prompts by whether their embeddings were kept.",
            ["cached"],
            registry=self._registry,
        )
        self.gpu_busy = Counter(
            "imagegen_gpu_busy_seconds", "Seconds in which the GPU worked.", registry=self._registry
        )
        self.refused = Counter(
            "imagegen_refused",
            "Requests refused by a limit, because of all callers (total) or of one (share).",
            ["limit", "because"],
            registry=self._registry,
        )
        self.in_use = Gauge("imagegen_in_use", "What of each limit is in use.", ["limit"], registry=self._registry)
        self.waiting = Gauge("imagegen_queue_length", "Jobs that wait for the GPU.", registry=self._registry)
        self.stages = Histogram(
            "imagegen_stage_seconds", "Time of a job's stages.", ["stage"], registry=self._registry, buckets=_SECONDS
        )
        self.gpu_memory = Gauge(
            "imagegen_gpu_memory_bytes", "Memory of the GPU that torch holds.", registry=self._registry
        )

    def text(self) -> bytes:
        """All figures in Prometheus' text format."""
        return generate_latest(self._registry)
