"""The state of the GPU itself, as NVIDIA's management library has it: load, memory, heat, throttling, errors.

The library is the extra `nvml` (nvidia-ml-py). Without it, or without NVIDIA's driver, nothing is known and nothing is
shown. Names of the constants: https://docs.nvidia.com/deploy/nvml-api.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from imagegen.contract.gpu_state import GpuState

log = logging.getLogger(__name__)

#: Reasons for a lower clock that are a fault of the machine: heat, power supply. A power cap is not: every GPU that
#: works hard meets its own.
_THROTTLING = {
    "hw_slowdown": "nvmlClocksEventReasonHwSlowdown",
    "hw_thermal": "nvmlClocksEventReasonHwThermalSlowdown",
    "hw_power_brake": "nvmlClocksEventReasonHwPowerBrakeSlowdown",
    "sw_thermal": "nvmlClocksEventReasonSwThermalSlowdown",
}
#: The driver's figures are not asked for more often; they take milliseconds, and who asks waits so long for them; from
#: a driver that has said nothing for so long there are none.
_FRESH_SECONDS, _WAIT_SECONDS, _STALE_SECONDS = 1.0, 0.2, 5.0
#: A Xid of the driver that a program causes itself, by an illegal access for example; all others are the GPU's.
#: https://docs.nvidia.com/deploy/xid-errors
_OF_PROGRAMS = {13, 31, 43, 45, 68, 69}


class GpuDevice(Collector):
    """One GPU.

    Args:
        nvml: the module pynvml, initialised.
        uuid: of the GPU, as CUDA has it.
    """

    def __init__(self, nvml: Any, uuid: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._nvml, self._clock = nvml, clock
        self._handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
        self._xids: dict[int, int] = {}
        self._events = self._listen()
        self._lock = threading.Lock()
        self._state, self._read_at = GpuState(), -_FRESH_SECONDS
        self._asking, self._answered = False, threading.Event()
        self._said: str | None = None

    @property
    def state(self) -> GpuState:
        """What the driver says, at most a second old. What it does not tell is null; all, while it does not answer.

        A driver may hang with a broken GPU while /health must answer: who asks it waits a fifth of a second, once.
        """
        with self._lock:
            asked = not self._asking and self._clock() - self._read_at >= _FRESH_SECONDS
            if asked:
                self._asking = True
                self._answered.clear()
                threading.Thread(target=self._refresh, name="gpu-state", daemon=True).start()
        if asked:
            self._answered.wait(_WAIT_SECONDS)
        return self._state if self._clock() - self._read_at < _STALE_SECONDS else GpuState()

    def _refresh(self) -> None:
        try:
            self._state = self._read()
            if self._state.degraded != self._said:
                self._said = self._state.degraded
                log.warning("the GPU is degraded: %s", self._said or "no longer")
        finally:
            self._read_at, self._asking = self._clock(), False
            self._answered.set()

    def collect(self) -> Iterator[Metric]:
        """Its state as metrics."""
        state = self.state
        gauges = {
            "utilization_ratio": ("Share of the last second in which a kernel ran.", state.utilization),
            "device_memory_used_bytes": ("Memory in use, by all processes.", state.memory_used),
            "device_memory_bytes": ("Memory that there is.", state.memory_total),
            "temperature_celsius": ("Temperature of the chip.", state.temperature),
            "power_watts": ("Power that it draws.", state.power),
            "uncorrectable_errors": ("Errors of its memory since the driver began.", state.ecc_errors),
        }
        for name, (about, value) in gauges.items():
            if value is not None:
                yield GaugeMetricFamily(f"imagegen_gpu_{name}", about, value)
        throttled = GaugeMetricFamily("imagegen_gpu_throttled", "1 while a fault lowers its clock.", labels=["reason"])
        for reason in _THROTTLING:
            throttled.add_metric([reason], float(reason in state.throttled))
        yield throttled
        xids = CounterMetricFamily("imagegen_gpu_xid_errors", "Errors that the driver reported.", labels=["xid"])
        for xid, count in list(self._xids.items()):
            xids.add_metric([str(xid)], count)
        yield xids

    def _read(self) -> GpuState:
        nvml = self._nvml
        self._read_events()
        rates = self._ask("nvmlDeviceGetUtilizationRates")
        memory = self._ask("nvmlDeviceGetMemoryInfo")
        power = self._ask("nvmlDeviceGetPowerUsage")
        reasons = self._ask("nvmlDeviceGetCurrentClocksEventReasons") or 0
        state = GpuState(
            utilization=None if rates is None else rates.gpu / 100,
            memory_used=None if memory is None else memory.used,
            memory_total=None if memory is None else memory.total,
            temperature=self._ask("nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU),
            power=None if power is None else power / 1000,
            ecc_errors=self._ask(
                "nvmlDeviceGetTotalEccErrors", nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
            ),
            throttled=[name for name, constant in _THROTTLING.items() if reasons & getattr(nvml, constant)],
            xids=sorted(self._xids),
        )
        faults = [f"throttled ({', '.join(state.throttled)})"] if state.throttled else []
        if state.ecc_errors:
            faults.append(f"{state.ecc_errors} uncorrectable memory errors")
        faults += [f"Xid {xid}" for xid in state.xids if xid not in _OF_PROGRAMS]
        state.degraded = "; ".join(faults) or None
        return state

    def _ask(self, question: str, *more: Any) -> Any:
        """An answer of the driver; None where this GPU or this driver has none."""
        with suppress(self._nvml.NVMLError):
            return getattr(self._nvml, question)(self._handle, *more)
        return None

    def _listen(self) -> Any:
        """Asks for the driver's errors from now on; None where it tells of none."""
        with suppress(self._nvml.NVMLError):
            events = self._nvml.nvmlEventSetCreate()
            kinds = self._nvml.nvmlEventTypeXidCriticalError | self._nvml.nvmlEventTypeDoubleBitEccError
            self._nvml.nvmlDeviceRegisterEvents(self._handle, kinds, events)
            return events
        return None

    def _read_events(self) -> None:
        with suppress(self._nvml.NVMLError):  # among them: there is no more
            while self._events is not None:
                event = self._nvml.nvmlEventSetWait_v2(self._events, 0)
                xid = 48 if event.eventType == self._nvml.nvmlEventTypeDoubleBitEccError else int(event.eventData)
                self._xids[xid] = self._xids.get(xid, 0) + 1
                log.error("the driver reported Xid %d", xid)


def open_device(uuid: str) -> GpuDevice | None:
    """The GPU with this UUID; None without the library or the driver.

    Args:
        uuid: as `torch.cuda.get_device_properties` has it.
    """
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        return GpuDevice(pynvml, uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}")
    except pynvml.NVMLError as error:
        log.info("nothing is known of the GPU's own state: %s", error)
        return None
