"""What GPU benchmarks measure against: the work of a step, the matrix peak, the speed of reading; and profiles."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.measure import Device
from imagegen.memory.footprint import transformer_linears
from imagegen.models import ModelSpec

#: Side of the product by which a GPU's matrix peak is measured, and how often.
_MATRIX, _PRODUCTS = 8192, 30
#: Bytes that are read at once, and of what a thread reads of a file.
_READ, _PART = 8 << 20, 256 << 20


def step_flops(spec: ModelSpec, side: int, references: int = 0) -> float:
    """Floating-point operations of a denoising step: of the blocks' matrix products, and of attention.

    klein-9b at 1024x1024: 64.4 and 11.1 TFLOP. A base model's guidance does all of it twice.
    """
    a = spec.architecture
    pictures, text = (side // 16) ** 2 * (1 + references), spec.max_sequence_length
    linears = [count * rows * columns for count, rows, columns in transformer_linears(a)]
    # In a double block half of the weights are the image's and half the text's.
    products = sum(linears[:3]) * (pictures + text) + 2 * sum(linears[3:]) * (pictures + text)
    attention = 4 * (pictures + text) ** 2 * a.hidden * (a.double_blocks + a.single_blocks)
    return float(products + attention) * (1 if spec.distilled else 2)


def matrix_peak(device: Device) -> float:
    """Floating-point operations a second of the GPU's best product of two large matrices."""
    import torch

    side, dtype = (_MATRIX, torch.bfloat16) if device.is_cuda else (512, torch.float32)
    a, b = (torch.randn(side, side, device=device.name, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(_PRODUCTS):
        device.synchronize()
        begun = time.perf_counter()
        a @ b
        device.synchronize()
        best = min(best, time.perf_counter() - begun)
    return 2 * side**3 / best


def read_speed(folder: Path, threads: int) -> float:
    """Bytes a second at which the weights' files are read once they are in the page cache."""
    parts = [
        (file, begin)
        for file in sorted(folder.glob("*/*.safetensors"))
        for begin in range(0, file.stat().st_size, _PART)
    ]
    buffers = threading.local()

    def read(part: tuple[Path, int]) -> int:
        if not hasattr(buffers, "own"):
            buffers.own = bytearray(_READ)
        file, begin = part
        left = count = min(_PART, file.stat().st_size - begin)
        with file.open("rb", buffering=0) as stream:
            stream.seek(begin)
            while left:
                left -= stream.readinto(memoryview(buffers.own)[:left])
        return count

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(read, parts))  # into the page cache
        begun = time.perf_counter()
        count = sum(pool.map(read, parts))
    return count / (time.perf_counter() - begun)


def profile(work: Callable[[], object], device: Device, rows: int = 25) -> list[dict[str, Any]]:
    """Where the time of `work` goes: the sum, and the operations (kernels on a GPU) that take most of it, in
    milliseconds and calls."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.is_cuda else [])
    with profile(activities=activities) as profiled:
        work()
        device.synchronize()

    def counts(event: Any) -> bool:
        # What the CPU started is listed beside the kernels with the kernels' time, and annotations with that of both.
        on_gpu = event.device_type == DeviceType.CUDA and not getattr(event, "is_user_annotation", False)
        return on_gpu if device.is_cuda else True

    def spent(event: Any) -> float:
        return float(event.self_device_time_total if device.is_cuda else event.self_cpu_time_total)

    events = sorted(filter(counts, profiled.key_averages()), key=spent, reverse=True)
    total, calls = sum(map(spent, events)) or 1.0, sum(event.count for event in events)
    return [{"operation": "all", "milliseconds": round(total / 1000, 2), "share": 1.0, "calls": calls}] + [
        {
            "operation": event.key[:100],
            "milliseconds": round(spent(event) / 1000, 2),
            "share": round(spent(event) / total, 3),
            "calls": event.count,
        }
        for event in events[:rows]
    ]
