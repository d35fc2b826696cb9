"""The process that works off RunPod's queue, from its start to its end."""

from __future__ import annotations

import asyncio
import logging
from functools import partial

import runpod

from imagegen.engine.ending import end_process
from imagegen.engine.service import Service
from imagegen.errors import ConfigurationError
from imagegen.runpod import sdk
from imagegen.runpod.adapter import Answer, RunPodAdapter
from imagegen.runpod.delivery import deliver
from imagegen.runpod.queue_loop import QueueLoop
from imagegen.telemetry.report import Report

log = logging.getLogger(__name__)


def run(service: Service, answer: Answer) -> int:
    """Works off RunPod's queue, or serves its API on this machine (`--rp_serve_api`), and ends the process then.

    Returns:
        The exit status, where it did not start. (Where the model cannot be loaded for the queue, the SDK ends the
        process with status 1.)

    Raises:
        ConfigurationError: the SDK's version is not one that this worker knows.
    """
    settings = service.settings
    adapter = RunPodAdapter(service, answer)
    sdk.adopt_log()
    sdk.install(partial(QueueLoop, service, adapter), deliver)
    if settings.preload_models and settings.queue_url is not None:

        async def model() -> None:
            await asyncio.wrap_future(service.start())

        runpod.serverless.register_fitness_check(model)
    elif settings.preload_models:
        try:
            service.start().result()
        except ConfigurationError as error:
            log.error("%s", error)
            return 1
    report = Report(service.figures)
    report.start()
    runpod.serverless.start(adapter.config)
    service.drain()
    report.end()
    end_process(service)
