"""Whether a file is an adapter of a model, by its safetensors header alone: no tensor is read, nothing unpickled.

https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from imagegen.lora import names
from imagegen.lora.layers import Shape, elements, layers
from imagegen.lora.names import Target
from imagegen.models import MODELS, ModelSpec

#: Bytes of an element of the types that are read.
DTYPES = {"F32": 4, "F16": 2, "BF16": 2}
#: And of an alpha, which some trainers write as they were given it.
_ALPHA_DTYPES = {**DTYPES, "F64": 8, "I64": 8, "I32": 4}
#: klein-9b has 130 layers: three tensors each, of 150 bytes. More is no adapter.
_MAX_HEADER = 4_000_000
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"


class Broken(Exception):
    """A file is no adapter of the model; the message says why, in words that a caller may see."""


class Tensor(NamedTuple):
    """Where a tensor's bytes are in the file, and what they are."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Module:
    """One pair of matrices: `down` (rank, columns), `up` (rows, rank), what layers they are for, and what their product
    is multiplied by; or where that is in the file (`alpha`), divided by the rank."""

    name: str
    targets: tuple[Target, ...]
    down: Tensor
    up: Tensor
    alpha: Tensor | None
    factor: float

    @property
    def rank(self) -> int:
        """Columns of `up`."""
        return self.down.shape[0]


@dataclass(frozen=True)
class Header:
    """An adapter's header: checked."""

    modules: tuple[Module, ...]

    @property
    def rank(self) -> int:
        """The largest of its ranks."""
        return max(module.rank for module in self.modules)

    @property
    def layers(self) -> int:
        """How many layers it changes."""
        return sum(len(module.targets) for module in self.modules)


def most_bytes(spec: ModelSpec, rank: int) -> int:
    """Bytes of the largest file of an adapter of `rank`: all layers in float32, and a header."""
    return elements(spec) * rank * 4 + _MAX_HEADER


def read(file: Path, spec: ModelSpec, most_rank: int) -> Header:
    """Reads and checks a file's header.

    Args:
        spec: the model that the adapter is for.
        most_rank: the largest rank that is allowed.

    Raises:
        Broken: it is no adapter of this model that can be used.
        OSError: it cannot be read.
    """
    if not file.is_file():
        raise Broken("is no file")
    size, most = file.stat().st_size, most_bytes(spec, most_rank)
    if size > most:
        raise Broken(f"has {size / 1e6:.0f} MB; {most / 1e6:.0f} MB are the most that rank {most_rank} needs")
    with file.open("rb") as stream:
        tensors, metadata = _parse(stream.read(8 + _MAX_HEADER), size)
    try:
        return _check(tensors, metadata, spec, most_rank)
    except Broken as error:
        raise Broken(_of_another_model(tensors, metadata, spec, most_rank) or str(error)) from None


