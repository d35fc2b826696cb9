"""`handler.py` as a process on RunPod's queue, with the SDK as it is: what arrives, and what stops."""

import hashlib
import time
from itertools import pairwise

import pytest
import runpod

from imagegen.builder.micro.measure import background_colour, shape_colour
from tests.support import until
from tests.support.faulty_gpu import DEAD, NOISE, SLOW, TOO_LARGE
from tests.support.images import from_base64, scene, to_base64
from tests.support.runpod_queue import RunPodQueue

PROMPT = {"prompt": "a red circle on a blue background"}
LONG = {**PROMPT, "num_inference_steps": 50, "num_images": 8, "seed": SLOW}  # 40 seconds
FAULTY = ("-m", "tests.support.faulty_gpu")


@pytest.fixture(scope="module")
def queue():
    with RunPodQueue() as running:
        yield running


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return tmp_path_factory.mktemp("queue") / "log"


@pytest.fixture(scope="module")
def steps_file(log):
    return log.with_name("steps")


@pytest.fixture(scope="module")
def worker(queue, log, steps_file):
    """One for all tests that end none; its GPU fails by the seed."""
    with queue.worker(log, *FAULTY, STEPS_FILE=str(steps_file), IMAGEGEN_STALL_TIMEOUT="60") as running:
        queue.run(PROMPT).wait()
        yield running


@pytest.fixture(autouse=True)
def _queue_as_it_was(queue):
    yield
    queue.delay, queue.refuse, queue.refuse_take = 0.0, lambda job: None, lambda: None


def running(job):
    """Waits until a job has begun to be generated."""
    until(lambda: job.progress and job.progress[-1]["stage"] == "denoise")


def test_jobs_are_answered_with_the_images_that_they_ask_for(queue, worker):
    jobs = [queue.run({"prompt": f"a {colour} circle on a white background", "seed": 1}) for colour in ("red", "blue")]
    reference = to_base64(scene("circle", "red", "blue"))
    edit = queue.run({"mode": "edit", "prompt": "make the background green", "images": [reference], "seed": 3})
    for job, colour in zip(jobs, ("red", "blue"), strict=True):
        assert job.wait().status == "COMPLETED"
        assert shape_colour(from_base64(job.output["images"][0])) == colour
    assert background_colour(from_base64(edit.wait().output["images"][0])) == "green"


def test_a_bad_job_is_an_error_in_words_and_replaces_no_worker(queue, worker):
    job = queue.run({**PROMPT, "width": 1000, "height": 512}).wait()
    assert job.status == "FAILED"
    assert job.error == "invalid_input: width: 1000 is not a multiple of 16 (64 to 1024)"
    assert job.output == {"code": "invalid_input", "field": "width", "retryable": False}
    assert "stopPod" not in job.answers[0]
    assert queue.run(PROMPT).wait().status == "COMPLETED"


def test_a_stop_ends_the_generation_within_one_step(queue, worker, steps_file):
    job = queue.run(LONG)
    running(job)
    queue.cancel(job)
    until(lambda: job.answers)
    at_the_answer = len(steps_file.read_text().splitlines())
    assert job.answers[0]["error"] == "cancelled: the job was cancelled"
    time.sleep(0.5)
    assert len(steps_file.read_text().splitlines()) <= at_the_answer + 1
    assert queue.run(PROMPT).wait().status == "COMPLETED"


def test_a_job_that_waits_is_stopped_or_runs_out_of_time_where_it_is(queue, worker):
    first = queue.run(LONG)
    running(first)
    waiting = queue.run({**PROMPT, "timeout": 1})
    assert waiting.wait().error.startswith("deadline_exceeded: timeout: the job did not end within 1.0 s")
    stopped = queue.run(PROMPT)
    until(lambda: stopped.taken)
    queue.cancel(stopped)  # at the moment in which it is taken
    until(lambda: stopped.answers)
    assert stopped.answers[0]["output"]["code"] == "cancelled"
    assert not first.answers  # it ran all the while
    queue.cancel(first)


