"""Two hundred jobs on a bad day: mistakes, stops, a queue that refuses answers, a worker that is killed five times."""

import asyncio
import random
import time

import pytest

from imagegen.contract.requests import parse_job
from imagegen.runpod import handler
from tests.support.runpod_queue import FINAL, RunPodQueue

COLOURS = ("red", "blue", "green", "white", "yellow")
BAD = ({"prompt": ""}, {"prompt": "x", "width": 1000, "height": 64}, {"prompt": "x", "image": "!"}, None, {"x": 1})


@pytest.mark.slow  # minutes of jobs and of workers that are killed
def test_no_job_is_lost_answered_wrongly_or_answered_twice_with_two_images(tmp_path, service):
    dice = random.Random(1)
    with RunPodQueue() as queue:
        refused, good, bad, stopped = set(), [], [], []
        queue.refuse = lambda job: 503 if job.id in refused and job.posts <= 2 else None
        for i in range(200):
            kind = dice.random()
            if kind < 0.1:
                bad.append(queue.run(dice.choice(BAD), name=f"bad-{i}"))
                continue
            colour, ground = dice.sample(COLOURS, 2)
            job = queue.run({"prompt": f"a {colour} circle on a {ground} background"}, name=f"good-{i}")
            (stopped if kind < 0.15 else good).append(job)
        jobs = [*good, *bad, *stopped]
        refused |= {job.id for job in jobs if dice.random() < 0.2}
        to_stop = {job.id for job in stopped}

        def stop_some(job):
            if job.id in to_stop:
                to_stop.discard(job.id)
                queue.cancel(job)

        queue.on_take = stop_some
        for killed in range(6):
            with queue.worker(tmp_path / "log") as worker:
                goal = 200 if killed == 5 else 30 * (killed + 1)
                end = time.monotonic() + 120
                while sum(job.status in FINAL for job in jobs) < goal:
                    assert worker.process.poll() is None, (tmp_path / "log").read_text()[-3000:]
                    assert time.monotonic() < end, [job.public() for job in jobs if job.status not in FINAL][:3]
                    time.sleep(0.01)
                if killed == 5:  # the stopped ones are final already; their answers come before the process ends
                    worker.terminate()
                    assert worker.process.wait(60) == 0
        again = sum(len(job.taken) > 1 for job in jobs)
        twice = sum(len(job.answers) > 1 for job in jobs)
        print(
            f"\n{len(good)} good, {len(bad)} bad, {len(stopped)} stopped; "
            f"{again} handed out again, {twice} answered twice"
        )
        assert again > 0

        for job in good:
            assert job.status == "COMPLETED", job.public()
            seed = handler._seed(job.id)
            expected = picture(service, job.fields["input"]["prompt"], seed)
            assert [answer["output"]["images"] for answer in job.answers] == [[expected]] * len(job.answers)
        for job in bad:
            assert job.status == "FAILED"
            assert all(answer == job.answers[0] for answer in job.answers)
            assert job.output["code"] in ("invalid_input", "bad_reference")
        for job in stopped:
            assert job.status == "CANCELLED"


def picture(service, prompt, seed):
    """What the job must show, generated here."""
    return asyncio.run(service.run(parse_job({"prompt": prompt, "seed": seed}))).images[0]
