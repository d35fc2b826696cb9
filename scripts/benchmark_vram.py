"""Memory of the GPU: estimated for every size of GPU, and measured where there is one.

    python -m scripts.benchmark_vram --estimate                          no GPU: table, JSON and chart
    python -m scripts.benchmark_vram                                     on a GPU, with the model's own weights
    python -m scripts.benchmark_vram --random-weights [--cap-gb 24]      the full-size architecture, no download

Writes benchmark_vram.json (one file, bytes as integers), benchmark_vram.png and, of what was generated, images into
--output. Measured are loading, with the plan's offload and with each part fetched for its turn; images from words at
several sizes; edits with 1 to 4 references, and more of them until the GPU is full. Beside each peak stands the
estimate's error.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

if not __package__:  # started by its path, which makes this folder the place of imports
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.measure import Case, Device, Runner, machine, shown, table
from benchmarks.vram_chart import draw_chart
from imagegen.errors import ConfigurationError
from imagegen.memory.footprint import part_bytes
from imagegen.memory.plan import CONTEXT, REFERENCE, RESERVE, Gpu, MemoryPlan, gib
from imagegen.memory.planner import choose, stored_precisions
from imagegen.memory.types import Offload, Precision
from imagegen.model.acceleration import is_installed
from imagegen.model.config import FluxConfig
from imagegen.model.pipeline import FluxPipeline
from imagegen.models import ModelSpec, Size, get_model
from imagegen.settings import get_settings
from imagegen.weights.sources import find_weights

#: GPUs that are estimated: GB and the compute capability of such a GPU. 12: RTX 4070, 16: RTX 4080, 24: RTX 4090,
#: 32: RTX 5090, 48: L40S, 80: H100.
GPUS: list[tuple[int, tuple[int, int]]] = [
    (12, (8, 9)),
    (16, (8, 9)),
    (24, (8, 9)),
    (32, (12, 0)),
    (48, (8, 9)),
    (80, (9, 0)),
]
#: What may be made of the text encoder: its name, its precision, trimmed, embeddings on the GPU.
TEXT_ENCODERS: list[tuple[str, Precision, bool, bool]] = [
    ("bf16, whole", "bf16", False, True),
    ("bf16, 27 layers", "bf16", True, True),
    ("bf16, 27 layers, embeddings on the CPU", "bf16", True, False),
    ("fp8, 27 layers, embeddings on the CPU", "fp8", True, False),
    ("nf4, 27 layers, embeddings on the CPU", "nf4", True, False),
]
TRANSFORMERS: list[Precision] = ["bf16", "fp8", "int8", "nf4"]
#: More references than this are not tried.
_MOST_REFERENCES = 16


def combinations(spec: ModelSpec) -> list[dict[str, Any]]:
    """Every combination of transformer and text encoder: bytes of the parts, on the GPU, and at the peak of an image
    of the default size without references, with one and with the most."""
    rows = []
    for transformer in TRANSFORMERS:
        for name, precision, trimmed, embeddings in TEXT_ENCODERS:
            parts = part_bytes(spec, transformer, precision, trimmed)
            offload: Offload = "none" if embeddings else "embeddings"
            size = (spec.size, spec.size)
            plan = MemoryPlan(
                spec, None, transformer, precision, offload, spec.max_references, size, parts, compiled=True
            )
            peaks = {str(n): plan.peak_of(size, [REFERENCE] * n) for n in (0, 1, spec.max_references)}
            rows.append(
                {
                    "transformer": transformer,
                    "text_encoder": name,
                    "parts": asdict(parts),
                    "resident": plan.resident,
                    "peak_by_references": peaks,
                    "needed": plan.needed,
                }
            )
    return rows


def estimate(spec: ModelSpec) -> dict[str, Any]:
    """The plan's figures for every GPU, and beside it every combination and whether it fits; bytes as integers."""
    every = combinations(spec)
    gpus = []
    for gigabytes, capability in GPUS:
        gpu = Gpu.of(gigabytes, capability)
        plan = choose(spec, gpu)
        largest = plan.largest((spec.max_size + 16, spec.max_size + 16), [], gpu.bytes)
        row = {
            "gpu_gb": gigabytes,
            "capability": ".".join(map(str, capability)),
            "gpu": gpu.bytes,
            "plan": {
                "transformer": plan.transformer,
                "text_encoder": plan.text_encoder,
                "offload": plan.offload,
                "parts": asdict(plan.parts),
                "resident": plan.resident,
                "peak": plan.peak,
                "peak_by_references": {
                    str(n): plan.peak_of(plan.size, [REFERENCE] * n) for n in range(spec.max_references + 1)
                },
                "largest_square": largest[0] if largest else None,
                "why": plan.why,
            },
            "combinations": [combination | {"fits": combination["needed"] <= gpu.bytes} for combination in every],
        }
        gpus.append(row)
    return {
        "model": spec.name,
        "context": CONTEXT,
        "reserve": RESERVE,
        "references": spec.max_references,
        "gpus": gpus,
    }


