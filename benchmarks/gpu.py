"""What the worker promises of a GPU, in one command: `make benchmark-gpu PYTHON=...`, at most nine minutes.

    python -m benchmarks.gpu [--model klein-9b] [--minutes 9] [--output outputs] [--part 1|2|all]

Generates with the worker's own pipeline, the architecture in full size and random weights that are made on the GPU,
which need the same time and memory. Nothing is downloaded or installed. Each promise is a row with its target, written
to the disk as JSON and as a table as soon as it is measured; a row that misses its target carries a profile of where
the time goes. A row that cannot be measured says why, and the others go on.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

if not __package__:  # started by its path, which makes this folder the place of imports
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.gpu_parts import PARTS, Benchmark, Row
from benchmarks.measure import Device, machine, shown, table
from benchmarks.random_model import write_outline
from imagegen.models import get_model


def report(facts: dict[str, Any], rows: list[Row]) -> str:
    """The machine and the rows, as Markdown; profiles below."""
    lines = [
        [
            row.what,
            row.target,
            f"{shown(row.value, '{:.3g}')} {row.unit}".strip(),
            {True: "yes", False: "no", None: "-"}[row.met],
            row.note,
        ]
        for row in rows
    ]
    text = [", ".join(f"{name} {value}" for name, value in facts.items() if value is not None), ""]
    text.append(table(["what", "target", "measured", "met", "note"], lines))
    for row in rows:
        if row.profile and not row.met:
            heads = ["operation", "ms", "share", "calls"]
            body = [
                [one["operation"], f"{one['milliseconds']:.2f}", f"{one['share']:.1%}", str(one["calls"])]
                for one in row.profile
            ]
            text += ["", f"Where the time goes: {row.what}", "", table(heads, body)]
    return "\n".join(text)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="klein-9b", help="the model to measure; default: %(default)s")
    parser.add_argument("--device", default="cuda", help="the torch device; default: cuda")
    parser.add_argument("--minutes", type=float, default=9, help="for all of it")
    parser.add_argument("--part", choices=list(PARTS), default="all", help="what a first and a second call measure")
    parser.add_argument("--no-compile", action="store_true", help="measure without torch.compile")
    parser.add_argument("--output", type=Path, default=Path("outputs"), metavar="DIR", help="default: outputs")
    args = parser.parse_args()
    begun, spec, device = time.monotonic(), get_model(args.model), Device(args.device)
    args.output.mkdir(parents=True, exist_ok=True)
    facts = machine(args.device)
    name = "benchmark_gpu" if args.part == "all" else f"benchmark_gpu_{args.part}"

    def save(rows: list[Row]) -> None:
        result = {"machine": facts, "seconds": time.monotonic() - begun, "rows": [asdict(row) for row in rows]}
        (args.output / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        (args.output / f"{name}.md").write_text(report(facts, rows) + "\n", encoding="utf-8")

    with tempfile.TemporaryDirectory() as temporary:
        folder = write_outline(spec, Path(temporary) / spec.name)
        deadline = begun + 60 * args.minutes - 5  # for giving memory back
        compiled = device.is_cuda and not args.no_compile
        benchmark = Benchmark(spec, folder, device, deadline, compiled, save)
        benchmark.run(PARTS[args.part])
    print(report(facts, benchmark.rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
