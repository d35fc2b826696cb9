from collections import Counter

import pytest

from imagegen.telemetry.gpu_time import GpuTime


@pytest.fixture
def spent():
    return Counter()


def test_each_second_is_work_or_has_a_reason(spent):
    now = [0.0]
    time = GpuTime(lambda state, seconds: spent.update({state: seconds}), lambda: now[0])
    now[0] = 5  # the model is being loaded: nobody waits for a GPU that could work
    time.begin()
    for seconds, change in (
        (3, {"jobs": 1}),  # 3 s without a job
        (2, {"ready": 1}),  # 2 s of references
        (1, {"ready": -1, "busy": True}),  # 1 s until the thread begins
        (4, {"jobs": 1}),  # busy, while another job comes
        (4, {"busy": False}),  # 8 s of work
        (6, {"jobs": -1}),  # the second job prepares
        (7, {"jobs": -1}),  # and goes away
    ):
        now[0] += seconds
        time.change(**change)
    now[0] += 9
    time.settle()
    assert spent == {"no_job": 12, "preparing": 15, "host": 1, "busy": 8}
    assert sum(spent.values()) == now[0] - 5


def test_before_the_model_is_loaded_nothing_is_counted(spent):
    time = GpuTime(lambda state, seconds: spent.update({state: seconds}))
    time.change(jobs=1)
    time.settle()
    assert not spent
