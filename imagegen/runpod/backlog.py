"""How many jobs to take from RunPod's queue, and when: as many as the GPU is about to need."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

#: Seconds of the GPU's work that are kept ready: a request for jobs, and what is done to one before the GPU, take less.
_READY_SECONDS = 0.5
#: References may take longer than this to arrive; for more, no jobs are taken ahead.
_MOST_PREPARING_SECONDS = 5.0


class Backlog:
    """The jobs that were taken and still need the GPU."""

    def __init__(self) -> None:
        self._jobs: set[str] = set()
        self._changed = asyncio.Event()

    def add(self, job_ids: list[str]) -> None:
        """These were taken."""
        self._jobs.update(job_ids)

    def release(self, job_id: str) -> None:
        """This one does not need the GPU any more; a second call for the same job does nothing."""
        self._jobs.discard(job_id)
        self.wake()

    def wake(self) -> None:
        """Something that `wanted` measures may have changed."""
        self._changed.set()

    async def wanted(self, measured: Callable[[], tuple[float, float]]) -> int:
        """Waits until the GPU is about to need jobs, and returns how many.

        Args:
            measured: mean seconds of a job on the GPU, 0 before the first, and mean seconds until it is ready for it.
        """
        while (count := jobs_to_request(len(self._jobs), *measured())) <= 0:
            self._changed.clear()
            await self._changed.wait()
        return count


def jobs_to_request(taken: int, gpu_seconds: float, prepare_seconds: float) -> int:
    """Jobs to ask for while `taken` of them still need the GPU: one runs, half a second of work waits for it, and
    behind that are those that are being prepared meanwhile.

    Args:
        gpu_seconds: seconds of a job on the GPU, 0 where that is not known.
        prepare_seconds: seconds that pass before a job is ready for the GPU: its references are fetched and decoded.
    """
    ahead = _READY_SECONDS + min(prepare_seconds, _MOST_PREPARING_SECONDS)
    return 1 + (math.ceil(ahead / gpu_seconds) if gpu_seconds else 1) - taken
