"""What a GPU that is not there has in place of torch.cuda's classes: events, streams, generators, recorded work."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from imagegen.memory.plan import WORKSPACE

DEVICE = "cuda:0"


class Counted(Protocol):
    """A GPU whose bytes and waits are counted (`fake_gpu.FakeGpu`)."""

    live: int
    peak: int

    def wait(self, kind: str) -> None:
        """Records that the host waits for the GPU."""


class Event:
    """torch.cuda.Event without a clock."""

    def __init__(self, gpu: Counted) -> None:
        self._gpu = gpu

    def record(self, stream: Any = None) -> None: ...

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        self._gpu.wait("event")

    def elapsed_time(self, _: Event) -> float:
        return 1.0


class Generator:
    """torch.Generator of a GPU."""

    def __init__(self, device: Any) -> None:
        self.device = torch.device(device)

    def manual_seed(self, _: int) -> Generator:
        return self


class Stream:
    """torch.cuda.Stream; there is one queue, whatever is asked for."""

    def __init__(self, gpu: Counted) -> None:
        self._gpu = gpu

    def wait_stream(self, other: Stream) -> None: ...

    def synchronize(self) -> None:
        self._gpu.wait("stream")


class Graph:
    """A recorded function, which keeps the memory that it needed when it was recorded, and cuBLAS's for its stream."""

    def __init__(self, gpu: Counted, function: Any, *inputs: torch.Tensor) -> None:
        self._function, before, most = function, gpu.live, gpu.peak
        gpu.peak = before
        function(*inputs)
        self._size, gpu.peak = gpu.peak - before + WORKSPACE, max(gpu.peak, most)
        self._keep()

    def _keep(self) -> None:
        self._kept = torch.empty(self._size, dtype=torch.uint8, device=DEVICE)

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        del self._kept
        output: torch.Tensor = self._function(*inputs)
        self._keep()
        return output