def test_a_job_that_is_handed_out_twice_is_one_image(queue, worker):
    seeds = {name: int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]) for name in ("twice", "other")}
    first, again, other = (queue.run(PROMPT, name=name).wait() for name in ("twice", "twice", "other"))
    assert first.output["images"] == again.output["images"] != other.output["images"]
    assert first.output["seeds"] == [seeds["twice"]]


def test_an_answer_is_handed_in_until_the_queue_takes_it(queue, worker):
    queue.refuse = lambda job: 503 if job.posts <= 5 else None
    job = queue.run(PROMPT).wait()
    assert (job.status, job.posts) == ("COMPLETED", 6)
    assert job.output["images"]


def test_an_answer_that_is_refused_for_good_is_not_sent_again(queue, worker):
    refused = []
    queue.refuse = lambda job: refused.append(job) or 400
    lost = queue.run(PROMPT)
    until(lambda: refused)
    queue.refuse = lambda job: None
    assert queue.run(PROMPT).wait().status == "COMPLETED"
    time.sleep(1)  # the second try would come after 0.2 s
    assert lost.posts == 1


def test_no_answer_is_lost_for_its_size(queue, worker):
    noise = {**PROMPT, "seed": NOISE}  # 4.2 MB each
    lost = queue.run({**noise, "num_images": 8}).wait()
    assert lost.error.startswith("result_too_large: the answer would be 33.6 MB and 10 MB are allowed; ask for ")
    assert queue.run({**noise, "num_images": 3}, sync=True).wait().output["images"][2]
    # Just below the limit it is sent: what is measured is what arrives.
    assert queue.run({**noise, "num_images": 2}).wait().output["images"][1]


def test_out_of_memory_costs_one_job(queue, worker):
    job = queue.run({**PROMPT, "seed": TOO_LARGE}).wait()
    assert job.error.startswith("out_of_memory: 128x128 does not fit")
    assert "stopPod" not in job.answers[0]
    assert queue.run(PROMPT).wait().status == "COMPLETED"


def test_progress_comes_in_order_and_never_after_the_answer(queue, worker):
    job = queue.run({**LONG, "num_images": 3})
    job.wait(300)
    stages = [message["stage"] for message in job.progress]
    assert stages == sorted(stages, key=["queue", "denoise", "deliver"].index)  # the first and the last are short
    drawing = [message for message in job.progress if message["stage"] == "denoise"]
    steps = [message["step"] for message in drawing]
    assert steps == sorted(steps)
    assert steps[-1] <= 150 == drawing[-1]["total"]
    assert 1 <= len(stages) < job.ended - job.taken[0][0] + 0.5  # one a second
    time.sleep(1.3)  # longer than from one message to the next
    assert job.late_progress == 0
    short = queue.run(PROMPT).wait()  # too short to tell, but on a busy machine
    assert len(short.progress) < short.ended - short.taken[0][0] + 0.5


def test_openais_requests_come_through_the_queue(queue, worker):
    def ask(route, **fields):
        return queue.run({"openai_route": route, "openai_input": fields}).wait()

    answer = ask("/v1/images/generations", prompt=PROMPT["prompt"], size="128x128", n=2).output
    assert [set(image) for image in answer["data"]] == [{"b64_json"}] * 2
    assert background_colour(from_base64(answer["data"][0]["b64_json"])) == "blue"
    image = to_base64(scene("circle", "red", "blue"))
    edited = ask("/v1/images/edits", prompt="make the background green", image=[image], seed=3).output
    assert background_colour(from_base64(edited["data"][0]["b64_json"])) == "green"
    assert ask("/v1/models").output["data"][0]["id"] == "micro"
    assert ask("/v1/images/generations", prompt="x", size="big").error.startswith("invalid_input: size: 'big'")
    assert ask("/v1/images/generations", prompt="x", response_format="url").error.startswith(
        "invalid_input: response_format: 'url' needs an object store, and there is none"
    )
    assert ask("/v1/chat/completions").error.startswith("invalid_input: openai_route: '/v1/chat/completions'")


