"""What the worker promises of a card, in one command: `make benchmark-gpu PYTHON=...`, at most nine minutes.

    python -m benchmarks.gpu [--model klein-9b] [--minutes 9] [--output outputs] [--weights DIR]

Draws with the worker's own pipeline, the architecture in full size and random weights, which need the same time and
memory; nothing is downloaded or installed. Each promise is a row with its target, written as JSON and as a table; a row
that misses its target carries a profile of where the time goes. A row that cannot be measured says why, and the others
go on.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NoReturn

if not __package__:  # started by its path, which makes this folder the place of imports
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.measure import PROMPT, Device, Runner, machine, shown, table
from benchmarks.random_model import write_model
from imagegen.memory.footprint import transformer_linears
from imagegen.memory.plan import MemoryPlan
from imagegen.memory.planner import choose
from imagegen.memory.types import Offload, Precision
from imagegen.model.acceleration import choose_attention, is_installed
from imagegen.model.config import FluxConfig
from imagegen.model.pipeline import FluxPipeline
from imagegen.models import ModelSpec, get_model

#: The mission's card.
_CARD_GB = 24
#: Side of the product by which a card's matrix peak is measured, and how often.
_MATRIX, _PRODUCTS = 8192, 30
_READ = 8 << 20


@dataclass
class Row:
    """A promise: `met` is None where it has no target, or could not be measured, which `note` then explains."""

    what: str
    target: str = "-"
    value: float | None = None
    unit: str = ""
    met: bool | None = None
    note: str = ""
    details: dict[str, Any] = field(default_factory=dict)
    profile: list[dict[str, Any]] | None = None


def step_flops(spec: ModelSpec, side: int, references: int = 0) -> float:
    """Floating-point operations of a denoising step: of the blocks' matrix products, and of attention.

    klein-9b at 1024x1024: 64.4 and 11.1 TFLOP.
    """
    a = spec.architecture
    pictures, text = (side // 16) ** 2 * (1 + references), spec.max_sequence_length
    linears = [count * rows * columns for count, rows, columns in transformer_linears(a)]
    # In a double block half of the weights are the picture's and half the text's.
    products = sum(linears[:3]) * (pictures + text) + 2 * sum(linears[3:]) * (pictures + text)
    attention = 4 * (pictures + text) ** 2 * a.hidden * (a.double_blocks + a.single_blocks)
    return float(products + attention)


def matrix_peak(device: Device) -> float:
    """Floating-point operations a second of the card's best product of two large matrices."""
    import torch

    side, dtype = (_MATRIX, torch.bfloat16) if device.is_cuda else (512, torch.float32)
    a, b = (torch.randn(side, side, device=device.name, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(_PRODUCTS):
        device.synchronize()
        begun = time.perf_counter()
        a @ b
        device.synchronize()
        best = min(best, time.perf_counter() - begun)
    return 2 * side**3 / best


def read_speed(folder: Path) -> float:
    """Bytes a second at which the weights' files are read once they are in the page cache, by four threads."""
    files = sorted(folder.glob("*/*.safetensors"))

    def read(file: Path) -> int:
        buffer, count = bytearray(_READ), 0
        with file.open("rb", buffering=0) as stream:
            while got := stream.readinto(buffer):
                count += got
        return count

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(read, files))  # into the page cache
        begun = time.perf_counter()
        count = sum(pool.map(read, files))
    return count / (time.perf_counter() - begun)


def profile(work: Callable[[], object], device: Device, rows: int = 15) -> list[dict[str, Any]]:
    """Where the time of `work` goes: the operations that take most of it, in milliseconds and calls."""
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.is_cuda else [])
    with profile(activities=activities) as profiled:
        work()
        device.synchronize()

    def spent(event: Any) -> float:
        return float(event.self_device_time_total if device.is_cuda else event.self_cpu_time_total)

    events = sorted(profiled.key_averages(), key=spent, reverse=True)
    total = sum(map(spent, events)) or 1.0
    return [
        {
            "operation": event.key[:100],
            "milliseconds": round(spent(event) / 1000, 2),
            "share": round(spent(event) / total, 3),
            "calls": event.count,
        }
        for event in events[:rows]
    ]


