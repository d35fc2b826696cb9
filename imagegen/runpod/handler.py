"""RunPod's handler: routes a job by its "mode" and answers with base64 images.

Importing this module starts nothing. `handler(job)` loads the model if nothing has. The command line is
`imagegen worker`, and `python handler.py` at the project's root is the same.
"""

from __future__ import annotations

import asyncio
import hashlib
import sys
from functools import lru_cache
from typing import Any

from imagegen import logs
from imagegen.contract import aliases
from imagegen.contract.events import Listener
from imagegen.contract.requests import check_bytes, limits, parse_job
from imagegen.contract.showing import show
from imagegen.engine import openai
from imagegen.engine.service import Service
from imagegen.errors import Cancelled, ConfigurationError, ImageGenError, InvalidInput, LoadFailed, internal
from imagegen.outputs.object_store import ObjectStore
from imagegen.settings import get_settings
from imagegen.telemetry import tracing

#: Megabytes that RunPod takes as a job's answer, by the way it came; beyond them an answer is lost without a word.
_RUN_MB, _RUNSYNC_MB = 10.0, 20.0
#: More than a stream has beside its images: steps, and 8 previews of 512x512, 234 KB each where they are noise.
_STREAM_BYTES = 2_000_000
#: What HTTP has as headers of these names: https://www.w3.org/TR/trace-context/
_TRACE = ("traceparent", "tracestate")


@lru_cache
def service() -> Service:
    """The one service of this process. Made at the first call, without loading anything."""
    return Service(get_settings(), progress=sys.stderr.isatty())


async def handler(job: Any) -> dict[str, Any]:
    """Runs one job of RunPod, and logs one line for it.

    Args:
        job: {"id": ..., "input": {...}} with the fields of the contract, or with `openai_route` and `openai_input`;
            and, beside the input, RunPod's `s3Config` where the job brings an object store of its own.

    Returns:
        The contract's output, or that of OpenAI's API; for an error {"error": "code: message", "code", "field",
        "retryable"}. Never raises, so that the SDK sends no traceback to the caller.
    """
    return await answer(job)


async def answer(job: Any, listener: Listener | None = None, previews: int = 0) -> dict[str, Any]:
    """What `handler` returns; `listener` is notified of events, and shown each image `previews` times as it forms."""
    identity = job.get("id", "") if isinstance(job, dict) else ""
    identity = identity if isinstance(identity, str) else show(identity)
    with logs.request(identity):
        with tracing.request("runpod job", _trace_headers(job), "consumer"):
            output = await _answer(job, identity, listener, previews)
        logs.note(outcome=output.get("code", "ok"))
        return output


async def _answer(job: Any, identity: str, listener: Listener | None, previews: int) -> dict[str, Any]:
    try:
        if not isinstance(job, dict) or "input" not in job:
            raise InvalidInput('input: is missing; a job is an object like {"input": {"prompt": "..."}}', "input")
        job_input = job["input"]
        if isinstance(job_input, dict):
            job_input = {name: value for name, value in job_input.items() if name not in _TRACE}
        check_bytes(job_input, int(get_settings().max_body_mb * 1e6))
        options: dict[str, Any] = {
            "job_id": identity,
            "default_seed": _seed(identity),
            "max_answer": _max_answer(identity) - (_STREAM_BYTES if previews else 0),
            "listener": listener,
            "previews": previews,
        }
        if job.get("s3Config"):
            options["store"] = ObjectStore.from_job(job["s3Config"], get_settings())
        if isinstance(job_input, dict) and "openai_route" in job_input:
            return await openai.answer_job(service(), job_input, options)
        request = parse_job(job_input, most=limits(service().spec, get_settings()))
        wants_url = aliases.wants_image_url(job_input) and not get_settings().stream
        if wants_url:
            options["max_answer"] //= 2  # one image may be in it twice
        response = await service().run(request, **options)
        output = response.model_dump()
        if wants_url:
            image = f"data:image/{response.output_format};base64,{response.images[0]}" if response.images else None
            output["image_url"] = image or response.urls[0]
        return output
    except ImageGenError as error:
        return error.output()
    except ConfigurationError as error:
        return LoadFailed(str(error)).output()
    except asyncio.CancelledError:
        return Cancelled("the job was cancelled").output()
    except Exception as error:  # noqa: BLE001 - a bug is answered, with an id that is in the log
        return internal(error).output()


def _trace_headers(job: Any) -> dict[str, str]:
    """The trace that a job is part of: RunPod passes on nothing but a job's input, so it is there."""
    fields = job.get("input") if isinstance(job, dict) else None
    fields = fields if isinstance(fields, dict) else {}
    return {name: fields[name] for name in _TRACE if isinstance(fields.get(name), str)}


def _seed(identity: str) -> int:
    """A seed below 2^32 from the job's id: a job that is run twice gives the same image."""
    return int.from_bytes(hashlib.sha256(identity.encode(errors="surrogatepass")).digest()[:4])


def _max_answer(identity: str) -> int:
    """Bytes that RunPod takes for this job. Ids of /runsync begin with "sync-"."""
    limit = _RUNSYNC_MB if identity.startswith("sync-") else _RUN_MB
    return int(min(limit, get_settings().max_result_mb) * 1e6)
