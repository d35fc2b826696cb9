"""RunPod's door: loads the model at cold start, routes a job by its "mode", answers with base64 pictures.

    python handler.py                                    the queue of RunPod; elsewhere the same as --test_input
    python handler.py --test_input                       runs test_input.json and writes its pictures to outputs/
    python handler.py --test_input '{"input": {...}}'    runs this job
    python handler.py --test_input FILE.json             runs the job in this file
    python handler.py --rp_serve_api [--rp_api_port N]   the same API as RunPod's, on this machine (port 8000)

Importing this module starts nothing. `handler(job)` loads the model if nothing has.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import hashlib
import json
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

from imagegen import logs
from imagegen.contract.events import Listener
from imagegen.contract.requests import check_bytes, parse_job, show
from imagegen.engine import openai
from imagegen.engine.service import Service
from imagegen.errors import Cancelled, ConfigurationError, ImageGenError, InvalidInput, NotReady, internal
from imagegen.outputs.delivery import EXTENSIONS
from imagegen.outputs.object_store import ObjectStore
from imagegen.settings import Settings, get_settings

#: Megabytes that RunPod takes as a job's answer, by the way it came; beyond them an answer is lost without a word.
_RUN_MB, _RUNSYNC_MB = 10.0, 20.0
#: More than a stream has beside its pictures: steps, and 8 previews of 512x512, 234 KB each where they are noise.
_STREAM_BYTES = 2_000_000


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
    """What `handler` returns; `listener` is told what happens, and shown each picture `previews` times as it forms."""
    identity = job.get("id", "") if isinstance(job, dict) else ""
    identity = identity if isinstance(identity, str) else show(identity)
    with logs.request(identity):
        output = await _answer(job, identity, listener, previews)
        logs.note(outcome=output.get("code", "ok"))
        return output


async def _answer(job: Any, identity: str, listener: Listener | None, previews: int) -> dict[str, Any]:
    try:
        if not isinstance(job, dict) or "input" not in job:
            raise InvalidInput('input: is missing; a job is an object like {"input": {"prompt": "..."}}', "input")
        job_input = job["input"]
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
        response = await service().run(parse_job(job_input), **options)
        return response.model_dump()
    except ImageGenError as error:
        return error.output()
    except ConfigurationError as error:
        return NotReady(str(error)).output()
    except asyncio.CancelledError:
        return Cancelled("the job was cancelled").output()
    except Exception as error:
        return internal(error).output()


def _seed(identity: str) -> int:
    """A seed below 2^32 from the job's id: a job that is handed out twice is the same picture."""
    return int.from_bytes(hashlib.sha256(identity.encode(errors="surrogatepass")).digest()[:4])


def _max_answer(identity: str) -> int:
    """Bytes that RunPod takes for this job. Ids of /runsync begin with "sync-"."""
    limit = _RUNSYNC_MB if identity.startswith("sync-") else _RUN_MB
    return int(min(limit, get_settings().max_result_mb) * 1e6)


def run_local_test(source: str) -> int:
    """Runs the job of a file or of a JSON text, writes its pictures and prints what came; returns the exit status."""
    try:
        output = asyncio.run(handler(_read_job(source)))
    except (ConfigurationError, InvalidInput) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if "error" in output:
        print(f"error: {output['error']}", file=sys.stderr)
        return 1
    places = output["urls"] or _write_pictures(output, get_settings().output_dir)
    for i, seed in enumerate(output["seeds"]):
        where = places[i] if places else "(not written)"
        print(f"{where}  {output['width']}x{output['height']}  seed {seed}")
    print(
        f"{output['model']}  " + "  ".join(f"{stage} {seconds:.2f} s" for stage, seconds in output["timings"].items())
    )
    for warning in output["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)
    return 0


def _read_job(source: str) -> Any:
    """The job in a file, or in the text itself where that is JSON.

    Raises:
        InvalidInput: there is no such file, or it is not JSON.
    """
    text, name = source, "--test_input"
    if not source.lstrip().startswith(("{", "[")):
        name = source
        try:
            text = Path(source).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidInput(f"{source}: cannot be read ({type(error).__name__}); give a file, or JSON") from None
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{name}: is not JSON ({error})") from None


def _write_pictures(output: dict[str, Any], folder: Path) -> list[Path]:
    """Writes an output's pictures; where that cannot be done, warns and returns none."""
    extension = EXTENSIONS[output["output_format"]]
    paths = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for picture, seed in zip(output["images"], output["seeds"], strict=True):
            path = folder / f"{output['model']}-{seed}.{extension}"
            path.write_bytes(base64.b64decode(picture))
            paths.append(path)
    except OSError as error:
        print(f"warning: the pictures could not be written to {folder} ({type(error).__name__})", file=sys.stderr)
        return []
    return paths


def serve(settings: Settings) -> int:
    """Works off RunPod's queue, or serves its API on this machine; returns the exit status.

    Raises:
        ConfigurationError: a setting is wrong beside another.
    """
    if settings.preload_models:
        service().start()
    # Beside the loading: importing the SDK takes a second, in which it asks a subprocess for the processor's name.
    from imagegen.runpod import worker

    return worker.run(service(), answer)


def main() -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--test_input",
        nargs="?",
        const="test_input.json",
        metavar="JSON",
        help="run one job: a file, JSON, or test_input.json",
    )
    parser.add_argument("--rp_serve_api", action="store_true", help="serve RunPod's API on this machine")
    args, _ = parser.parse_known_args()  # the SDK parses the rest
    try:
        settings = get_settings()
    except ConfigurationError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    logs.configure(settings)
    if args.test_input is not None:
        return run_local_test(args.test_input)
    if not args.rp_serve_api and settings.queue_url is None:
        return run_local_test("test_input.json")
    try:
        return serve(settings)
    except ConfigurationError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
