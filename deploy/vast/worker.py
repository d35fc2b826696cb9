"""Vast Serverless: what Vast's PyWorker must know of image-gen's HTTP server, which runs beside it.

onstart.sh starts the server, and this file in an environment of its own: of image-gen it imports the table of fields'
names alone, which needs no package. See README-VASTAI.md.

The server's log is JSON, and a mark is a piece of it with quotation marks: whatever a caller could bring into a line
would have them escaped, so that no prompt and no path can make a worker look ready, or broken.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from vastai import BenchmarkConfig, HandlerConfig, LogActionConfig, Worker, WorkerConfig

sys.path.append(str(Path(__file__).resolve().parents[2]))
from imagegen.contract import aliases
from imagegen.contract.given import is_given

#: As onstart.sh starts the server: not on the port that the image exposes, which Vast would publish, without a key.
PORT = int(os.environ.get("PORT") or 18000)
LOG = os.environ.get("MODEL_LOG") or "/tmp/image-gen.log"

LOADED = ['"logger": "imagegen.model.loading", "message": "loaded ']
BROKEN = [
    '"level": "ERROR", "logger": "imagegen.server.main", "message": "the model could not be loaded',
    '"level": "ERROR", "logger": "uvicorn.error"',
    '"level": "CRITICAL", "logger": "onstart", "message": "the server ended',
]
TOLD = ['"logger": "imagegen.weights.sources", "message": "']

#: What is generated if a job does not say: klein's. A reference costs the GPU as much as the image.
_SIDE, _STEPS = 1024, 4
#: An image is this much work, so that the figures on Vast's pages can be read.
_UNIT = _SIDE * _SIDE * _STEPS / 100
#: Seconds of work that may wait at a worker before Vast asks another.
_MAX_QUEUE_SECONDS = 60.0


def workload(job: dict[str, Any]) -> float:
    """Work of a job, in hundredths of an image of 1024x1024 in four steps: pixels, steps, references, images.

    The server checks the job afterwards; here whatever is no sensible number counts as the default.
    """
    try:
        job, _ = aliases.translate(job)
    except ValueError:  # two names of one field, or a value that none can have: the server refuses it
        job = {}
    width, height = (_number(job.get(name), _SIDE, 2048) for name in ("width", "height"))
    steps, count = _number(job.get("num_inference_steps"), _STEPS, 50), _number(job.get("num_images"), 1, 8)
    images = job.get("images")
    references = sum(map(is_given, images[:4])) if isinstance(images, list) else 0
    return width * height * steps * (1 + references) * count / _UNIT


def _number(value: object, default: int, most: int) -> int:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 1 <= value <= most or value % 1:
        return default
    return int(value)


def benchmark() -> dict[str, Any]:
    """A job as most are; as JPEG, so that the measure is the GPU's."""
    return {"prompt": "a lighthouse on a cliff at dawn", "num_inference_steps": _STEPS, "output_format": "jpeg"}


def handlers() -> list[HandlerConfig]:
    """The routes: those of the server that take a job as JSON and answer it at once."""
    # In parallel: the server has a queue of its own, and reads a job's references while another is generated.
    common: dict[str, Any] = {
        "allow_parallel_requests": True,
        "max_queue_time": _MAX_QUEUE_SECONDS,
        "workload_calculator": workload,
    }
    # Two at a time keep the GPU busy from one job to the next.
    measured = BenchmarkConfig(generator=benchmark, runs=4, concurrency=2)
    return [
        HandlerConfig(route="/generate", benchmark_config=measured, **common),
        HandlerConfig(route="/edit", **common),
    ]


def config() -> WorkerConfig:
    """All of it."""
    return WorkerConfig(
        model_server_url="http://127.0.0.1",
        model_server_port=PORT,
        model_log_file=LOG,
        model_healthcheck_url="/health",
        handlers=handlers(),
        log_action_config=LogActionConfig(on_load=LOADED, on_error=BROKEN, on_info=TOLD),
    )


if __name__ == "__main__":
    Worker(config()).run()
