import json
import logging
import threading

import pytest

from imagegen.telemetry.report import Report
from tests.support.runpod_queue import RunPodQueue


def test_a_line_each_minute_and_one_at_the_end(caplog):
    written = threading.Event()

    def figures():
        written.set()
        return {"imagegen_pictures_total": 3.0, "imagegen_queue_length": 0.0, "process_start_time_seconds": 1e9}

    with caplog.at_level(logging.INFO, "imagegen"):
        report = Report(figures, seconds=0.01)
        report.start()
        assert written.wait(300)
        report.end()
        lines = len(caplog.records)
    assert lines >= 2
    assert all(record.facts == {"metrics": {"imagegen_pictures_total": 3.0}} for record in caplog.records)


@pytest.mark.slow  # a worker of its own
def test_a_workers_last_line_counts_its_jobs(tmp_path):
    with RunPodQueue() as queue, queue.worker(tmp_path / "log", IMAGEGEN_LOG_FORMAT="json") as worker:
        queue.run({"prompt": "a red circle", "num_images": 2}).wait()
        worker.terminate()
        assert worker.process.wait(60) == 0
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines() if line.startswith("{")]
    last = [line for line in lines if line["message"] == "metrics"][-1]["metrics"]
    assert last['imagegen_jobs_total{mode="generate",outcome="ok"}'] == 1
    assert last["imagegen_pictures_total"] == 2
    assert last['imagegen_gpu_idle_seconds_total{reason="no_job"}'] > 0
