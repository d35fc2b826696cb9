"""RunPod's API on this machine (`--rp_serve_api`), with errors as the platform gives them.

The SDK's own API (runpod 1.12, `rp_fastapi.WorkerAPI`) answers a failed job with the words of its error alone. RunPod's
`/runsync` and `/status` also have the rest of the output: `code`, `field` and `retryable`.
"""

from __future__ import annotations

from typing import Any

from runpod.serverless.modules import rp_fastapi
from runpod.serverless.modules.rp_fastapi import DefaultRequest, JobOutput
from runpod.serverless.modules.rp_handler import is_generator


class LocalApi(rp_fastapi.WorkerAPI):
    """The SDK's API; a failed job's answer keeps its output."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._failures: dict[str, dict[str, Any]] = {}
        handler = config["handler"]

        async def remembering(job: dict[str, Any]) -> dict[str, Any]:
            output: dict[str, Any] = await handler(job)
            if "error" in output:
                self._failures[job["id"]] = {name: value for name, value in output.items() if name != "error"}
            return output

        # A stream's events hold the whole error.
        super().__init__(config if is_generator(handler) else {**config, "handler": remembering})

    async def _sim_runsync(self, job_request: DefaultRequest) -> JobOutput:
        return self._complete(await super()._sim_runsync(job_request))

    async def _sim_status(self, job_id: str) -> JobOutput:
        return self._complete(await super()._sim_status(job_id))

    def _complete(self, answer: dict[str, Any]) -> Any:
        output = self._failures.pop(answer["id"], None)
        return answer if output is None else {**answer, "output": output}


def install() -> None:
    """Makes the SDK start this API instead of its own."""
    rp_fastapi.WorkerAPI = LocalApi
