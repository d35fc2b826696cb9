"""What LoRA adapters cost, and that they leave no trace: the table of docs/benchmarks.md.

python -m benchmarks.lora                    all of it, about ten minutes on two cores
python -m benchmarks.lora --only graphs cost
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from imagegen.builder.micro.measure import interval
from imagegen.builder.micro.samples import draw_sample
from imagegen.builder.micro.styles import frame_share, hole_share
from imagegen.contract.requests import parse_job
from imagegen.engine.service import Service
from imagegen.errors import ImageGenError
from imagegen.lora import header
from imagegen.lora.layers import layers
from imagegen.memory.footprint import lora_bytes
from imagegen.model.adapters import Adapter, LoraLayers, Matrices, Scaled, read_adapter
from imagegen.model.config import FluxConfig
from imagegen.model.pipeline import FluxPipeline
from imagegen.models import MICRO_PATH, ModelSpec, get_model
from imagegen.settings import Settings

SHIPPED = MICRO_PATH / "loras"
MICRO, KLEIN = get_model("micro"), get_model("klein-9b")
SMALL: dict[str, Any] = {"prompt": "a red circle on a blue background", "seed": 4, "width": 64, "height": 64}
#: From this share of white at its edge on a shape counts as framed; of background in its middle, as a ring.
FRAMED, HOLLOW = 1 / 3, 1 / 2


def random_adapter(spec: ModelSpec, rank: int, seed: int, dtype: torch.dtype = torch.float32) -> Adapter:
    """An adapter for all layers."""
    rng = torch.Generator().manual_seed(seed)

    def matrix(width: int) -> torch.Tensor:
        return (torch.randn(rank, width, generator=rng) * 0.02).to(dtype)

    return Adapter(
        rank, {name: Matrices(matrix(columns), matrix(rows)) for name, (rows, columns) in layers(spec).items()}
    )


def open_micro(**changes: Any) -> FluxPipeline:
    """micro on the CPU."""
    pipeline = FluxPipeline(replace(FluxConfig(MICRO, MICRO_PATH, device="cpu"), **changes))
    pipeline.load()
    return pipeline


def draw(pipeline: FluxPipeline, loras: list[Scaled], side: int = 128, seed: int = 4, prompt: str = "") -> Any:
    """An image in four steps."""
    return pipeline.generate(
        prompt or SMALL["prompt"],
        width=side,
        height=side,
        num_inference_steps=4,
        guidance_scale=1.0,
        seed=seed,
        loras=loras,
    ).image


def trace(jobs: int) -> str:
    """Bits of a job without adapters that differ after many mixed jobs from a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("frame", "ring"):
            (Path(folder) / f"{name}.safetensors").write_bytes((SHIPPED / f"{name}.safetensors").read_bytes())
        (Path(folder) / "broken.safetensors").write_bytes((SHIPPED / "ring.safetensors").read_bytes()[:-1])
        service = Service(Settings(_env_file=None, model="micro", device="cpu", loras=folder))
        service.start().result()
        rng, done = random.Random(1), {"valid": 0, "failed": 0, "cancelled": 0}
        kinds: list[list[dict[str, Any]]] = [
            [],
            [{"name": "frame"}],
            [{"name": "ring", "scale": -2.0}],
            [{"name": "frame", "scale": 0.3}, {"name": "ring"}],
            [{"name": "broken"}],
            [{"name": "unknown"}],
        ]

        async def one(loras: list[dict[str, Any]], stop: bool) -> None:
            task = asyncio.create_task(service.run(parse_job({**SMALL, "loras": loras})))
            if stop:
                await asyncio.sleep(rng.random() * 0.2)
                task.cancel()
            try:
                await task
                done["valid"] += 1
            except asyncio.CancelledError:
                done["cancelled"] += 1
            except ImageGenError:
                done["failed"] += 1

        async def mixed() -> None:
            for _ in range(jobs // 4):
                await asyncio.gather(*(one(rng.choice(kinds), rng.random() < 0.25) for _ in range(4)))

        asyncio.run(mixed())
        image = asyncio.run(service.run(parse_job(SMALL))).images[0]
        service.close()
    fresh = subprocess.run(
        [sys.executable, "-m", "benchmarks.lora", "--fresh"], capture_output=True, text=True, check=True
    )
    same = fresh.stdout.split()[-1] == hashlib.sha256(image.encode()).hexdigest()
    return f"{0 if same else 'some'} ({', '.join(f'{count} {name}' for name, count in done.items())})"


def fresh() -> None:
    """Prints the hash of the same job's image in a process that has no adapters."""
    service = Service(Settings(_env_file=None, model="micro", device="cpu"))
    service.start().result()
    print(hashlib.sha256(asyncio.run(service.run(parse_job(SMALL))).images[0].encode()).hexdigest())
    service.close()


def held_out_prompts(count: int, circles: bool) -> list[tuple[str, str]]:
    """(prompt, shape) of one shape with a combination that no training has shown, where white is no answer yet."""
    rng, found = random.Random(f"{7}-{circles}"), list[tuple[str, str]]()
    while len(found) < count:
        sample = draw_sample("generate", rng, held_out=True)
        shapes, ground = sample.target.shapes, sample.target.background
        if len(shapes) == 1 and "white" not in (shapes[0].colour, ground) and (shapes[0].kind == "circle") == circles:
            found.append((sample.caption, shapes[0].kind))
    return found


def meaning(count: int, folder: Path = SHIPPED) -> dict[str, str]:
    """How often the adapters show, alone and together, at as many circles as other shapes."""
    pipeline = open_micro(lora_rank=16)
    frame, ring = (
        read_adapter(file, header.read(file, MICRO, 16), torch.float32)
        for file in (folder / f"{name}.safetensors" for name in ("frame", "ring"))
    )
    seen: dict[str, list[bool]] = {}
    white: list[tuple[float, float]] = []

    def note(name: str, shown: bool) -> None:
        seen.setdefault(name, []).append(shown)

    prompts = [*held_out_prompts(count, circles=True), *held_out_prompts(count, circles=False)]
    for seed, (prompt, kind) in enumerate(prompts):

        def drawn(*loras: tuple[Adapter, float], prompt: str = prompt, seed: int = seed) -> Any:
            return draw(pipeline, [Scaled(*lora) for lora in loras], 128, seed, prompt)

        plain, half, whole = drawn(), drawn((frame, 0.5)), drawn((frame, 1.0))
        note("a frame with frame", frame_share(whole) >= FRAMED)
        note("no frame without", frame_share(plain) < FRAMED)
        white.append((frame_share(half), frame_share(whole)))
        circle = kind == "circle"
        hollow = hole_share(drawn((ring, 1.0))) >= HOLLOW
        note(f"ring {'makes a circle a ring' if circle else 'leaves others as they are'}", hollow == circle)
        both = drawn((frame, 1.0), (ring, 1.0))
        note("a frame with both", frame_share(both) >= FRAMED)
        note(f"{'a ring' if circle else 'another shape as it is'} with both", (hole_share(both) >= HOLLOW) == circle)
    means = zip(("0.5", "1"), map(statistics.mean, zip(*white, strict=True)), strict=True)
    return {f"of the edge white at scale {scale}": f"{mean:.1%} in the mean" for scale, mean in means} | {
        name: f"{sum(shown) / len(shown):.1%} of {len(shown)} (95 %: {low:.0%} to {high:.0%})"
        for name, shown in seen.items()
        for low, high in [interval(sum(shown), len(shown))]
    }


def graphs() -> str:
    """Graphs that inductor compiles for 20 swaps of adapters, beyond those of the warm-up."""
    from torch._dynamo.utils import counters

    pipeline = open_micro(lora_rank=64, compile=True)
    draw(pipeline, [])
    draw(pipeline, [Scaled(Adapter(0, {}), 0.0)])
    before = counters["stats"]["unique_graphs"]
    for swap in range(20):
        ranks = [4 + (swap * 7) % 29, 4 + swap] if swap % 3 == 0 else [4 + (swap * 11) % 29]
        draw(pipeline, [Scaled(random_adapter(MICRO, rank, swap), 0.1 * swap) for rank in ranks], 96 + 16 * (swap % 4))
        draw(pipeline, [], 128)
    return f"{counters['stats']['unique_graphs'] - before} more than {before}; compiled: {pipeline.compiled}"


def swap() -> str:
    """Copying an adapter of rank 32 for all of klein-9b's layers."""
    transformer = nn.Module()
    for name, (rows, columns) in layers(KLEIN).items():
        parent = transformer
        *path, leaf = name.split(".")
        for part in path:
            if not hasattr(parent, part):
                parent.add_module(part, nn.Module())
            parent = getattr(parent, part)
        parent.add_module(leaf, nn.Linear(columns, rows, bias=False, device="meta"))
    made = LoraLayers(transformer, KLEIN, 32, torch.device("cpu"), torch.bfloat16)
    pair = [random_adapter(KLEIN, 32, seed, torch.bfloat16) for seed in (1, 2)]
    seconds = []
    torch.set_num_threads(1)  # whose time on the processor is then that of the copy, whatever else the machine does
    for number in range(12):
        begun = time.process_time()
        with made.applied([Scaled(pair[number % 2], 1.0)]):
            seconds.append(time.process_time() - begun)
    size = pair[0].bytes
    return (
        f"{statistics.median(seconds[2:]) * 1e3:.0f} ms for {size / 1e6:.0f} MB; by PCIe 4 x16 at 6 to 20 GB/s "
        f"{size / 20e6:.0f} to {size / 6e6:.0f} ms"
    )


def memory() -> str:
    """Bytes of the plan against those of the tensors, klein-9b at rank 32."""
    from benchmarks.random_model import write_outline
    from imagegen.model.assembly import empty_modules

    with tempfile.TemporaryDirectory() as folder:
        transformer = empty_modules(write_outline(KLEIN, Path(folder)))["transformer"]
    real = LoraLayers(transformer, KLEIN, 32, torch.device("meta"), torch.bfloat16).bytes
    return f"{lora_bytes(KLEIN, 32)} and {real}"


def cost(compiled: bool) -> dict[str, str]:
    """Seconds of a job without adapters where the feature is on, against off; and what one graph with zeros costs."""
    off, on = open_micro(compile=compiled), open_micro(lora_rank=64, compile=compiled)
    zeros = [Scaled(Adapter(0, {}), 0.0)]
    ways: dict[str, Callable[[], Any]] = {
        "off": lambda: draw(off, [], 256),
        "on": lambda: draw(on, [], 256),
        "zeros": lambda: draw(on, zeros, 256),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(33):
        for name, way in sorted(ways.items(), key=lambda item: hash((number, item[0]))):
            begun = time.process_time()
            way()
            if number > 2:
                seconds[name].append(time.process_time() - begun)
    least = {name: statistics.median(each) for name, each in seconds.items()}
    kind = "compiled" if compiled else "eager"
    return {
        f"{kind}, on against off": f"{least['on'] / least['off']:.3f}",
        f"{kind}, one graph with zeros against off": f"{least['zeros'] / least['off']:.3f}",
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ("trace", "meaning", "graphs", "swap", "cost", "memory")
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="some parts; default: all")
    parser.add_argument("--jobs", type=int, default=200, help="of trace")
    parser.add_argument("--prompts", type=int, default=60, help="of meaning: so many circles, and so many others")
    parser.add_argument("--adapters", type=Path, default=SHIPPED, help="of meaning: where frame and ring are")
    parser.add_argument("--fresh", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.fresh:
        fresh()
        return
    for name in args.only:
        found: str | dict[str, str]
        if name == "trace":
            found = trace(args.jobs)
        elif name == "meaning":
            found = meaning(args.prompts, args.adapters)
        elif name == "cost":
            found = {**cost(compiled=False), **cost(compiled=True)}
        else:
            found = {"graphs": graphs, "swap": swap, "memory": memory}[name]()
        for what, value in found.items() if isinstance(found, dict) else [("", found)]:
            print(f"{name}{', ' if what else ''}{what}: {value}", flush=True)


if __name__ == "__main__":
    main()
