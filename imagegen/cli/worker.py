"""Processes jobs from RunPod's queue; or runs one job, or serves RunPod's API on this machine.

    imagegen worker                                      RunPod's queue; elsewhere the same as --test_input
    imagegen worker --test_input                         run test_input.json and write its images to outputs/
    imagegen worker --test_input '{"input": {...}}'      run this job
    imagegen worker --test_input FILE.json               run the job in this file
    imagegen worker --rp_serve_api [--rp_api_port N]     serve RunPod's API on this machine (port 8000)

`python handler.py` takes the same options.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path
from typing import Any

from imagegen import logs
from imagegen.cli import CommandError
from imagegen.cli.jobs import check_folder, show, write_images
from imagegen.cli.serve import listen, port_number
from imagegen.settings import Settings, get_settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options; the names that begin with rp_ are RunPod's SDK's, which reads them itself."""
    parser.add_argument(
        "--test_input",
        nargs="?",
        const="test_input.json",
        metavar="JSON",
        help="run one job: a file, JSON, or test_input.json",
    )
    parser.add_argument("--rp_serve_api", action="store_true", help="serve RunPod's API on this machine")
    parser.add_argument("--rp_api_host", metavar="ADDRESS", help="where that API listens; default: localhost")
    parser.add_argument("--rp_api_port", type=port_number, metavar="N", help="its port; default: 8000")
    parser.add_argument("--rp_api_concurrency", type=int, metavar="N", help="processes of that API; only 1 works")
    parser.add_argument("--rp_log_level", choices=("ERROR", "WARN", "INFO", "DEBUG"), help="of the SDK's own log")
    parser.add_argument("--rp_debugger", action="store_true", help="the SDK's debugger")


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit status."""
    settings = get_settings()
    logs.configure(settings)
    if args.test_input is not None:
        return run_test_input(args.test_input)
    if not args.rp_serve_api and settings.queue_url is None:
        if settings.serve == "queue" or not Path("test_input.json").exists():
            raise CommandError("RUNPOD_WEBHOOK_GET_JOB is not set, so there is no queue; --test_input runs a job")
        return run_test_input("test_input.json")
    if args.rp_serve_api:  # a port in use is said before the model is loaded
        listen(args.rp_api_host or "localhost", args.rp_api_port or 8000, "--rp_api_port").close()
    return serve_queue(settings, args.rp_serve_api)


def serve_queue(settings: Settings, locally: bool = False) -> int:
    """Processes jobs from RunPod's queue, or serves its API on this machine; returns the exit status.

    Raises:
        ConfigurationError: a setting is wrong beside another.
    """
    from imagegen.runpod.handler import answer, service

    if settings.preload_models:
        service().start()
    # Beside the loading: importing the SDK takes a second, in which it asks a subprocess for the processor's name.
    from imagegen.runpod import worker

    if locally:
        from imagegen.runpod import local_api

        local_api.install()
    return worker.run(service(), answer)


def run_test_input(source: str) -> int:
    """Runs the job of a file or of a JSON text, writes its images and prints what came; returns 0.

    Raises:
        CommandError: there is no such job, or it failed.
    """
    from imagegen.runpod.handler import handler

    job = _read_job(source)
    check_folder(None)
    output = asyncio.run(handler(job))
    if "error" in output:
        raise CommandError(output["error"])
    show(output, write_images(output, None))
    return 0


def _read_job(source: str) -> Any:
    """The job in a file, or in the text itself where that is JSON.

    Raises:
        CommandError: there is no such file, or it is not JSON.
    """
    text, name = source, "--test_input"
    if not source.lstrip().startswith(("{", "[")):
        name = source
        try:
            text = Path(source).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CommandError(f"{source}: cannot be read ({type(error).__name__}); give a file, or JSON") from None
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CommandError(f"{name}: is not JSON ({error})") from None
