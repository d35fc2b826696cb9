"""What this worker needs of the inside of RunPod's SDK (runpod 1.12), and what it puts in its place.

The SDK has no public way to replace its loop or to bound the delivery of answers. A version that works otherwise would
go on as if nothing was the matter, and lose jobs: an answer would be tried for three seconds, a job that SIGTERM meets
would never be answered; and its own log holds every output. So each name is checked before the first job, and where one
is gone the worker does not start.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable
from importlib import import_module
from importlib.metadata import version
from operator import attrgetter
from typing import Any

from runpod.serverless.modules import rp_http, rp_scale
from runpod.serverless.modules.rp_logger import RunPodLogger

from imagegen.errors import ConfigurationError

#: (module, function, names that it must use): where the SDK calls what is replaced or overridden here.
_USED: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("worker", "run_worker", ("rp_scale", "JobScaler", "start")),
    ("modules.rp_http", "_handle_result", ("_transmit", "ClientError")),
    ("modules.rp_http", "send_result", ("_handle_result",)),
    ("modules.rp_http", "stream_result", ("_handle_result",)),
    ("modules.rp_job", "handle_job", ("send_result", "stream_result")),
    ("modules.rp_scale", "JobScaler.run", ("get_jobs", "run_jobs", "monitor_stop_signals")),
    ("modules.rp_scale", "JobScaler.get_jobs", ("jobs_fetcher", "jobs_fetcher_timeout", "is_alive", "job_progress")),
    ("modules.rp_scale", "JobScaler.run_jobs", ("handle_job", "jobs_tasks", "jobs_queue", "is_alive")),
    ("modules.rp_scale", "JobScaler.monitor_stop_signals", ("stop_signals_fetcher", "stop_job")),
    ("modules.rp_scale", "JobScaler.stop_job", ("jobs_tasks", "cancel")),
    ("modules.rp_scale", "JobScaler.handle_job", ("jobs_handler", "job_progress", "jobs_tasks")),
    ("modules.rp_scale", "JobScaler.kill_worker", ("_shutdown_event",)),
    ("modules.rp_scale", "JobScaler.is_alive", ("_shutdown_event",)),
)
_LEVELS = {"INFO": logging.INFO, "WARN": logging.WARNING, "ERROR": logging.ERROR}


def adopt_log() -> None:
    """Sends the SDK's lines through the worker's log, but for those below INFO: they hold outputs.

    Raises:
        ConfigurationError: this version of the SDK writes its log another way.
    """
    for level in ("debug", "info", "warn", "error"):
        _check("modules.rp_logger", f"RunPodLogger.{level}", ("log",))

    def write(_: Any, message: object, message_level: str = "INFO", job_id: str | None = None) -> None:
        if message_level in _LEVELS:
            extra = {"facts": {"requestId": job_id}} if job_id else {}
            logging.getLogger("runpod").log(_LEVELS[message_level], "%s", message, extra=extra)

    RunPodLogger.log = write


def install(make_loop: Callable[[dict[str, Any]], Any], deliver: Callable[[Any, str, str], Awaitable[None]]) -> None:
    """Has the SDK run the loop that `make_loop` returns for its configuration, and post answers with `deliver`.

    Raises:
        ConfigurationError: this version of the SDK does not use what would be replaced.
    """
    for module, function, names in _USED:
        _check(module, function, names)
    if list(inspect.signature(rp_http._transmit).parameters) != ["client_session", "url", "job_data"]:
        raise _changed("modules.rp_http._transmit takes other arguments")
    rp_scale.JobScaler = make_loop
    rp_http._transmit = deliver


def _check(module: str, function: str, names: tuple[str, ...]) -> None:
    """Raises ConfigurationError where a function of the SDK is gone, or does not use these names."""
    try:
        code = attrgetter(function)(import_module(f"runpod.serverless.{module}")).__code__
    except (AttributeError, ImportError):
        raise _changed(f"{module}.{function} is gone") from None
    if missing := [name for name in names if name not in code.co_names]:
        raise _changed(f"{module}.{function} does not use {missing[0]}")


def _changed(what: str) -> ConfigurationError:
    return ConfigurationError(
        f"runpod {version('runpod')} is not the version that this worker was made for ({what}); "
        "install the one that constraints.txt names"
    )
