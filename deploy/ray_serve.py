"""image-gen as a Ray Serve application, for those who own several GPUs: one ingress, and a replica for each GPU.

    pip install 'ray[serve]'
    IMAGEGEN_MODEL=klein-9b serve run deploy.ray_serve:app min_replicas=1 max_replicas=4

The ingress is the HTTP door with all its routes, keys and limits; only the road behind it goes on in a replica, which
holds a model and a GPU. A job's seed is drawn before its first try: where a replica dies, another makes the same
picture, and the caller does not notice. Docs: docs/ray.md.
"""

from __future__ import annotations

import asyncio
import os
import secrets
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
from imagegen.contract.events import Event
from imagegen.contract.schemas import GenerateResponse
from imagegen.engine.event_queue import EventQueue
from imagegen.engine.gpu_executor import Job
from imagegen.engine.service import Service
from imagegen.errors import ConfigurationError, GpuFailed, ImageGenError
from imagegen.models import get_model
from imagegen.server import streams
from imagegen.server.main import create_app
from imagegen.settings import Settings, get_settings

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
    """A model on a GPU, and the road to it."""

    def __init__(self) -> None:
        settings = get_settings()
        logs.configure(settings)
        self._service = Service(settings)
        self._service.start().result()

    def ready(self) -> None:
        """Answers once the model is loaded: Serve asks no replica before its constructor is done."""

    async def run(
        self, request: requests.Request, job_id: str, seed: int, previews: int
    ) -> AsyncIterator[Event | GenerateResponse | ImageGenError]:
        """A job's events, and at the end its answer or its error. A dead card ends the process, answer and all."""

        async def work() -> GenerateResponse:
            with logs.request(job_id):
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
        if self._service.executor.dead is not None:
            os._exit(1)  # as `python -m imagegen` ends: Serve starts another, the ingress sends its jobs elsewhere
        yield answer


class Fleet(Service):
    """The road as the ingress has it: admission, deadline, cancellation and figures here, the rest in a replica."""

    def __init__(self, settings: Settings, replicas: DeploymentHandle) -> None:
        super().__init__(settings)
        if self.spec is None:
            # Its node may have no card, and would choose another model than the replicas.
            raise ConfigurationError("IMAGEGEN_MODEL: must be set for the ingress and the replicas, and to the same")
        self._replicas = replicas

    def _load(self) -> Any:
        self._note_stage("waiting for the first replica")
        self._replicas.ready.remote().result()
        return _Remote()

    async def _run(self, job: Job, default_seed: int | None) -> GenerateResponse:
        request, begun = job.request, time.monotonic()
        logs.note(mode=request.mode, images=request.num_images)
        requests.check(request, get_model(self.settings.model or ""), self.settings)
        seed = secrets.randbelow(2**32) if default_seed is None else default_seed
        for tries in range(1, _TRIES + 1):
            logs.note(tries=tries)
            answer = self._replicas.options(stream=True).run.remote(request, job.id, seed, job.previews)
            try:
                async for item in answer:
                    if isinstance(item, ImageGenError):
                        raise item
                    if isinstance(item, GenerateResponse):
                        # What the replica does not know of: the wait here, and the way.
                        away = round(time.monotonic() - begun - item.timings.total, 4)
                        item.timings.queue, item.timings.total = item.timings.queue + away, item.timings.total + away
                        job.timings = item.timings
                        return item
                    job.notify(item)
            except (RayActorError, ActorUnavailableError, ReplicaUnavailableError):
                continue
            finally:
                answer.cancel()
        raise GpuFailed(f"{_TRIES} replicas ended while they made this picture")


class _Remote:
    """What the road asks of a loaded model, where that is elsewhere."""

    device = "ray"
    #: Each replica has its own, and says so in its log.
    times, config = None, SimpleNamespace(plan=None)

    def gpu_memory(self) -> None:
        """Each replica has its own."""

    def unload(self) -> None:
        """A replica unloads with its process."""


@serve.deployment(max_ongoing_requests=10_000)  # IMAGEGEN_MAX_QUEUE is the bound
@serve.ingress()
class Ingress:
    """The HTTP door."""

    def __init__(self, replicas: DeploymentHandle) -> None:
        self._replicas = replicas

    def __serve_build_asgi_app__(self) -> FastAPI:
        """For Serve: the same application as `imagegen.server.main:app`."""
        settings = get_settings()
        logs.configure(settings)
        return create_app(settings, Fleet(settings, self._replicas))


def app(args: Args) -> Application:
    """The application, for `serve run` and serve configs."""
    replicas = serve.deployment(
        Replica,
        max_ongoing_requests=_JOBS_OF_A_REPLICA,
        autoscaling_config={
            "min_replicas": args.min_replicas,
            "max_replicas": max(args.min_replicas, args.max_replicas),
            # What waits at the ingress counts: a replica more as soon as each has a job more than it can begin.
            "target_ongoing_requests": _JOBS_OF_A_REPLICA,
            "upscale_delay_s": 10,
            "downscale_delay_s": 300,
        },
        ray_actor_options={"num_gpus": args.gpus, "num_cpus": args.cpus},
    )
    return cast(Application, cast(Any, Ingress).bind(replicas.bind()))
