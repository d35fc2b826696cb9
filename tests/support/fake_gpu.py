"""A GPU that is not there: the project's own code at full size on fake CUDA tensors, on a CPU build of torch.

Tensors have a shape, a type and a device and no values (`FakeTensorMode`), so klein-9b loads and runs in seconds. Torch
itself refuses an operation on tensors of two devices or types, as on a GPU. The bytes that torch's allocator would hold
are counted (`FakeGpu.live`, `FakeGpu.peak`), and so is whatever makes the host wait for the GPU (`FakeGpu.waits`).

Not covered: time, values, kernels, what streams overlap, CUDA graphs, and what the allocator loses to fragmentation.
"""

from __future__ import annotations

import contextlib
import traceback
import weakref
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future
from functools import partial
from typing import Any

import numpy as np
import torch
from diffusers import Flux2KleinKVPipeline, Flux2KleinPipeline
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from imagegen.memory.plan import CONTEXT
from imagegen.model import assembly, prompt
from tests.support.fake_cuda import Event, Generator, Graph, Stream

aten = torch.ops.aten

GIB = 2**30
#: CUDACachingAllocator rounds each block up to this (kMinBlockSize).
_BLOCK = 512
#: Imported before torch is changed; diffusers imports them when they are first asked for.
_PIPELINES = (Flux2KleinPipeline, Flux2KleinKVPipeline)
_DATA: Any = torch.Tensor.data
#: Code whose lines are named as the place of a wait.
_PLACES = ("/diffusers/", "/imagegen/", "/transformers/", "/torchao/", "/accelerate/")