def _parse(data: bytes, size: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if data[:4] == _ZIP or (data[:1] == _PICKLE and b"\x00\x00" not in data[1:8]):
        raise Broken("is a pickle, which is never opened; save it as safetensors")
    if len(data) < 8 or not 2 <= (length := struct.unpack("<Q", data[:8])[0]) <= _MAX_HEADER:
        raise Broken("is no safetensors file")
    if len(data) < 8 + length:
        raise Broken("ends within its header")
    try:
        entries = json.loads(data[8 : 8 + length], object_pairs_hook=_object)
        metadata = entries.pop("__metadata__", {})
        tensors = {name: _tensor(name, entry) for name, entry in entries.items()}
        metadata = dict(metadata)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise Broken("has a header that is not of safetensors") from None
    if not tensors:
        raise Broken("holds no tensors")
    at = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        known = _ALPHA_DTYPES.get(tensor.dtype)
        if tensor.begin != at or (known is not None and tensor.end - at != known * math.prod(tensor.shape)):
            raise Broken(f"has a header that does not fit its tensor {_short(name)}")
        at = tensor.end
    if size != 8 + length + at:
        raise Broken(
            f"has {size} bytes of {8 + length + at}" if size < 8 + length + at else "goes on after its tensors"
        )
    start = 8 + length
    moved = {n: t._replace(begin=t.begin + start, end=t.end + start) for n, t in tensors.items()}
    return moved, metadata


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name comes twice")
    return found


def _tensor(name: str, entry: dict[str, Any]) -> Tensor:
    (begin, end), shape = entry["data_offsets"], tuple(entry["shape"])
    whole = (begin, end, *shape)
    if any(type(number) is not int or not 0 <= number < 2**40 for number in whole) or begin > end or len(shape) > 4:
        raise ValueError(name)
    return Tensor(str(entry["dtype"]), shape, begin, end)


def _check(tensors: dict[str, Tensor], metadata: dict[str, Any], spec: ModelSpec, most_rank: int) -> Header:
    if (kind := names.other_kind(tensors)) is not None:
        raise Broken(f"is {kind}, which is not supported; LoRA is")
    settings = _peft_settings(metadata)
    if settings.get("use_dora"):
        raise Broken("is a DoRA, which is not supported; LoRA is")
    found: dict[str, dict[names.Matrix, Tensor]] = {}
    for key, tensor in tensors.items():
        read_as = names.read_key(key, spec)
        if read_as is None:
            raise Broken(f"{_short(key)} is no layer of {spec.name}")
        name, matrix = read_as
        if tensor.dtype not in (allowed := _ALPHA_DTYPES if matrix == "alpha" else DTYPES):
            raise Broken(f"{_short(key)} is of {_short(tensor.dtype)}; allowed are {', '.join(allowed)}")
        if found.setdefault(name, {}).setdefault(matrix, tensor) is not tensor:
            raise Broken(f"{_short(key)} is there twice, under two names")
    made = tuple(_module(name, parts, spec, settings) for name, parts in found.items())
    changed: set[str] = set()
    for module in made:
        if module.rank > most_rank:
            raise Broken(f"has rank {module.rank}; {most_rank} is allowed (IMAGEGEN_LORA_RANK)")
        for target in module.targets:
            if target.layer in changed:
                raise Broken(f"changes {target.layer} twice, under two names")
            changed.add(target.layer)
    return Header(made)


def _module(name: str, parts: dict[names.Matrix, Tensor], spec: ModelSpec, settings: dict[str, Any]) -> Module:
    targets = names.modules(spec)[name]
    for matrix in ("down", "up"):
        if matrix not in parts:
            raise Broken(f"{name} lacks its {matrix} matrix")
    down, up, alpha = parts["down"], parts["up"], parts.get("alpha")
    rows, columns = _shape(targets, layers(spec))
    rank = down.shape[0] if len(down.shape) == 2 else 0
    if rank < 1 or down.shape != (rank, columns) or up.shape != (rows, rank):
        raise Broken(
            f"{name} has matrices of {_by(down.shape)} and {_by(up.shape)}; {spec.name} takes "
            f"(rank, {columns}) and ({rows}, rank)"
        )
    if alpha is not None and math.prod(alpha.shape) != 1:
        raise Broken(f"{name} has an alpha of {_by(alpha.shape)}, and not one number")
    return Module(name, targets, down, up, alpha, _factor(settings, name, rank))


def _shape(targets: tuple[Target, ...], shapes: dict[str, Shape]) -> Shape:
    """Rows and columns that a module of a file has: those of its layers, one below the other."""
    first = shapes[targets[0].layer]
    return (sum(shapes[target.layer][0] for target in targets), first[1])


def _peft_settings(metadata: dict[str, Any]) -> dict[str, Any]:
    """peft's settings of the transformer, as diffusers notes them (`lora_adapter_metadata`); else empty."""
    noted = metadata.get("lora_adapter_metadata")
    if noted is None:
        return {}
    try:
        settings = json.loads(noted)
        return {key.removeprefix("transformer."): value for key, value in settings.items()}
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise Broken("has a lora_adapter_metadata that is no JSON") from None


def _factor(settings: dict[str, Any], name: str, rank: int) -> float:
    """alpha / rank by peft's settings; without them 1, as diffusers takes it."""
    try:
        patterns = settings.get("alpha_pattern") or {}
        own = (value for key, value in patterns.items() if f".{name}".endswith(f".{key}"))
        alpha = next(own, settings.get("lora_alpha", rank))
        factor = alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)
    except (TypeError, AttributeError, OverflowError):
        raise Broken("has a lora_adapter_metadata with an alpha that is no number") from None
    if not math.isfinite(factor):
        raise Broken("has an alpha that is no number")
    return float(factor)


def _of_another_model(
    tensors: dict[str, Tensor], metadata: dict[str, Any], spec: ModelSpec, most_rank: int
) -> str | None:
    """What to say where the tensors are an adapter of another model; None where they are of none that is known."""
    for other in _different(spec):
        try:
            _check(tensors, metadata, other, most_rank)
        except Broken:
            continue
        return f"is an adapter of {other.name}, and {spec.name} is served"
    if (family := names.other_model(tensors)) is not None and names.other_kind(tensors) is None:
        return f"is an adapter of {family}, and {spec.name} is served"
    return None


def _different(spec: ModelSpec) -> Iterator[ModelSpec]:
    """The models of another architecture, one of each."""
    seen = {spec.architecture}
    for other in MODELS.values():
        if other.architecture not in seen:
            seen.add(other.architecture)
            yield other


def _by(shape: tuple[int, ...]) -> str:
    return f"({', '.join(map(str, shape))})"


def _short(text: str) -> str:
    return ascii(text[:80])[1:-1]
