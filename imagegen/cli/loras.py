"""Lists the LoRA adapters of IMAGEGEN_LORAS, or checks files, against a model. Loads nothing.

    imagegen loras                                   the adapters on this machine, their ranks, and which are broken
    imagegen loras check FILE... --model klein-9b    whether files are adapters of a model

Exit status: 1 where one is broken.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from imagegen import logs
from imagegen.cli.jobs import user_settings
from imagegen.memory.plan import gib
from imagegen.models import get_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("action", nargs="?", choices=["list", "check"], default="list", help="default: list")
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="for check: safetensors files")
    parser.add_argument("--model", help="the model; default: IMAGEGEN_MODEL, else klein-9b")


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit status."""
    settings = user_settings(args.model)
    logs.configure(settings)
    from imagegen.engine import lora_sources
    from imagegen.memory.footprint import lora_bytes

    if bool(args.files) != (args.action == "check"):
        args.parser.error("check needs FILE, and list takes none")
    spec = get_model(settings.model or "klein-9b")
    if args.action == "check":
        entries = [lora_sources.check(file.stem, file, settings, spec) for file in args.files]
    else:
        entries = list(lora_sources.list_entries(settings, spec, fetch=False).values())
    for entry in entries:
        if entry.header is None:
            print(f"{entry.name}: {entry.fault}")
        else:
            rank, changed = entry.header.rank, entry.header.layers
            print(f"{entry.name}: rank {rank}, {changed} layers of {spec.name}, {gib(entry.file.stat().st_size)}")
    room = gib(lora_bytes(spec, settings.lora_rank))
    print(f"a job's LoRAs may have rank {settings.lora_rank} together, which takes {room} of the GPU's memory")
    return int(any(entry.header is None for entry in entries))