class Benchmark:
    """The rows, one pipeline after another; only one is on the card.

    Args:
        folder: of the model with random weights.
        deadline: of the monotonic clock; what runs then is broken off, and what has not begun is left out.
    """

    def __init__(self, spec: ModelSpec, folder: Path, device: Device, deadline: float, compiled: bool) -> None:
        self.spec, self.folder, self.device, self.compiled = spec, folder, device, compiled
        self.rows: list[Row] = []
        self._deadline = deadline
        self._side = spec.size
        self._fp8: Row | None = None
        self._reference: Row | None = None

    def run(self) -> None:
        """Measures everything that there is time for."""
        signal.signal(signal.SIGALRM, _out_of_time)
        for part in (self._bf16, self._fp8_under_a_cap, self._offload_under_a_cap, self._kv, self._levers):
            name, begun = part.__name__.strip("_").replace("_", " "), time.monotonic()
            if (left := self._deadline - begun) <= 0:
                self.rows.append(Row(name, note="not measured: the time was over"))
                continue
            signal.setitimer(signal.ITIMER_REAL, left)
            try:
                part()
            except Exception as error:  # noqa: BLE001 - one part must not cost the others
                note = f"broken off: {type(error).__name__}: {str(error)[:300]}"
                self.rows.append(Row(name, note=note))
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            print(f"{name}: {time.monotonic() - begun:.0f} s", file=sys.stderr)

    def _bf16(self) -> None:
        """The reference, all on the card: time of a picture, use of the card, a repeated prompt, loading."""
        pipeline, plan = self._open("bf16", compile=self.compiled, prompt_cache=10**9)
        begun = time.monotonic()
        with pipeline:
            loaded = time.monotonic() - begun
            runner = Runner(pipeline, plan, self.device)
            self._reference = self._picture(runner, "text to image, 4 steps, bf16", 0.55)
            self._use_of_the_card(runner)
            self._repeated_prompt(runner)
        self._loading(plan, loaded)

    def _fp8_under_a_cap(self) -> None:
        """What a card of 24 GB gets: four references, and the time of a picture from words."""
        with self.device.capped(self.device.card(_CARD_GB)):
            pipeline, plan = self._open("fp8", gigabytes=_CARD_GB, compile=self.compiled)
            with pipeline:
                runner = Runner(pipeline, plan, self.device)
                self._four_references(runner)
                self._fp8 = self._picture(runner, "text to image, 4 steps, fp8", 0.40)

    def _offload_under_a_cap(self) -> None:
        """bf16 of which each part is fetched for its turn, not compiled, as others fit a card of 24 GB, against fp8 on
        the card."""
        with self.device.capped(self.device.card(_CARD_GB)):
            pipeline, plan = self._open("bf16", "model", _CARD_GB)
            with pipeline:
                slow = Runner(pipeline, plan, self.device).case("offload", (self._side, self._side))
        row = Row(
            "fp8 on the card against bf16 with model offload and not compiled, 24 GB",
            "3 times as fast or more",
            unit="times",
        )
        self.rows.append(row)
        row.details = asdict(slow)
        if self._fp8 is None or self._fp8.value is None or slow.seconds is None:
            row.note = "not measured: one of the two was not"
            return
        row.value = slow.seconds / self._fp8.value
        row.met = row.value >= 3
        if not row.met:
            row.profile = self._fp8.profile

    def _kv(self) -> None:
        """Edits with the references' keys and values kept, against the plain path."""
        row = Row("cached keys and values against the plain path, 4 references", "1.9 times or more", unit="times")
        self.rows.append(row)
        spec = get_model("klein-9b-kv") if self.spec.name == "klein-9b" else self.spec
        pipeline, plan = self._open("fp8", spec=spec, compile=self.compiled)
        seconds: list[float | None] = []
        with pipeline:
            runner, size = Runner(pipeline, plan, self.device), (self._side, self._side)
            for name in ("plain", "kv"):
                pipeline.config = replace(pipeline.config, kv=name == "kv")
                seconds.append(runner.case(name, size, 4, runs=3).denoise)
            plain, cached = seconds
            row.details = {"plain": plain, "kv": cached}
            if plain is None or cached is None:
                row.note = "not measured: one of the two does not fit"
                return
            row.value, row.met = plain / cached, plain / cached >= 1.9
            if not row.met:
                row.profile = profile(lambda: runner.draw(size, 4), self.device)

    def _levers(self) -> None:
        """What each lever is worth: a picture in bf16 without it, against one with all of them."""
        if self._reference is None or self._reference.value is None:
            return
        without: dict[str, dict[str, Any]] = {
            "compiled blocks": {"compile": False},
            "the card's kernel for attention": {"compile": self.compiled, "attention": "native"},
        }
        for lever, levers in without.items():
            pipeline, plan = self._open("bf16", **levers)
            with pipeline:
                case = Runner(pipeline, plan, self.device).case(lever, (self._side, self._side), runs=3)
            row = Row(f"{lever} against none, bf16, {self._size()}", "stays if it pays", unit="times as fast")
            row.value, row.details = case.seconds and case.seconds / self._reference.value, asdict(case)
            self.rows.append(row)

    def _picture(self, runner: Runner, what: str, target: float) -> Row:
        size = (self._side, self._side)
        case = runner.case("picture", size, runs=5)
        row = Row(f"{what}, {self._size()}, end to end without PNG", f"{target:.2f} s or less", case.seconds, "s")
        row.details = asdict(case)
        row.met = case.seconds is not None and case.seconds <= target
        if case.fits:
            row.profile = profile(lambda: runner.draw(size, 0), self.device)
        self.rows.append(row)
        return row

    def _four_references(self, runner: Runner) -> None:
        case = runner.case("references", (self._side, self._side), 4)
        row = Row(f"{_CARD_GB} GB, 4 references, {self._size()}", "no OOM; peak within 5 % of the estimate", unit="%")
        row.details = asdict(case) | {"plan": str(runner.plan)}
        row.met = case.fits
        if case.error is not None:
            row.value, row.met = 100 * case.error, abs(case.error) <= 0.05
        if not row.met:
            row.details["memory"] = self.device.memory_summary()
        self.rows.append(row)

    def _use_of_the_card(self, runner: Runner) -> None:
        peak, steps = matrix_peak(self.device), self.spec.num_inference_steps
        case = runner.case("use", (self._side, self._side), runs=3)
        row = Row("model FLOPs used in the denoising loop, bf16", "60 % of the measured matrix peak or more", unit="%")
        self.rows.append(row)
        if case.denoise is None:
            row.note = "not measured: it does not fit"
            return
        rate = step_flops(self.spec, self._side) * steps / case.denoise
        row.value, row.details = (
            100 * rate / peak,
            {"flops a second": rate, "matrix peak": peak, "denoise": case.denoise},
        )
        row.met = row.value >= 60
        if not row.met:
            row.profile = profile(lambda: runner.draw((self._side, self._side), 0), self.device)

    def _repeated_prompt(self, runner: Runner) -> None:
        encode = runner.pipeline.encode_prompt
        new = min(encode(f"{PROMPT} new {number}").seconds for number in range(5))
        repeated = min(encode(f"{PROMPT} new 0").seconds for _ in range(5))
        row = Row("repeated prompt against a new one", "saving measured", 1000 * (new - repeated), "ms saved")
        row.details = {"new": new, "repeated": repeated}
        self.rows.append(row)

    def _loading(self, plan: MemoryPlan, first: float) -> None:
        """The second load of a process: the first one's imports are not the disk's."""
        pipeline, _ = self._open(plan.transformer)
        begun = time.monotonic()
        with pipeline:
            seconds = time.monotonic() - begun
        speed = read_speed(self.folder)
        rate = plan.parts.total / seconds  # what was read of the files: later layers of the text encoder are not
        row = Row("load to card against reading from the page cache", "70 % or more", 100 * rate / speed, "%")
        row.met = 100 * rate / speed >= 70
        row.details = {"bytes": plan.parts.total, "seconds": seconds, "first": first, "page cache": speed, "load": rate}
        if not row.met:
            again, _ = self._open(plan.transformer)
            row.profile = profile(again.load, self.device)
            again.unload()
        self.rows.append(row)

    def _open(
        self,
        precision: Precision,
        offload: Offload | Literal["auto"] = "auto",
        gigabytes: float | None = None,
        spec: ModelSpec | None = None,
        **levers: Any,
    ) -> tuple[FluxPipeline, MemoryPlan]:
        """A pipeline as the worker would have it on a card of `gigabytes`; on a CPU in full precision."""
        spec, card = spec or self.spec, self.device.card(gigabytes)
        plan = choose(spec, None)
        if card is not None:
            nf4, compiled = is_installed("bitsandbytes"), levers.get("compile", False)
            plan = choose(spec, card, precision=precision, offload=offload, nf4=nf4, compiled=compiled)
            levers = {"attention": choose_attention(card.capability)[0], **levers}  # as the worker would have it
        config = FluxConfig(
            spec,
            self.folder,
            device=self.device.name,
            transformer=plan.transformer,
            text_encoder=plan.text_encoder,
            offload=plan.offload,
            plan=plan,
            **levers,
        )
        return FluxPipeline(config), plan

    def _size(self) -> str:
        return f"{self._side}x{self._side}"


