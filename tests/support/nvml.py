"""NVIDIA's management library with one GPU of ours: the constants are the real ones."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pynvml

UUID = "GPU-11111111-2222-3333-4444-555555555555"


class Nvml:
    """What imagegen.telemetry.gpu_device asks of pynvml; set the attributes to what the GPU is to say."""

    NVMLError = pynvml.NVMLError

    def __init__(self) -> None:
        self.reasons = 0
        self.ecc: int | None = 0
        self.events: list[tuple[int, int]] = []
        self.asked = 0

    def __getattr__(self, name: str) -> Any:
        if name.startswith("NVML_") or name.startswith("nvmlClocksEventReason") or name.startswith("nvmlEventType"):
            return getattr(pynvml, name)
        raise AttributeError(name)

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802 - its name
        if uuid != UUID:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return "handle"

    def nvmlDeviceGetUtilizationRates(self, _: str) -> SimpleNamespace:  # noqa: N802
        self.asked += 1
        return SimpleNamespace(gpu=75, memory=20)

    def nvmlDeviceGetMemoryInfo(self, _: str) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(total=24 * 2**30, used=18 * 2**30, free=6 * 2**30)

    def nvmlDeviceGetTemperature(self, _: str, sensor: int) -> int:  # noqa: N802
        assert sensor == pynvml.NVML_TEMPERATURE_GPU
        return 71

    def nvmlDeviceGetPowerUsage(self, _: str) -> int:  # noqa: N802
        return 402_500  # milliwatts

    def nvmlDeviceGetCurrentClocksEventReasons(self, _: str) -> int:  # noqa: N802
        return self.reasons

    def nvmlDeviceGetTotalEccErrors(self, _: str, kind: int, counter: int) -> int:  # noqa: N802
        assert (kind, counter) == (pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC)
        if self.ecc is None:  # a GeForce has none
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return self.ecc

    def nvmlEventSetCreate(self) -> str:  # noqa: N802
        return "events"

    def nvmlDeviceRegisterEvents(self, _: str, kinds: int, __: str) -> None:  # noqa: N802
        assert kinds & pynvml.nvmlEventTypeXidCriticalError

    def nvmlEventSetWait_v2(self, _: str, timeout: int) -> SimpleNamespace:  # noqa: N802
        assert timeout == 0
        if not self.events:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_TIMEOUT)
        kind, data = self.events.pop(0)
        return SimpleNamespace(eventType=kind, eventData=data)
