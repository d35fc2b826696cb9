import logging
import re
import threading
import time
from pathlib import Path

import pynvml
import pytest

from imagegen.engine.service import Service
from imagegen.settings import Settings
from imagegen.telemetry import gpu_device
from imagegen.telemetry.gpu_device import GpuDevice, open_device
from imagegen.telemetry.metrics import Metrics
from tests.support import until
from tests.support.nvml import UUID, Nvml

ROOT = Path(__file__).parents[2]


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def nvml():
    return Nvml()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def device(nvml, clock):
    return GpuDevice(nvml, UUID, clock)


def asked(device):
    """Its state, once the driver has answered."""
    _ = device.state
    until(lambda: not device._asking)
    return device.state


def test_a_healthy_gpu_says_what_it_does_and_is_not_marked(device):
    state = asked(device)
    assert (state.utilization, state.temperature, state.power) == (0.75, 71, 402.5)
    assert (state.memory_used, state.memory_total) == (18 * 2**30, 24 * 2**30)
    assert state.degraded is None


def test_meeting_its_power_cap_is_no_fault(nvml, device):
    nvml.reasons = pynvml.nvmlClocksEventReasonSwPowerCap | pynvml.nvmlClocksEventReasonGpuIdle
    assert asked(device).degraded is None


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ({"reasons": pynvml.nvmlClocksEventReasonHwThermalSlowdown}, "throttled (hw_thermal)"),
        ({"reasons": pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown}, "throttled (hw_power_brake)"),
        ({"ecc": 2}, "2 uncorrectable memory errors"),
        ({"events": [(pynvml.nvmlEventTypeXidCriticalError, 79)]}, "Xid 79"),
        ({"events": [(pynvml.nvmlEventTypeDoubleBitEccError, 0)]}, "Xid 48"),
    ],
)
def test_a_fault_marks_the_worker(nvml, device, caplog, fault, says):
    for name, value in fault.items():
        setattr(nvml, name, value)
    with caplog.at_level(logging.WARNING, "imagegen"):
        assert asked(device).degraded == says
    assert f"the GPU is degraded: {says}" in caplog.text


def test_an_error_that_a_program_caused_is_counted_and_marks_nothing(nvml, device):
    nvml.events = [(pynvml.nvmlEventTypeXidCriticalError, 31)] * 2
    assert asked(device).degraded is None
    assert asked(device).xids == [31]
    metrics = Metrics()
    metrics.watch(device)
    assert metrics.figures()['imagegen_gpu_xid_errors_total{xid="31"}'] == 2


def test_throttling_ends_and_a_xid_stays(nvml, device, clock):
    nvml.reasons = pynvml.nvmlClocksEventReasonHwSlowdown
    nvml.events = [(pynvml.nvmlEventTypeXidCriticalError, 94)]
    assert asked(device).degraded == "throttled (hw_slowdown); Xid 94"
    nvml.reasons = 0
    clock.now += 2
    assert asked(device).degraded == "Xid 94"


def test_the_driver_is_asked_once_a_second(nvml, device, clock):
    for _ in range(5):
        asked(device)
    assert nvml.asked == 1
    clock.now += 1
    asked(device)
    assert nvml.asked == 2


def test_what_a_gpu_does_not_know_is_not_shown(nvml, device):
    nvml.ecc = None
    metrics = Metrics()
    metrics.watch(device)
    asked(device)
    figures = metrics.figures()
    assert "imagegen_gpu_uncorrectable_errors" not in figures
    assert figures["imagegen_gpu_temperature_celsius"] == 71
    assert figures['imagegen_gpu_throttled{reason="hw_thermal"}'] == 0


def test_health_says_it(nvml, device):
    nvml.ecc = 1
    service = Service(Settings(model="micro"))
    service.metrics.watch(device)
    service.metrics.watch(device)  # a second load
    asked(device)
    gpu = service.health().gpu
    service.close()
    assert gpu.degraded == "1 uncorrectable memory errors"


def test_without_a_driver_nothing_is_known():
    assert open_device(UUID) is None  # the library is here, NVIDIA's driver is not


def test_the_page_names_these_metrics(nvml, device):
    nvml.events = [(pynvml.nvmlEventTypeXidCriticalError, 31)]
    asked(device)
    page = (ROOT / "docs/operations.md").read_text(encoding="utf-8").split("## The GPU itself")[1].split("\n## ")[0]
    shown = set(re.findall(r"`(imagegen_\w+)", page))
    assert shown == {sample.name for family in device.collect() for sample in family.samples}


def test_who_asks_after_a_quiet_hour_gets_what_is_true_now(nvml, device, clock, monkeypatch):
    monkeypatch.setattr(gpu_device, "_WAIT_SECONDS", 60)
    assert device.state.temperature == 71
    nvml.nvmlDeviceGetTemperature = lambda *_: 95
    clock.now += 3600
    assert device.state.temperature == 95


def test_a_driver_that_hangs_keeps_nobody_waiting_and_what_it_said_before_is_not_shown_for_ever(nvml, device, clock):
    answers = threading.Event()
    assert asked(device).temperature == 71
    clock.now += 2

    def hang(_):
        answers.wait(60)
        raise nvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)

    nvml.nvmlDeviceGetUtilizationRates = hang
    begun = time.monotonic()
    assert device.state.temperature == 71
    clock.now += 10
    assert device.state.temperature is None
    assert time.monotonic() - begun < 10
    answers.set()
    until(lambda: not device._asking)