def show_estimate(estimated: dict[str, Any]) -> str:
    """The plans and the combinations as tables."""
    most = str(estimated["references"])
    plans = [
        [
            f"{row['gpu_gb']} GB, {row['capability']}",
            plan["transformer"],
            plan["text_encoder"],
            plan["offload"],
            gib(plan["resident"]),
            gib(plan["peak_by_references"]["0"]),
            gib(plan["peak"]),
            gib(row["gpu"]),
            str(plan["largest_square"]),
        ]
        for row in estimated["gpus"]
        for plan in [row["plan"]]
    ]
    heads = ["GPU", "transformer", "text encoder", "offload", "weights on it", "peak, no reference"]
    heads += [f"peak, {most} references", "available", "largest square"]
    sizes = [row["gpu_gb"] for row in estimated["gpus"]]
    rows = []
    for number, row in enumerate(estimated["gpus"][0]["combinations"]):
        fit = [
            str(size) for size, gpu in zip(sizes, estimated["gpus"], strict=True) if gpu["combinations"][number]["fits"]
        ]
        peaks = row["peak_by_references"]
        peak = [gib(size) for size in (row["resident"], peaks["0"], peaks[most])]
        rows.append([row["transformer"], row["text_encoder"], *peak, f"{fit[0]} GB" if fit else "none"])
    second = ["transformer", "text encoder", "weights on the GPU", "peak, no reference", f"peak, {most} references"]
    return f"{table(heads, plans)}\n\n{table([*second, 'fits from'], rows)}"


