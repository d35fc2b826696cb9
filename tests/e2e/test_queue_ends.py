"""How a worker of RunPod's queue ends: by SIGTERM, by a GPU that is dead or hangs, by SIGKILL, by unusable weights."""

import time

import pytest

from tests.e2e.test_queue import FAULTY, PROMPT
from tests.support import until
from tests.support.faulty_gpu import DEAD, HANGS, SLOW
from tests.support.runpod_queue import RunPodQueue


@pytest.mark.parametrize("busy", [pytest.param(False, marks=pytest.mark.slow), True])
def test_sigterm_loses_no_job_that_was_taken(tmp_path, busy):
    with RunPodQueue(poll=300) as alone, alone.worker(tmp_path / "log") as worker:
        alone.run(PROMPT).wait()
        jobs = [alone.run({**PROMPT, "width": 256, "height": 256}) for _ in range(6 * busy)]
        if busy:
            until(lambda: jobs[1].taken)
        else:  # the last one comes during the shutdown, into the request that is open
            until(lambda: alone.taking)
            alone.on_shutdown = lambda _: jobs.append(alone.run(PROMPT))
        worker.terminate()
        assert worker.process.wait(100) == 0  # and does not wait for as long as the queue holds its request
        taken = [job for job in jobs if job.taken]
        assert taken
        assert {job.status for job in taken} == {"COMPLETED"}


def test_a_dead_gpu_ends_the_worker_and_every_job_that_it_took_is_answered(tmp_path):
    steps, log = tmp_path / "steps", tmp_path / "log"
    with RunPodQueue() as queue, queue.worker(log, *FAULTY, STEPS_FILE=str(steps)) as worker:
        jobs = [queue.run({**PROMPT, "seed": SLOW})]
        until(steps.exists)
        jobs.append(queue.run({**PROMPT, "seed": DEAD}))
        until(lambda: jobs[1].id in log.read_text())  # of jobs that begin together, any may be the first
        jobs += [queue.run({**PROMPT, "seed": seed}) for seed in (2, 3)]
        assert worker.process.wait(60) == 1
        until(lambda: not queue.taking)
        assert jobs[0].status == "COMPLETED"
        assert jobs[1].error.startswith("gpu_failed: ")
        assert jobs[1].answers[0]["stopPod"] is True
        for job in jobs[2:]:
            assert job.error.startswith("gpu_failed: ") if job.taken else job.status == "IN_QUEUE"
        late = queue.run(PROMPT)
        time.sleep(0.5)
        assert not late.taken


@pytest.mark.slow  # workers of its own, and waits of seconds
def test_a_gpu_that_hangs_ends_the_worker_too(tmp_path):
    steps = tmp_path / "steps"
    hanging = {"IMAGEGEN_STALL_TIMEOUT": "5", "STEPS_FILE": str(steps)}
    with RunPodQueue() as queue, queue.worker(tmp_path / "log", *FAULTY, **hanging) as worker:
        job = queue.run({**PROMPT, "seed": HANGS})
        until(steps.exists)
        behind = queue.run(PROMPT)
        assert worker.process.wait(60) == 1
        assert job.error == "gpu_failed: the GPU made no step for 5 s; this worker must be replaced"
        assert job.answers[0]["stopPod"] is True
        assert behind.status == ("FAILED" if behind.taken else "IN_QUEUE")
        pings = len(queue.pings)
        time.sleep(2.5)
        assert len(queue.pings) == pings  # the heartbeat is a process of its own, and has ended with it


@pytest.mark.slow  # a worker of its own, and a wait of seconds
def test_a_gpu_that_hangs_is_seen_where_no_job_waits_for_it_any_more(tmp_path):
    with RunPodQueue() as queue, queue.worker(tmp_path / "log", *FAULTY, IMAGEGEN_STALL_TIMEOUT="5") as worker:
        queue.run(PROMPT).wait()  # the first job takes longer: the next one gets to the GPU within its second
        job = queue.run({**PROMPT, "seed": HANGS, "timeout": 1}).wait()
        assert job.error.startswith("deadline_exceeded: ")
        assert worker.process.wait(60) == 1


@pytest.mark.slow  # workers of its own, and waits of seconds
def test_a_worker_that_is_killed_costs_nothing_but_time(tmp_path):
    with RunPodQueue() as queue:
        with queue.worker(tmp_path / "log") as worker:
            queue.run(PROMPT).wait()
            queue.refuse = lambda job: 503  # so that the first is not done before the worker is killed
            jobs = [queue.run({**PROMPT, "width": 512, "height": 512}) for _ in range(4)]
            until(lambda: jobs[0].taken)
            worker.kill()
        with queue.worker(tmp_path / "log"):
            until(lambda: len(jobs[0].taken) == 2)
            queue.refuse = lambda job: None
            assert {job.wait().status for job in jobs} == {"COMPLETED"}
            assert len(jobs[0].taken) == 2


def test_a_worker_that_cannot_work_says_what_to_do_and_takes_no_job(tmp_path):
    weights = tmp_path / "model" / "vae"
    weights.mkdir(parents=True)
    (weights.parent / "model_index.json").write_text('{"vae": ["diffusers", "AutoencoderKLFlux2"]}')
    (weights / "a.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    (weights / "a.safetensors").write_bytes((30).to_bytes(8, "little") + b'{"x":{"data_offsets":[0,99]}} ')
    with RunPodQueue() as queue:
        job = queue.run(PROMPT)
        with queue.worker(tmp_path / "log", IMAGEGEN_MODEL_PATH=str(weights.parent)) as worker:
            assert worker.process.wait(60) == 1
        assert (
            "IMAGEGEN_MODEL_PATH: the folder holds no whole diffusers model: vae/a.safetensors has 38 bytes"
            in (tmp_path / "log").read_text()
        )
        assert not job.taken
        (unwell,) = [ping for ping in queue.pings if ping.get("status") == "unhealthy"]
        assert "vae/a.safetensors has 38 bytes of" in unwell["reason"]
