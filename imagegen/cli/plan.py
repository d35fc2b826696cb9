"""Shows in one line how a model fits a GPU's memory: precision, what waits on the CPU, and the peak. Loads nothing.

    imagegen plan                                    for the GPU of this machine
    imagegen plan --gpu-gb 24 --capability 8.9       for another GPU

nf4 is planned where bitsandbytes is installed.
"""

from __future__ import annotations

import argparse

from imagegen import logs
from imagegen.cli.jobs import user_settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--model", help="the model to plan for; default: IMAGEGEN_MODEL, else klein-9b")
    parser.add_argument(
        "--gpu-gb", "--card-gb", type=_gigabytes, metavar="N", help="a GPU of N GB; default: this machine's"
    )
    parser.add_argument(
        "--capability",
        type=_capability,
        default=(8, 9),
        metavar="X.Y",
        help="that GPU's compute capability, which says what it can calculate with: 8.6 RTX 30, 8.9 RTX 40 (default), "
        "9.0 H100, 12.0 RTX 50",
    )


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit status."""
    settings = user_settings(args.model)
    logs.configure(settings)
    from imagegen.memory.plan import Gpu, read_gpu
    from imagegen.model import loading
    from imagegen.model.acceleration import is_installed
    from imagegen.models import get_model
    from imagegen.weights.sources import find_weights

    if args.gpu_gb is None:
        spec = loading.choose_model(settings)
        gpu = read_gpu(settings.device or loading.default_device())
    else:
        spec, gpu = get_model(settings.model or "klein-9b"), Gpu.of(args.gpu_gb, args.capability)
    print(loading.plan(spec, settings, find_weights(spec, settings), gpu, is_installed("bitsandbytes")))
    return 0


def _gigabytes(text: str) -> float:
    try:
        if 0 < (value := float(text)) <= 1024:
            return value
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not a size of a GPU; allowed is over 0 to 1024 GB")


def _capability(text: str) -> tuple[int, int]:
    major, _, minor = text.partition(".")
    if not (major.isdecimal() and minor.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a compute capability such as 8.9")
    return int(major), int(minor)