def sizes(spec: ModelSpec) -> Iterator[Size]:
    """Squares from half of the default to the largest, and a wide image."""
    for side in sorted({spec.size // 2, spec.size, spec.size * 5 // 4, spec.size * 3 // 2, spec.max_size}):
        if spec.min_size <= side <= spec.max_size:
            yield side // 16 * 16, side // 16 * 16
    yield min(spec.max_size, spec.size * 3 // 2), spec.size


def measure(plan: MemoryPlan, path: Path, device: Device, pictures: Path, deadline: float) -> dict[str, Any]:
    """Loads by a plan, generates, and gives all back; nothing begins after `deadline` (monotonic clock)."""
    spec = plan.spec
    device.reset_peak()
    config = FluxConfig(
        spec,
        path,
        device=device.name,
        transformer=plan.transformer,
        text_encoder=plan.text_encoder,
        offload=plan.offload,
        plan=plan,
    )
    begun = time.monotonic()
    with FluxPipeline(config) as pipeline:
        loaded, (allocated, reserved) = time.monotonic() - begun, device.peak()
        runner = Runner(pipeline, plan, device)
        default = spec.size, spec.size
        runner.draw((spec.min_size, spec.min_size), 0)  # kernels are loaded by a first image that is not counted
        cases: list[Case] = []
        for size in sizes(spec):
            if time.monotonic() < deadline:
                cases.append(runner.case(f"words-{plan.offload}", size, pictures=pictures))
        references = 0
        while references < _MOST_REFERENCES and time.monotonic() < deadline:
            references += 1
            cases.append(runner.case(f"edit-{plan.offload}", default, references, pictures=pictures))
            if not cases[-1].fits:
                break
    return {
        "plan": str(plan),
        "offload": plan.offload,
        "load_seconds": loaded,
        "load_allocated": allocated,
        "load_reserved": reserved,
        "most_references": max((case.references for case in cases if case.fits and case.references), default=0),
        "cases": [asdict(case) for case in cases],
    }


def show_measured(measured: dict[str, Any]) -> str:
    """A run as a table, with the estimate's error where both are there."""
    rows = [
        [
            case["name"],
            f"{case['width']}x{case['height']}",
            str(case["references"]),
            shown(case["seconds"]) if case["fits"] else "out of memory",
            shown(case["allocated"] and case["allocated"] / 2**30),
            shown(case["reserved"] and case["reserved"] / 2**30),
            shown(case["estimate"] / 2**30),
            shown(case["error"], "{:+.1%}"),
        ]
        for case in measured["cases"]
    ]
    heads = ["what", "size", "references", "seconds", "allocated GiB", "reserved GiB", "estimate GiB", "error"]
    return f"{measured['plan']}\nloaded in {measured['load_seconds']:.1f} s\n\n{table(heads, rows)}"


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="klein-9b", help="the model to measure; default: %(default)s")
    parser.add_argument("--estimate", action="store_true", help="the plan's figures alone; needs no GPU")
    parser.add_argument(
        "--random-weights", action="store_true", help="the architecture with random weights, no download"
    )
    parser.add_argument("--weights", type=Path, metavar="DIR", help="where random weights are kept; else they go again")
    parser.add_argument("--cap-gb", type=float, metavar="N", help="behave like a GPU of N GB")
    parser.add_argument("--device", default="cuda", help="the torch device; default: cuda")
    parser.add_argument("--minutes", type=float, default=60, help="no case begins later")
    parser.add_argument("--output", type=Path, default=Path("outputs"), metavar="DIR", help="default: outputs")
    args = parser.parse_args()
    spec = get_model(args.model)
    args.output.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"estimate": estimate(spec), "machine": None, "measured": []}
    print(show_estimate(result["estimate"]))
    try:
        if not args.estimate:
            _measure_all(spec, args, result)
    except ConfigurationError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        (args.output / "benchmark_vram.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        draw_chart(result["estimate"], args.output / "benchmark_vram.png")
    print(f"\n{args.output / 'benchmark_vram.json'}, {args.output / 'benchmark_vram.png'}")
    return 0


def _measure_all(spec: ModelSpec, args: argparse.Namespace, result: dict[str, Any]) -> None:
    device, deadline = Device(args.device), time.monotonic() + 60 * args.minutes
    result["machine"] = machine(args.device)
    with tempfile.TemporaryDirectory() as temporary:
        if args.random_weights:
            from benchmarks.random_model import write_model

            path = write_model(spec, args.weights or Path(temporary) / spec.name, args.device)
        elif (found := find_weights(spec, get_settings())) is None:
            raise ConfigurationError(f"the weights of {spec.name} are not on this machine; --random-weights needs none")
        else:
            path = found
        gpu = device.gpu(args.cap_gb)
        stored = stored_precisions(path)
        nf4 = is_installed("bitsandbytes")
        plans = [choose(spec, gpu, stored=stored, nf4=nf4, compiled=False)]
        if gpu is not None and plans[0].offload != "model":
            try:
                plans.append(choose(spec, gpu, offload="model", stored=stored, nf4=nf4, compiled=False))
            except ConfigurationError as error:
                print(f"without model offload: {error}", file=sys.stderr)
        with device.capped(gpu if args.cap_gb else None):
            for plan in plans:
                result["measured"].append(measure(plan, path, device, args.output / "pictures", deadline))
                print(f"\n{show_measured(result['measured'][-1])}")


if __name__ == "__main__":
    sys.exit(main())
