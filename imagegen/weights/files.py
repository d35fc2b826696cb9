"""The weight files of a model's folder: which of them, and what of each, an image needs. Knows nothing of torch."""

from __future__ import annotations

import json
import logging
import re
import struct
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

#: The pipeline reads the states after the text encoder's layers 9, 18 and 27 (diffusers' `text_encoder_out_layers`).
TEXT_ENCODER_LAYERS = 27
#: Files that are pulled into the page cache at once, and bytes at a time.
_PREFETCH_THREADS, _PREFETCH_BYTES = 4, 8 << 20
_MAX_HEADER = 100_000_000


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: bytes `begin` to `end`, the type by safetensors' name."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def header(file: Path) -> tuple[dict[str, Any], int]:
    """What a safetensors file says of its tensors, and where their bytes begin.

    https://github.com/huggingface/safetensors#format: 8 bytes of length, the header, the tensors.

    Raises:
        OSError, ValueError, struct.error: it is no such file.
    """
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        return json.loads(stream.read(min(length, _MAX_HEADER))), 8 + length


def needed(part: str, name: str, layers: int) -> bool:
    """Whether the tensor `name` of a part is read for an image, where its text encoder has `layers` layers.

    Nothing after the last layer that the pipeline reads is. A text encoder that ends there is read through its norm:
    that is then the state after its last layer; the head is not read in any.
    """
    if part != "text_encoder":
        return True
    if match := re.match(r"model\.layers\.(\d+)\.", name):
        return int(match[1]) < TEXT_ENCODER_LAYERS
    return not name.startswith("lm_head.") and not (name.startswith("model.norm.") and layers > TEXT_ENCODER_LAYERS)


def text_encoder_layers(folder: Path) -> int:
    """The layers that the text encoder of a model has by its config."""
    return int(json.loads((folder / "text_encoder" / "config.json").read_text(encoding="utf-8"))["num_hidden_layers"])


def files(folder: Path, part: str) -> list[Path]:
    """The weight files of a part that hold anything needed."""
    index = next((folder / part).glob("*.safetensors.index.json"), None)
    if index is None:
        return sorted((folder / part).glob("*.safetensors"))
    layers = text_encoder_layers(folder)
    weight_map: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    return sorted({folder / part / file for name, file in weight_map.items() if needed(part, name, layers)})


def stored(folder: Path, part: str) -> tuple[dict[str, Stored], dict[str, str]]:
    """The needed tensors of a part, and what its files note beside them (torchao's record of what it quantised).

    Raises:
        OSError, ValueError: a file is not there, or is none of safetensors.
    """
    layers = text_encoder_layers(folder)
    tensors: dict[str, Stored] = {}
    notes: dict[str, str] = {}
    for file in files(folder, part):
        entries, start = header(file)
        notes.update(entries.pop("__metadata__", {}))
        for name, entry in entries.items():
            if needed(part, name, layers):
                begin, end = entry["data_offsets"]
                tensors[name] = Stored(file, entry["dtype"], tuple(entry["shape"]), start + begin, start + end)
    if not tensors:
        raise ValueError(f"{part} has no weights")
    return tensors, notes


def prefetch(folder: Path) -> threading.Thread:
    """Begins to pull a model's files into the page cache, so that they are there when torch has been imported. What
    fails here fails again, and is told, where they are loaded."""

    def pull(file: Path) -> None:
        buffer = bytearray(_PREFETCH_BYTES)
        with file.open("rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass

    def pull_all() -> None:
        try:
            everything = [file for part in ("text_encoder", "transformer", "vae") for file in files(folder, part)]
            with ThreadPoolExecutor(_PREFETCH_THREADS, "prefetch") as pool:
                list(pool.map(pull, everything))
        except (OSError, ValueError, KeyError) as error:
            log.debug("the weights are not read ahead: %s", error)

    thread = threading.Thread(target=pull_all, name="prefetch", daemon=True)
    thread.start()
    return thread


def write_whole(data: bytes, file: Path) -> None:
    """Writes a file whole or not at all; workers under other users can read it.

    Raises:
        OSError: it cannot be written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=file.parent, delete=False) as made:
        part = Path(made.name)
    try:
        part.write_bytes(data)
        part.chmod(0o644)
        part.replace(file)
    except OSError:
        part.unlink(missing_ok=True)
        raise
