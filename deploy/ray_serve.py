"""image-gen as a Ray Serve application, for those who own several GPUs: one ingress, and a replica for each GPU.

    pip install 'ray[serve]'
    IMAGEGEN_MODEL=klein-9b serve run deploy.ray_serve:app min_replicas=1 max_replicas=4

The ingress is the HTTP server with all its routes, keys and limits; jobs run in replicas, each of which holds a model
and a GPU. A job's seed is chosen before its first try: where a replica dies, another makes the same image, and the
caller does not notice. Docs: docs/ray.md.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.exceptions import ActorUnavailableError, RayActorError
from ray.serve import Application
from ray.serve.exceptions import ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle

from imagegen import logs
from imagegen.contract import requests
from imagegen.contract.events import Event, Queued
from imagegen.contract.responses import GenerateResponse
from imagegen.engine.event_queue import EventQueue
from imagegen.engine.job import Job
from imagegen.engine.model_host import ModelHost
from imagegen.engine.service import Service
from imagegen.errors import ConfigurationError, GpuFailed, ImageGenError
from imagegen.server import streams
from imagegen.server.main import create_app
from imagegen.settings import Settings, get_settings
from imagegen.telemetry import tracing

#: Replicas that a job may end before it is the job that is at fault.
_TRIES = 3
#: A replica has one job on its GPU and the next at hand; all others wait at the ingress, for whichever is free first.
_JOBS_OF_A_REPLICA = 2


class Args(BaseModel):
    """What `serve run` or a serve config may say; everything else is the environment of each node."""

    model_config = ConfigDict(extra="forbid")

    min_replicas: int = Field(1, ge=1)
    max_replicas: int = Field(1, ge=1)
    gpus: float = Field(1, ge=0, description="GPUs of a replica; 0 for micro on CPUs.")
    cpus: float = Field(1, ge=0, description="Processors that Ray sets aside for a replica.")


class Replica:
    """A model on a GPU, and its service."""

    def __init__(self) -> None:
        settings = get_settings()
        logs.configure(settings)
        self._service = Service(settings)
        self._service.start().result()

    def ready(self) -> None:
        """Answers once the model is loaded: Serve asks no replica before its constructor is done."""

    async def run(
        self, request: requests.Request, job_id: str, seed: int, previews: int, trace: dict[str, str]
    ) -> AsyncIterator[Event | GenerateResponse | ImageGenError]:
        """A job's events, and at the end its answer or its error. A dead GPU ends the process without an answer."""

        async def work() -> GenerateResponse:
            with logs.request(job_id), tracing.request("replica", trace, "server"):
                return await self._service.run(
                    request, job_id=job_id, default_seed=seed, listener=events.listen, previews=previews
                )

        events = EventQueue()
        task = asyncio.create_task(work())
        try:
            async for event in events.follow(task):
                yield event
            answer = await streams.result_or_error(task)
        finally:
            task.cancel()
        if self._service.fatal is not None:
            os._exit(1)  # as `python -m imagegen` ends: Serve starts another, the ingress sends its jobs elsewhere
        yield answer


class ReplicaRunner:
    """Runs the jobs of the ingress in its replicas. Admission, deadline, cancellation and metrics stay at the ingress.

    Raises:
        ConfigurationError: no model is named: the ingress's node may have no GPU, and would choose another model than
            the replicas.
    """

    #: Known in each replica.
    mean_prepare_seconds = 0.0

    def __init__(self, settings: Settings, replicas: DeploymentHandle, most: int) -> None:
        if settings.model is None:
            raise ConfigurationError("IMAGEGEN_MODEL: must be set for the ingress and the replicas, and to the same")
        self._replicas = replicas
        self.jobs_at_once = most * _JOBS_OF_A_REPLICA

    def load(self, host: ModelHost) -> RemoteModel:
        """Waits for the first replica."""
        host.note_stage("waiting for the first replica")
        self._replicas.ready.remote().result()
        return RemoteModel()

    async def run(self, job: Job) -> GenerateResponse:
        """Runs a job in a replica; in another one where the replica ends."""
        for tries in range(1, _TRIES + 1):
            logs.note(tries=tries)
            replica = self._replicas.options(stream=True)
            items = replica.run.remote(job.request, job.id, job.default_seed, job.previews, job.trace.headers)
            try:
                async for item in items:
                    if isinstance(item, ImageGenError):
                        raise item
                    if isinstance(item, GenerateResponse):
                        # What the replica does not know of: the wait here, and the way.
                        away = round(time.monotonic() - job.begun - item.timings.total, 4)
                        item.timings.queue, item.timings.total = item.timings.queue + away, item.timings.total + away
                        job.timings = item.timings
                        return item
                    if not isinstance(item, Queued):  # the ingress has said so
                        job.notify(item)
            except (RayActorError, ActorUnavailableError, ReplicaUnavailableError):
                continue
            finally:
                items.cancel()
        raise GpuFailed(f"{_TRIES} replicas ended while they ran this job")

    def close(self) -> None:
        """Serve ends the replicas."""


class RemoteModel:
    """A model in the replicas, each of which has its own device, plan and times, and says so in its log."""

    device = "ray"
    times = None
    config = SimpleNamespace(plan=None)

    def gpu_memory(self) -> None:
        """Known in each replica."""

    def unload(self) -> None:
        """A replica unloads with its process."""


@serve.deployment(max_ongoing_requests=10_000)  # IMAGEGEN_MAX_QUEUE is the bound
@serve.ingress()
class Ingress:
    """The HTTP server."""

    def __init__(self, replicas: DeploymentHandle, most: int) -> None:
        self._replicas, self._most = replicas, most

    def __serve_build_asgi_app__(self) -> FastAPI:
        """For Serve: the same application as `imagegen.server.main:app`."""
        settings = get_settings()
        logs.configure(settings)
        return create_app(settings, Service(settings, runner=ReplicaRunner(settings, self._replicas, self._most)))


def app(args: Args) -> Application:
    """The application, for `serve run` and serve configs."""
    most = max(args.min_replicas, args.max_replicas)
    replicas = serve.deployment(
        Replica,
        max_ongoing_requests=_JOBS_OF_A_REPLICA,
        autoscaling_config={
            "min_replicas": args.min_replicas,
            "max_replicas": most,
            # What waits at the ingress counts: a replica more as soon as each has a job more than it can begin.
            "target_ongoing_requests": _JOBS_OF_A_REPLICA,
            "upscale_delay_s": 10,
            "downscale_delay_s": 300,
        },
        ray_actor_options={"num_gpus": args.gpus, "num_cpus": args.cpus},
    )
    return cast(Application, cast(Any, Ingress).bind(replicas.bind(), most))
