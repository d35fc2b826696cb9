"""`imagegen.builder.quantize` on a checkpoint of klein-9b's size with random weights: peak memory, peak disk, time, and
whether what comes out is whole.

    python -m benchmarks.quantize FOLDER [--precision fp8] [--text-encoder bf16]

Each file of the source is written just before it is used and deleted after, so that FOLDER needs the room of the result
and the largest file. Prints Markdown for docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import struct
import sys
import time
from pathlib import Path
from typing import Any

import torch

if not __package__:  # started by its path, which makes this folder the place of imports
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.random_model import prepare, split, write_index
from imagegen.builder.quantize import Quantizer
from imagegen.model.assembly import empty_modules, missing
from imagegen.models import get_model
from imagegen.weights import files as weight_files
from imagegen.weights.sources import find_fault

#: Bytes of a file, at most: as diffusers and transformers divide what they publish.
_SHARDS = {"transformer": 10e9, "text_encoder": 5e9, "vae": 10e9}


def write_shard(path: Path, tensors: dict[str, torch.Tensor], noise: torch.Tensor) -> None:
    """Writes a file of random bf16 weights, a piece at a time."""
    entries: dict[str, dict[str, Any]] = {}
    at = 0
    for name, tensor in tensors.items():
        size = 2 * tensor.numel()
        entries[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(entries).encode()
    piece = noise.view(torch.uint8).numpy().data
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for entry in entries.values():
            begin, end = entry["data_offsets"]
            for start in range(begin, end, len(piece)):
                file.write(piece[: min(len(piece), end - start)])


def disk(*folders: Path) -> int:
    """Bytes of the files under the folders."""
    return sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())


def main() -> int:
    """The command line; exit status 1 where what came out is not whole, or a limit was passed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where there is room; what is written there is deleted at the end")
    parser.add_argument("--precision", choices=("bf16", "fp8", "int8"), default="fp8", help="of the transformer")
    parser.add_argument("--text-encoder", choices=("bf16", "fp8", "int8"), default="bf16", help="its precision")
    args = parser.parse_args()
    source, target = args.folder / "source", args.folder / "target"
    try:
        return measure(source, target, args.precision, args.text_encoder)
    finally:
        shutil.rmtree(source, ignore_errors=True)
        shutil.rmtree(target, ignore_errors=True)


def measure(source: Path, target: Path, precision: Any, text_encoder: Any) -> int:
    """Makes the folder, and prints what it took."""
    spec = get_model("klein-9b")
    modules = prepare(spec, source)
    plans = {part: split(module, source / part, _SHARDS[part]) for part, module in modules.items()}
    write_index(spec, source)
    noise = torch.randn(16 << 20).bfloat16() * 0.02
    quantizer = Quantizer(source, target, precision, text_encoder)
    seconds, most, largest = 0.0, 0, 0
    for shard in quantizer.shards():
        part, file = shard.split("/")
        write_shard(source / shard, plans[part][file], noise)
        largest = max(largest, (source / shard).stat().st_size)
        begun = time.monotonic()
        quantizer.add(shard)
        seconds += time.monotonic() - begun
        most = max(most, disk(source, target))
        (source / shard).unlink()
        print(f"{shard}: {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
    quantizer.finish()
    fault = find_fault(target) or missing(target)
    result = disk(target)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    tensors = {part: len(weight_files.stored(target, part)[0]) for part in empty_modules(target)}
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    print(f"{time.strftime('%Y-%m-%d')}, {machine}, transformer {precision}, text encoder {text_encoder}\n")
    print("| what | figure | limit |\n|---|---|---|")
    print(f"| peak memory (resident set, pages of files included) | {memory / 2**30:.2f} GiB | 8 GiB |")
    print(f"| peak disk | {most / 1e9:.2f} GB | {(result + largest) / 1e9:.2f} GB: the result and the largest file |")
    print(f"| result | {result / 1e9:.2f} GB, {sum(tensors.values())} tensors | |")
    print(f"| all weights there, in their shapes | {'yes' if fault is None else fault} | yes |")
    print(f"| time, without writing the source | {seconds:.0f} s | |")
    return int(fault is not None or memory > 8 * 2**30 or most > result + largest)


if __name__ == "__main__":
    sys.exit(main())