def _out_of_time(*_: object) -> NoReturn:
    raise TimeoutError("the time was over")


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
    parser.add_argument("--model", default="klein-9b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=9, help="for all of it")
    parser.add_argument("--weights", type=Path, metavar="DIR", help="where random weights are kept; else they go again")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--output", type=Path, default=Path("outputs"), metavar="DIR")
    args = parser.parse_args()
    begun, spec, device = time.monotonic(), get_model(args.model), Device(args.device)
    args.output.mkdir(parents=True, exist_ok=True)
    facts = machine(args.device)
    with tempfile.TemporaryDirectory() as temporary:
        folder = write_model(spec, args.weights or Path(temporary) / spec.name, args.device)
        print(f"random weights: {time.monotonic() - begun:.0f} s", file=sys.stderr)
        # Ten seconds are for giving memory and disk back.
        deadline = begun + 60 * args.minutes - 10
        benchmark = Benchmark(spec, folder, device, deadline, device.is_cuda and not args.no_compile)
        benchmark.run()
    text = report(facts, benchmark.rows)
    result = {"machine": facts, "seconds": time.monotonic() - begun, "rows": [asdict(row) for row in benchmark.rows]}
    (args.output / "benchmark_gpu.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (args.output / "benchmark_gpu.md").write_text(text + "\n", encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