def test_runpods_own_client_meets_what_it_expects(queue, worker, monkeypatch):
    monkeypatch.setattr(runpod, "endpoint_url_base", f"{queue.url}/v2")
    endpoint = runpod.Endpoint("endpoint", api_key="key")
    assert endpoint.run_sync({"input": PROMPT}, timeout=60)["images"]
    request = endpoint.run({"input": PROMPT})
    assert request.output(timeout=60)["images"]
    assert request.status() == "COMPLETED"
    long = endpoint.run({"input": LONG})
    running(queue.jobs[long.job_id])
    assert long.status() == "IN_PROGRESS"
    assert long.cancel()["status"] == "CANCELLED"
    assert long.status() == "CANCELLED"


def test_a_queue_that_fails_is_asked_again_and_not_without_end(queue, worker):
    asked = []

    def refuse(_=None):
        queue.refuse_take = lambda: asked.append(time.monotonic()) or 500

    queue.on_take = refuse
    queue.run(PROMPT, name="the-last-that-is-taken").wait()
    queue.on_take = lambda _: None
    job = queue.run(PROMPT)
    until(lambda: len(asked) >= 3)
    assert min(later - earlier for earlier, later in pairwise(asked)) > 0.5  # a second after it has failed
    queue.refuse_take = lambda: None
    assert job.wait().status == "COMPLETED"


def test_the_heartbeat_names_the_jobs(queue, worker):
    job = queue.run(LONG)
    until(lambda: any(ping["worker"] == worker.id and ping.get("job_id") == job.id for ping in queue.pings))
    queue.cancel(job)


def test_the_log_says_where_the_weights_are_and_nothing_of_the_jobs(queue, worker, log):
    queue.run({"prompt": "xylophone canary"}).wait()
    text = log.read_text()
    assert "the weights come from" in text
    assert "canary" not in text


@pytest.mark.slow  # workers of its own, and waits of seconds
def test_a_stream_shows_the_image_as_it_forms(tmp_path):
    with RunPodQueue() as queue, queue.worker(tmp_path / "log", *FAULTY, IMAGEGEN_STREAM="true") as worker:
        job = queue.run({**PROMPT, "num_inference_steps": 10, "seed": 1}).wait()
        assert job.status == "COMPLETED"
        assert [chunk["output"] for chunk in job.streamed] == job.output
        names = [event["event"] for event in job.output]
        assert names == ["queued", *["step"] * 10, "drawn", "done"]
        shown = [event for event in job.output if "preview" in event]
        assert 6 <= len(shown) <= 8
        assert background_colour(from_base64(job.output[-1]["images"][0])) == "blue"

        large = queue.run({**PROMPT, "seed": NOISE}).wait().output
        parts = [event["data"] for event in large if event["event"] == "image"]
        assert len(parts) == 5
        assert from_base64("".join(parts)).size == (1024, 1024)
        assert large[-1]["images"] == []

        bad = queue.run({"prompt": " "}).wait()
        assert bad.error == "invalid_input: prompt: is blank; 1 to 4000 characters are allowed"
        long = queue.run(LONG)
        until(lambda: any("step" in str(chunk) for chunk in long.streamed))
        queue.delay = 0.3  # the stop then comes while a part of the stream is being sent
        queue.cancel(long)
        until(lambda: long.answers)
        queue.delay = 0.0
        assert long.answers[0]["error"] == "cancelled: the job was cancelled"

        large = queue.run({**PROMPT, "seed": NOISE, "num_images": 2}).wait()  # as a job without a stream it would fit
        assert large.error.startswith("result_too_large: the answer would be 8.4 MB and 8 MB are allowed")

        last = queue.run({**PROMPT, "seed": DEAD}).wait()
        assert last.error.startswith("gpu_failed: ")
        assert last.answers[0]["stopPod"] is True
        assert worker.process.wait(60) == 1


@pytest.mark.slow  # a worker of its own
def test_python_m_imagegen_finds_the_queue_by_itself_and_http_when_told(tmp_path):
    with RunPodQueue() as queue, queue.worker(tmp_path / "log", "-m", "imagegen"):
        assert queue.run(PROMPT).wait().status == "COMPLETED"
