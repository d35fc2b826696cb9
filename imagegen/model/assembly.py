"""Puts a pipeline together: its modules are made without weights, then these come from the files straight to where
they live, several at once, text encoder and transformer side by side.

diffusers and transformers would load one after the other, in one thread where the weights are quantised, through the
CPU's memory, and the text encoder's unneeded layers too.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import FileIO
from itertools import cycle, zip_longest
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel
from torch import nn
from tqdm import tqdm
from transformers import AutoConfig, Qwen3ForCausalLM

from imagegen.compat import torch as inside_torch
from imagegen.compat import torchao as inside_torchao
from imagegen.contract.start_times import StartTimes
from imagegen.memory.types import Precision
from imagegen.model import quantization
from imagegen.model.acceleration import load_decoder, speed_up_vae
from imagegen.model.config import FluxConfig
from imagegen.model.offload import CpuEmbedding, OnloadHook
from imagegen.model.prepared import PreparedScheduler, prepared_class
from imagegen.model.quantized_linear import QuantizedLinear
from imagegen.weights import files as weight_files

#: Threads that read weights, and the bytes that each reads before they are on their way to the GPU: on an H100 8 load
#: klein-9b from the page cache in 1.4 s, 4 in 1.9 s (docs/benchmarks.md).
THREADS, _CHUNK = 8, 8 << 20
DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "I8": torch.int8,
    "I64": torch.int64,
}
_EMBEDDING = "model.embed_tokens"
_on_meta = threading.Lock()
_of_thread = threading.local()


def assemble(config: FluxConfig, device: str, dtype: torch.dtype, times: StartTimes) -> Any:
    """The diffusers pipeline of a folder, where its parts live by the config.

    Raises:
        OSError, ValueError, KeyError: the folder is no whole diffusers model.
        ConfigurationError: the other decoder that was asked for cannot be loaded.
        torch.OutOfMemoryError: it does not fit.
    """
    path, offload = config.path, config.offload
    home = "cpu" if offload == "group" else device
    decoder = load_decoder(config.decoder, dtype).to(home) if config.decoder is not None else None
    with times.measure("build"):
        modules = empty_modules(path)
        precisions: dict[str, Precision] = {"text_encoder": config.text_encoder, "transformer": config.transformer}
        fillers = {
            part: WeightLoader(path, part, module, precisions.get(part, "bf16"), device, home, dtype)
            for part, module in modules.items()
            if part != "vae" or decoder is None
        }
    waiting = {"text_encoder": ["text_encoder"], "model": ["text_encoder", "transformer"]}.get(offload, [])
    for part in waiting:
        fillers[part].home = "cpu"
    fillers["text_encoder"].host_embedding = bool(waiting) or offload == "embeddings"
    begun = time.monotonic()
    with ThreadPoolExecutor(THREADS, "weights") as pool:
        jobs = [pool.submit(fill, name) for fill, name in _tasks(list(fillers.values()))]
        try:
            bar = tqdm(jobs, "loading weights", disable=not config.progress)
            seconds = [job.result() for job in bar]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        inside_torch.empty_host_cache()  # the chunks that weights passed through
        torch.cuda.empty_cache()  # what they were quantised from
    passed, read = time.monotonic() - begun, sum(reading for reading, _ in seconds)
    share = read / (sum(reading + moving for reading, moving in seconds) or 1)
    times.read, times.to_card = passed * share, passed * (1 - share)
    if decoder is not None:
        modules["vae"] = decoder
    _check_filled(modules)
    speed_up_vae(modules["vae"], device)
    kind = prepared_class(getattr(diffusers, config.spec.pipeline_class))
    modules["scheduler"] = PreparedScheduler.from_pretrained(path / "scheduler", local_files_only=True)
    pipe: Any = kind.from_pretrained(path, local_files_only=True, **modules)
    if "text_encoder" in waiting:
        OnloadHook(modules["text_encoder"], device)
    if "transformer" in waiting:
        pipe.fetched = OnloadHook(modules["transformer"], device, stays=True)
    if offload == "group":
        pipe.enable_group_offload(torch.device(device), offload_type="leaf_level", use_stream=True)
    return pipe


def empty_modules(path: Path) -> dict[str, Any]:
    """The parts of a folder that have weights, on meta."""
    return {
        "text_encoder": _empty_text_encoder(path),
        "transformer": _empty(Flux2Transformer2DModel, path / "transformer"),
        "vae": _empty(AutoencoderKLFlux2, path / "vae"),
    }


def _check_filled(modules: dict[str, Any]) -> None:
    """Raises RuntimeError where a parameter or buffer still has no value: jobs would fail one by one."""
    for part, module in modules.items():
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if tensor.device.type == "meta":
                raise RuntimeError(f"{part}: {name} was not loaded")


@contextmanager
def _building_on_meta() -> Iterator[None]:
    """Modules that are made here have no memory, buffers included; those of other threads are as they were.

    Not accelerate.init_empty_weights: it replaces a method of nn.Module for the whole process, and another load would
    register its weights through it. One thread at a time, for the one global that torch.device keeps (the device that
    torch.compile's guards compare).
    """
    with _on_meta, torch.device("meta"):
        yield


def missing(path: Path) -> str | None:
    """What a folder lacks of its model's weights, or has in another shape; None where nothing. Reads no weight."""
    try:
        for part, module in empty_modules(path).items():
            WeightLoader(path, part, module, "bf16", "meta", "meta", torch.bfloat16)
    except (OSError, ValueError, KeyError) as error:
        return str(error)
    return None


def _empty_text_encoder(path: Path) -> Any:
    """The text encoder with the layers that are read, on meta. What the last one gives is read as it is where layers
    were cut behind it, and through the norm where none were; the head is never read."""
    config = AutoConfig.from_pretrained(path / "text_encoder", local_files_only=True)
    layers = config.num_hidden_layers
    config.num_hidden_layers = min(layers, weight_files.TEXT_ENCODER_LAYERS)
    config.layer_types = config.layer_types[: config.num_hidden_layers]
    config.quantization_config = None
    with _building_on_meta():
        encoder = Qwen3ForCausalLM(config)
    # Its buffers are computed and in no file.
    encoder.model.rotary_emb = type(encoder.model.rotary_emb)(config)
    encoder.lm_head = nn.Identity()
    if layers > weight_files.TEXT_ENCODER_LAYERS:
        encoder.model.norm = nn.Identity()
    return encoder.eval()


def _empty(kind: Any, folder: Path) -> Any:
    """A part of diffusers, on meta."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config.pop("quantization_config", None)
    with _building_on_meta():
        return kind.from_config(config).eval()


class WeightLoader:
    """Fills a part's module, made on meta, with its weights.

    Args:
        precision: what its layers are quantised to, where those of the folder are not.
        device: where that is done, and where the module's buffers are.
        home: where the weights live.

    Raises:
        ValueError: the folder lacks a weight, or has it in another shape.
    """

    def __init__(
        self, path: Path, part: str, module: Any, precision: Precision, device: str, home: str, dtype: torch.dtype
    ) -> None:
        self._part, self._module, self._device, self._dtype = part, module, device, dtype
        self.home, self.host_embedding = home, False
        self._stored, self._notes = weight_files.stored(path, part)
        #: What the folder has quantised: the weights' names, each with those of its tensors.
        self._quantized = {
            name: pieces for name, note in self._notes.items() if (pieces := inside_torchao.tensor_names(name, note))
        }
        self._nf4 = precision == "nf4" and not self._quantized
        self._recipe = None
        if (precision == "fp8" or precision == "int8") and not self._quantized:  # as `in`, mypy would not see it
            self._recipe = quantization.recipe(part, precision)
        weights_and_buffers = module.state_dict()
        for name, buffer in list(module.named_buffers(remove_duplicate=False)):
            if name not in weights_and_buffers:  # those that are come from the files
                layer, _, leaf = name.rpartition(".")
                module.get_submodule(layer).register_buffer(leaf, buffer.to(home), persistent=False)
        self.names = list(weights_and_buffers)
        for name, parameter in weights_and_buffers.items():
            pieces = self._quantized.get(name, [name])
            if lacking := [piece for piece in pieces if piece not in self._stored]:
                raise ValueError(f"{part} lacks {lacking[0]}")
            values = name if pieces == [name] else inside_torchao.values_name(name)
            shape = self._stored[values].shape
            if shape != parameter.shape:
                raise ValueError(f"{part}: {name} is {shape} and not {tuple(parameter.shape)}")

    def __call__(self, name: str) -> tuple[float, float]:
        """Fills one parameter or buffer; returns the seconds that reading and converting took in this thread."""
        begun = time.monotonic()
        layer, _, leaf = name.rpartition(".")
        hosted = self.host_embedding and layer == _EMBEDDING
        config = quantization.layer_config(self._recipe, layer) if self._recipe else None
        nf4 = self._nf4 and quantization.has_layer(self._part, layer)
        where = "cpu" if hosted else self._device if nf4 or config is not None else self.home
        pieces = {piece: read_tensor(self._stored[piece], where) for piece in self._quantized.get(name, [name])}
        read = time.monotonic()
        if hosted:
            self._module.set_submodule(layer, CpuEmbedding(pieces[name].to(self._dtype), self.home))
        elif nf4:
            quantization.set_nf4(self._module, layer, pieces[name].to(self._dtype), self.home)
        else:
            weight = self._convert(name, pieces, config).to(self.home)
            child = self._module.get_submodule(layer)
            if quantization.is_quantized(weight):
                self._module.set_submodule(layer, QuantizedLinear(weight))
            elif leaf in dict(child.named_buffers(recurse=False)):
                child.register_buffer(leaf, weight)
            else:
                child.register_parameter(leaf, nn.Parameter(weight, requires_grad=False))
        return read - begun, time.monotonic() - read

    def _convert(self, name: str, pieces: dict[str, torch.Tensor], config: Any) -> torch.Tensor:
        """A weight in the type or precision in which it runs."""
        if config is not None:
            return quantization.quantize(pieces[name], config)
        if name in self._quantized:
            return quantization.restore(name, pieces, self._notes[name])
        return pieces[name].to(self._dtype) if pieces[name].is_floating_point() else pieces[name]


def _tasks(fillers: list[WeightLoader]) -> list[tuple[WeightLoader, str]]:
    """All weights, those of the parts in turn, so that none waits for another part."""
    queues = zip_longest(*([(filler, name) for name in filler.names] for filler in fillers))
    return [task for tasks in queues for task in tasks if task is not None]


def read_tensor(stored: weight_files.Stored, device: str) -> torch.Tensor:
    """A tensor of a file, in memory of its own: no mapped page waits to be read from the disk when it is used.

    Args:
        device: where it is wanted. A GPU copies it while this thread reads on, from pinned memory that is used again:
            to pin memory for each weight takes longer than to read it.
    """
    there = torch.empty(stored.end - stored.begin, dtype=torch.uint8, device=device)
    with stored.file.open("rb", buffering=0) as stream:
        stream.seek(stored.begin)
        if there.device.type == "cuda":
            _read_through(stream, there, _chunks())
        else:
            _read_into(stream, there)
    return there.view(DTYPES[stored.dtype]).reshape(stored.shape)


def _read_into(stream: FileIO, memory: torch.Tensor) -> None:
    """Fills a CPU's bytes."""
    view = memoryview(memory.numpy().data)
    while view:
        if not (count := stream.readinto(view)):
            raise ValueError(f"{Path(str(stream.name)).name} ends within a tensor")
        view = view[count:]


def _read_through(stream: FileIO, there: torch.Tensor, chunks: Iterator[tuple[torch.Tensor, Any]]) -> None:
    """Fills a GPU's bytes through main memory that the GPU copies from."""
    for part in there.split(_CHUNK):
        chunk, sent = next(chunks)
        _read_into(stream, chunk[: len(part)])
        part.copy_(chunk[: len(part)], non_blocking=True)
        sent.record(torch.cuda.current_stream(part.device))


def _chunks() -> Iterator[tuple[torch.Tensor, Any]]:
    """This thread's pinned memory, each time one of two blocks, when its last copy has left it; and the event to be
    recorded behind the next."""
    if not hasattr(_of_thread, "chunks"):
        _of_thread.chunks = _alternating()
    chunks: Iterator[tuple[torch.Tensor, Any]] = _of_thread.chunks
    return chunks


def _alternating() -> Iterator[tuple[torch.Tensor, Any]]:
    blocks = [(torch.empty(_CHUNK, dtype=torch.uint8, pin_memory=True), torch.cuda.Event()) for _ in range(2)]
    for chunk, sent in cycle(blocks):
        sent.synchronize()
        yield chunk, sent
