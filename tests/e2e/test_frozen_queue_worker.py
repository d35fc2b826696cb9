"""RunPod's FlashBoot freezes a worker that has no job, and lets it go on: the platform gives it no sign of either."""

import os
import signal
import time

import pytest

from tests.support import until
from tests.support.runpod_queue import FINAL, RunPodQueue

#: Seconds without a step after which a GPU counts as dead here, and seconds for which the worker is frozen.
STALL, FROZEN = 20, 30


@pytest.mark.slow  # starts a worker, and freezes it for a while
def test_a_worker_that_was_frozen_goes_on_with_the_next_job(tmp_path):
    def ask(prompt):
        job = queue.run({"prompt": prompt})
        until(lambda: job.status in FINAL or worker.process.poll() is not None)
        assert job.status == "COMPLETED", (tmp_path / "log").read_text()[-3000:]
        return job

    settings = {"IMAGEGEN_MODEL": "micro", "IMAGEGEN_DEVICE": "cpu", "IMAGEGEN_STALL_TIMEOUT": str(STALL)}
    with RunPodQueue(poll=1.0) as queue, queue.worker(tmp_path / "log", **settings) as worker:
        before = ask("a red circle")
        os.killpg(worker.process.pid, signal.SIGSTOP)
        time.sleep(FROZEN)
        os.killpg(worker.process.pid, signal.SIGCONT)
        after = ask("a red circle")
        assert len(after.taken) == len(after.answers) == 1
        timings = after.answers[0]["output"]["timings"]
        assert timings["total"] < FROZEN  # no clock of the job has run meanwhile
        seeds = [job.answers[0]["output"]["seeds"] for job in (before, after)]
        assert seeds[0] != seeds[1]  # which come from the jobs' names
        worker.terminate()
        assert worker.process.wait(60) == 0
