"""What the figures of a worker say of what has happened to it."""

import asyncio
import shutil
import subprocess

import pytest

from imagegen.contract.events import Step
from imagegen.contract.schemas import EditRequest, GenerateRequest
from imagegen.engine.service import Service
from imagegen.errors import BadReference, ImageGenError
from imagegen.settings import Settings
from imagegen.telemetry.metrics import Metrics, size_class
from tests.support import until


@pytest.fixture(scope="module")
def service():
    service = Service(Settings(model="micro"))
    service.start().result()
    yield service
    service.close()


def run(service, request, **options):
    return asyncio.run(service.run(request, **options))


def gained(service, work):
    """What `work` adds to each figure."""
    before = service.metrics.figures()
    work()
    after = service.metrics.figures()
    return {name: round(value - before.get(name, 0), 6) for name, value in after.items() if value != before.get(name)}


def test_a_job_is_counted_by_mode_size_and_outcome(service):
    what = gained(service, lambda: run(service, GenerateRequest(prompt="a red circle", num_images=2)))
    assert what['imagegen_jobs_total{mode="generate",outcome="ok"}'] == 1
    assert what['imagegen_job_seconds_count{mode="generate",size="0.25"}'] == 1
    assert what["imagegen_images_generated_total"] == what["imagegen_pictures_total"] == 2
    assert what["imagegen_prompt_characters_sum"] == len("a red circle")
    paid = what['imagegen_job_gpu_seconds_total{mode="generate",outcome="ok"}']
    assert paid == pytest.approx(what["imagegen_gpu_busy_seconds_total"], abs=0.02)


def test_what_was_paid_and_not_delivered_has_its_outcome(service):
    async def cancelled():
        request = GenerateRequest(prompt="a red circle", num_images=8)
        task = asyncio.create_task(
            # The listener is called in the loop, before the job's end could be told there.
            service.run(request, listener=lambda event: task.cancel() if isinstance(event, Step) else None)
        )
        with pytest.raises(asyncio.CancelledError):
            await task

    def work():
        asyncio.run(cancelled())
        # Its turn ends after that, in the executor's threads.
        until(lambda: service.metrics.figures().get(paid))

    paid = 'imagegen_job_gpu_seconds_total{mode="generate",outcome="cancelled"}'
    what = gained(service, work)
    assert what['imagegen_jobs_total{mode="generate",outcome="cancelled"}'] == 1
    assert what[paid] > 0
    assert "imagegen_pictures_total" not in what


def test_a_bad_reference_is_a_job_without_gpu_seconds(service):
    def work():
        with pytest.raises(BadReference):
            run(service, EditRequest(prompt="make it green", images=["aGVsbG8gd29ybGQ="]))

    what = gained(service, work)
    assert what['imagegen_jobs_total{mode="edit",outcome="bad_reference"}'] == 1
    assert what['imagegen_reference_bytes_total{source="request"}'] == 12
    assert not any(name.startswith("imagegen_job_gpu_seconds") for name in what)


def test_the_state_the_start_and_the_build_are_shown(service):
    figures = service.figures()
    assert figures['imagegen_state{imagegen_state="ready"}'] == 1
    assert sum(value for name, value in figures.items() if name.startswith("imagegen_state{")) == 1
    assert figures['imagegen_disk_free_bytes{folder="temporary"}'] > 0
    assert figures['imagegen_start_seconds{stage="read"}'] > 0
    build = [name for name in figures if name.startswith("imagegen_build_info{")]
    assert len(build) == 1
    assert 'model="micro"' in build[0]
    assert figures['imagegen_limit{limit="places"}'] == service.settings.max_queue + 1


def test_every_series_of_outcomes_begins_at_zero():
    figures = Metrics().figures()
    for error in ImageGenError.__subclasses__():
        assert figures[f'imagegen_jobs_total{{mode="edit",outcome="{error.code}"}}'] == 0


@pytest.mark.parametrize(
    ("width", "height", "size"),
    [(128, 128, "0.25"), (1024, 1024, "1"), (1024, 1040, "2"), (2048, 2048, "4"), (6000, 4000, "more")],
)
def test_sizes_have_few_labels(width, height, size):
    assert size_class(width, height) == size


@pytest.mark.slow
def test_promtool_finds_nothing_to_say(service):
    promtool = shutil.which("promtool")
    assert promtool, "apt-get install prometheus"
    checked = subprocess.run(
        [promtool, "check", "metrics"], input=service.metrics_text(), capture_output=True, timeout=60, check=False
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")
