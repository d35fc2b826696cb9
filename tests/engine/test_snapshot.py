"""What a worker must be when its memory is kept, as Modal's snapshots do, and what it must be afterwards."""

import json
import os
import subprocess
import sys

import pytest

from tests.support import ROOT

pytestmark = pytest.mark.slow  # a process that loads the model twice


@pytest.fixture(scope="module")
def worker():
    ended = subprocess.run(
        [sys.executable, "-m", "tests.support.frozen_worker"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


def test_a_snapshot_holds_one_process_without_a_socket_or_a_file_that_it_writes(worker):
    assert worker["children"] == []
    assert worker["sockets"] == []
    assert worker["files"] == []


def test_two_workers_of_one_snapshot_share_no_random_numbers(worker):
    one, other = worker["drawn"]
    assert not set(map(str, one)) & set(map(str, other))


def test_after_it_jobs_run_and_clocks_begin_anew(worker):
    assert worker["images"] == [1]
    before, after = worker["start"]
    assert after < before / 2
    assert 0 <= worker["idle"] < 60