class FakeGpu(TorchDispatchMode):
    """Counts the bytes of the storages of fake CUDA tensors, and the waits of the host.

    Attributes:
        live, peak: bytes in use now, and at most since `reset`.
        waits: what made the host wait since `reset`, and how often: "item", "synchronize", and "copy up" or "copy down"
            for a blocking copy to or from the GPU; each with the place in the code.
        limit: bytes above which an allocation fails with torch.OutOfMemoryError.
    """

    supports_higher_order_operators = True

    def __init__(self, total: int) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.total = self.limit = total
        self.waits: Counter[str] = Counter()
        self._storages: dict[int, int] = {}

    def reset(self) -> None:
        """Begins to count anew, from what is held now."""
        self.peak = self.live
        self.waits.clear()

    def wait(self, kind: str) -> None:
        """Records that the host waits for the GPU."""
        frames = [f for f in traceback.extract_stack(limit=60) if any(place in f.filename for place in _PLACES)]
        name = f"{frames[-1].filename.rpartition('/')[2]} {frames[-1].name}" if frames else "?"
        self.waits[f"{kind}: {name}"] += 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is aten._local_scalar_dense.default:
            return self._item(func, *args)
        if func in (aten.nonzero.default, aten.is_nonzero.default) and _on_gpu(args[0]):
            self.wait("item")
        if func is aten._to_copy.default:
            self._note_copy(args[0], kwargs.get("device"), kwargs.get("non_blocking", False))
            if isinstance(args[0], FakeTensor):
                args[0].constant = None  # a value that fake tensors remember; a copy of it would be a real tensor
        elif func is aten.copy_.default:
            self._note_copy(args[1], args[0].device, args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
        out = func(*args, **kwargs)
        for tensor in tree_leaves(out):
            self._count(tensor)
        return out

    def _item(self, func: Any, tensor: torch.Tensor) -> Any:
        if not isinstance(tensor, FakeTensor):
            return func(tensor)
        if _on_gpu(tensor):
            self.wait("item")
        return True if tensor.dtype == torch.bool else 1.0 if tensor.is_floating_point() else 1

    def _note_copy(self, source: Any, target: Any, non_blocking: bool) -> None:
        if not isinstance(source, torch.Tensor) or target is None or non_blocking:
            return
        if torch.device(target).type != source.device.type and "meta" not in (source.device.type, str(target)):
            self.wait("copy up" if source.device.type == "cpu" else "copy down")

    def _count(self, tensor: Any) -> None:
        if not isinstance(tensor, torch.Tensor):
            return
        if not isinstance(tensor, FakeTensor):  # a quantised tensor is made of several
            for name in getattr(tensor, "tensor_data_names", ()):
                self._count(getattr(tensor, name))
            return
        if not _on_gpu(tensor):
            return
        storage = tensor.untyped_storage()
        key, size = storage._cdata, -(-storage.nbytes() // _BLOCK) * _BLOCK
        if key in self._storages:
            return
        if self.live + size > self.limit:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size / GIB:.2f} GiB.")
        self._storages[key] = size
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self.live -= self._storages.pop(key)


def _on_gpu(tensor: Any) -> bool:
    return isinstance(tensor, FakeTensor) and tensor.fake_device.type == "cuda"


class _Indexing(TorchFunctionMode):
    """Indexing, `contiguous` and the choice of a kernel for attention, which torch does in C++ for a device that this
    build knows: here in terms of operations that fake tensors have."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not _on_gpu(args[0] if args else kwargs.get("query")):
            return func(*args, **kwargs)
        if func is torch.nn.functional.scaled_dot_product_attention:
            return _attention(*args, **kwargs)
        if func is torch.Tensor.__getitem__:
            return _get(*args)
        if func is torch.Tensor.__setitem__:
            target, value = _get(args[0], args[1]), args[2]
            target.copy_(value) if isinstance(value, torch.Tensor) else target.fill_(value)
            return None
        if func is torch.Tensor.copy_:
            with torch._C._AutoDispatchBelowAutograd():
                return aten.copy_.default(*args, **kwargs)
        if func is torch.Tensor.contiguous:
            form = kwargs.get("memory_format", args[1] if len(args) > 1 else torch.contiguous_format)
            done = args[0].is_contiguous(memory_format=form)
            return args[0] if done else aten.clone.default(args[0], memory_format=form)
        return func(*args, **kwargs)


def _get(tensor: torch.Tensor, index: Any) -> torch.Tensor:
    index = index if isinstance(index, tuple) else (index,)
    if any(i is Ellipsis for i in index):
        at = next(n for n, i in enumerate(index) if i is Ellipsis)
        used = sum(i is not None and i is not Ellipsis for i in index)
        index = index[:at] + (slice(None),) * (tensor.ndim - used) + index[at + 1 :]
    dim, gathered = 0, []
    for i in index:
        if i is None:
            tensor, dim = tensor.unsqueeze(dim), dim + 1
        elif isinstance(i, slice):
            if i != slice(None):
                tensor = aten.slice.Tensor(tensor, dim, i.start, i.stop, i.step or 1)
            dim += 1
        elif isinstance(i, int):
            tensor = aten.select.int(tensor, dim, i)
        elif i.ndim == 0:
            tensor = aten.index_select.default(tensor, dim, i.reshape(1)).squeeze(dim)
        else:
            gathered += [None] * (dim - len(gathered)) + [i]
            dim += 1
    return aten.index.Tensor(tensor, gathered) if gathered else tensor


def _attention(
    query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0, is_causal: bool = False, **how: Any
) -> torch.Tensor:
    """As torch chooses on a GPU from compute capability 8.0: FlashAttention without a mask up to a head of 256, else
    the memory-efficient kernel."""
    scale = how.get("scale")
    if attn_mask is None and query.shape[-1] <= 256:
        return aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, False, scale=scale)[0]
    if how.get("enable_gqa"):
        each = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(each, 1), value.repeat_interleave(each, 1)
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            attn_mask = torch.where(attn_mask, 0.0, float("-inf")).to(query.dtype)
        attn_mask = attn_mask.expand(query.shape[0], query.shape[1], -1, -1)
    return aten._scaled_dot_product_efficient_attention(
        query, key, value, attn_mask, False, dropout_p, is_causal, scale=scale
    )[0]


class _InThisThread:
    """A ThreadPoolExecutor whose work is done by who hands it in: torch's modes are of one thread."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __enter__(self) -> _InThisThread:
        return self

    def __exit__(self, *_: object) -> None: ...

    def submit(self, work: Any, *arguments: Any) -> Future[Any]:
        done: Future[Any] = Future()
        try:
            done.set_result(work(*arguments))
        except BaseException as error:  # noqa: BLE001 (as a pool does)
            done.set_exception(error)
        return done

    def shutdown(self, **_: Any) -> None: ...


def _set_data(tensor: FakeTensor, value: torch.Tensor) -> None:
    """`tensor.data = value`, after which a fake tensor would still be where it was."""
    _DATA.__set__(tensor, value)
    if isinstance(value, FakeTensor):
        tensor.fake_device = value.fake_device


def _apply(self: torch.nn.Module, function: Any, recurse: bool = True) -> torch.nn.Module:
    """torch.nn.Module._apply, which asks fake tensors for what they cannot tell."""
    for module in self.children():
        module._apply(function)
    with torch.no_grad():
        for key, parameter in self._parameters.items():
            if parameter is not None:
                new = function(parameter)
                same = new is parameter
                self._parameters[key] = parameter if same else torch.nn.Parameter(new, requires_grad=False)
        for key, buffer in self._buffers.items():
            if buffer is not None:
                self._buffers[key] = function(buffer)
    return self


def _numpy(self: FakeTensor, **_: Any) -> np.ndarray[Any, Any]:
    return np.zeros(tuple(self.shape), dtype=str(self.dtype).removeprefix("torch."))


def _read(stored: Any, device: str) -> torch.Tensor:
    return torch.empty(stored.shape, dtype=assembly.DTYPES[stored.dtype], device=device)


@contextlib.contextmanager
def fake_gpu(gigabytes: float = 80, capability: tuple[int, int] = (9, 0)) -> Iterator[FakeGpu]:
    """While it is open, torch has one CUDA device, "cuda:0", of `gigabytes` (GiB) and this compute capability."""
    gpu = FakeGpu(int(gigabytes * GIB))
    _device_constructors()  # torch keeps its functions that make tensors: its own, and not those below
    make_generator, empty, randn = torch.Generator, torch.empty, torch.randn
    patches: list[tuple[Any, str, Any]] = [
        (torch.cuda, "is_available", lambda: True),
        (torch.cuda, "current_device", lambda: 0),
        (torch.cuda, "synchronize", lambda device=None: gpu.wait("synchronize")),
        (torch.cuda, "empty_cache", lambda: None),
        (torch.accelerator, "empty_host_cache", lambda: None),
        (torch.cuda, "mem_get_info", lambda device=None: (gpu.total - gpu.live - CONTEXT, gpu.total)),
        (torch.cuda, "memory_reserved", lambda device=None: gpu.live),
        (torch.cuda, "memory_allocated", lambda device=None: gpu.live),
        (torch.cuda, "max_memory_allocated", lambda device=None: gpu.peak),
        (torch.cuda, "reset_peak_memory_stats", lambda device=None: gpu.reset()),
        (torch.cuda, "get_device_capability", lambda device=None: capability),
        (torch.cuda, "get_device_name", lambda device=None: "a fake GPU"),
        (torch.cuda, "Event", lambda **_: Event(gpu)),
        (torch.cuda, "current_stream", lambda device=None: Stream(gpu)),
        (torch.cuda, "Stream", lambda device=None: Stream(gpu)),
        (torch.cuda, "stream", contextlib.nullcontext),
        (torch.accelerator, "current_accelerator", lambda *_: torch.device("cuda")),
        (FakeTensor, "record_stream", lambda self, stream: None),
        (FakeTensor, "is_pinned", lambda self, *_: False),
        (FakeTensor, "data", property(lambda self: _DATA.__get__(self), _set_data)),
        (torch, "empty", lambda *size, pin_memory=False, **how: empty(*size, **how)),
        (
            torch,
            "Generator",
            lambda device="cpu": Generator(device) if "cuda" in str(device) else make_generator(device),
        ),
        (torch, "randn", lambda *size, generator=None, **how: randn(*size, **how)),
        (torch.nn.Module, "_apply", _apply),
        (fake_tensor, "init_gpu_context", lambda device: None),
        (FakeTensor, "numpy", _numpy),
        (FakeTensor, "pin_memory", lambda self, *_: self),
        (assembly, "ThreadPoolExecutor", _InThisThread),
        (assembly, "read_tensor", _read),
        (prompt, "Graph", partial(Graph, gpu)),
    ]
    saved = [(owner, name, vars(owner).get(name, Event)) for owner, name, _ in patches]
    for owner, name, value in patches:
        setattr(owner, name, value)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), gpu, _Indexing():
            yield gpu
    finally:
        for owner, name, value in reversed(saved):
            delattr(owner, name) if value is Event else setattr(owner, name, value)
