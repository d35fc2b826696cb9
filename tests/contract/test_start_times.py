import gc
import subprocess
import sys
import time

import pytest

from imagegen.contract.start_times import StartTimes
from imagegen.model.config import FluxConfig
from imagegen.model.pipeline import FluxPipeline
from imagegen.models import MICRO_PATH, get_model
from tests.support import ROOT


def test_stages_are_added_up_and_shown_in_their_order():
    times = StartTimes.of_process()
    assert 0 < times.process < 24 * 3600
    times = StartTimes(process=1.5, to_card=0.25)
    with times.measure("imports"):
        time.sleep(0.01)
    first = times.imports
    with times.measure("imports"):
        time.sleep(0.01)
    assert times.imports > first > 0
    assert times.show().startswith(f"process 1.50 s, imports {times.imports:.2f} s")
    assert times.show().endswith("to card 0.25 s")


def test_imports_go_on_without_collections():
    times = StartTimes()
    with times.importing():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ImportError), times.importing():
        raise ImportError
    assert gc.isenabled()
    assert times.imports > 0


def test_loading_fills_its_stages():
    with FluxPipeline(FluxConfig(get_model("micro"), MICRO_PATH, device="cpu")) as pipeline:
        times = pipeline.times
    assert times.build > 0 and times.read > 0 and times.to_card > 0
    assert times.first_picture == 0


@pytest.mark.slow  # a process of its own that loads the model
def test_the_stages_add_up_to_the_start():
    """From the process's beginning to the loaded model: no second is counted twice, and few are in no stage."""
    code = (
        "import time, psutil; from imagegen.engine.service import Service; from tests.support import settings;"
        "service = Service(settings()); times = service.start().result().times;"
        "print(times.total, time.time() - psutil.Process().create_time()); service.close()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    total, passed = map(float, done.stdout.split())
    assert 0.8 * passed <= total <= passed + 0.02  # the process's beginning is known to a hundredth
