"""The parts of `benchmarks.gpu`: each opens a pipeline, and leaves rows."""

from __future__ import annotations

import gc
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NoReturn
from unittest import mock

from benchmarks.gpu_levers import Lever, levers
from benchmarks.measure import PROMPT, Device, Runner, bare_call
from benchmarks.probes import matrix_peak, profile, read_speed, step_flops
from benchmarks.random_model import random_weights
from benchmarks.smoke import smoke
from imagegen.contract.start_times import StartTimes
from imagegen.memory.plan import MemoryPlan
from imagegen.memory.planner import choose
from imagegen.memory.types import Offload, Precision
from imagegen.model import assembly
from imagegen.model.acceleration import choose_attention, is_installed
from imagegen.model.config import FluxConfig
from imagegen.model.pipeline import FluxPipeline
from imagegen.models import ModelSpec, get_model

#: The mission's GPU.
_GPU_GB = 24


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


class _OutOfTime(BaseException):
    """Not an Exception: torch.compile takes those, and a block that was interrupted would be one that cannot be
    compiled."""


#: The parts, in the order of their worth, of a first and a second call: each has its own minutes on a new machine.
PARTS: dict[str, tuple[str, ...]] = {
    "1": ("smoke", "bf16", "fp8_under_a_cap", "bare", "loading", "offload_under_a_cap", "kv"),
    "2": ("levers",),
}
PARTS["all"] = PARTS["1"] + PARTS["2"]


class Benchmark:
    """The rows, one pipeline after another; only one is on the GPU.

    Args:
        folder: of the model, weights left out.
        deadline: of the monotonic clock; what runs then is broken off, and what has not begun is left out.
        save: called with all rows after each.
    """

    def __init__(
        self,
        spec: ModelSpec,
        folder: Path,
        device: Device,
        deadline: float,
        compiled: bool,
        save: Callable[[list[Row]], None] = lambda rows: None,
    ) -> None:
        self.spec, self.folder, self.device, self.compiled = spec, folder, device, compiled
        self.rows: list[Row] = []
        self._deadline, self._save = deadline, save
        self._side = spec.size
        self._usual: dict[tuple[str, int], Row] = {}

    def run(self, parts: Sequence[str]) -> None:
        """Measures everything that there is time for."""
        signal.signal(signal.SIGALRM, _out_of_time)
        for part in parts:
            name, begun = part.replace("_", " "), time.monotonic()
            if (left := self._deadline - begun) <= 0:
                self._add(Row(name, note="not measured: the time was over"))
                continue
            signal.setitimer(signal.ITIMER_REAL, left)
            try:
                if part in ("smoke", "loading"):
                    getattr(self, f"_{part}")()
                else:
                    with random_weights(self.device.name):
                        getattr(self, f"_{part}")()
            except (Exception, _OutOfTime) as error:  # noqa: BLE001 - one part must not cost the others
                note = f"broken off: {type(error).__name__}: {str(error)[:300]}"
                self._add(Row(name, note=note))
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
                self._save(self.rows)
            print(f"{name}: {time.monotonic() - begun:.0f} s", file=sys.stderr)

    def _add(self, row: Row) -> None:
        """Keeps a row, on the disk too: a run that is cut off has yielded what came before."""
        self.rows.append(row)
        self._save(self.rows)

    def _smoke(self) -> None:
        """Whether the path works at all, with micro's own weights."""
        for what, met, note in smoke(self.device):
            self._add(Row(f"smoke: {what}", "works", met=met, note=note))

    def _bf16(self) -> None:
        """The reference, all on the GPU: time of an image, use of the GPU, a repeated prompt."""
        pipeline, plan = self._open("bf16", compile=self.compiled, prompt_cache=10**9)
        with pipeline:
            runner = Runner(pipeline, plan, self.device)
            self._picture(runner, "bf16", 0.50)
            self._use_of_the_card(runner)
            self._references(runner, "bf16")
            self._repeated_prompt(runner)

    def _bare(self) -> None:
        """The same weights in diffusers' own pipeline, as one would call it without this project."""
        pipeline, _ = self._open("bf16", attention=None)
        with mock.patch.object(assembly, "speed_up_vae"):
            pipe = assembly.assemble(pipeline.config, self.device.name, self.device.dtype, StartTimes())
        pipe.set_progress_bar_config(disable=True)
        for count in (0, 1, self.spec.max_references):
            seconds = min(bare_call(pipe, self.spec, count, number) for number in range(3))
            row = Row(f"bare diffusers, bf16, {count} references, {self._size()}", unit="s", value=seconds)
            if (worker := self._value("bf16", count)) is not None:
                row.target, row.met = "the worker twice as fast", seconds >= 2 * worker
                row.note = f"{seconds / worker:.2f} times the worker's"
            self._add(row)
        del pipe
        gc.collect()
        self.device.reset_peak()  # which gives its memory back

    def _value(self, precision: str, references: int) -> float | None:
        """Seconds of an image as the worker generates it; None where that was not measured."""
        row = self._usual.get((precision, references))
        return None if row is None else row.value

    def _references(self, runner: Runner, precision: str) -> None:
        """The time of edits with one reference and with the most."""
        for count in (1, self.spec.max_references):
            case = runner.case("references", (self._side, self._side), count)
            row = Row(f"{count} references, {precision}, {self._size()}", "-", case.seconds, "s", details=asdict(case))
            row.note = "" if case.fits else "out of memory"
            self._usual[precision, count] = row
            self._add(row)

    def _fp8_under_a_cap(self) -> None:
        """What a GPU of 24 GB gets: four references, and the time of an image from words."""
        with self.device.capped(self.device.gpu(_GPU_GB)):
            pipeline, plan = self._open("fp8", gigabytes=_GPU_GB, compile=self.compiled)
            with pipeline:
                runner = Runner(pipeline, plan, self.device)
                self._four_references(runner)
                self._references(runner, "fp8")
                self._picture(runner, "fp8", 0.35)

    def _offload_under_a_cap(self) -> None:
        """bf16 of which each part is fetched for its turn, not compiled, as others fit a GPU of 24 GB, against fp8 on
        the GPU."""
        with self.device.capped(self.device.gpu(_GPU_GB)):
            pipeline, plan = self._open("bf16", "model", _GPU_GB)
            with pipeline:
                slow = Runner(pipeline, plan, self.device).case("offload", (self._side, self._side))
        row = Row(
            "fp8 on the GPU against bf16 with model offload and not compiled, 24 GB",
            "3 times as fast or more",
            unit="times",
        )
        self._add(row)
        row.details = asdict(slow)
        fast = self._value("fp8", 0)
        if fast is None or slow.seconds is None:
            row.note = "not measured: one of the two was not"
            return
        row.value = slow.seconds / fast
        row.met = row.value >= 3

    def _kv(self) -> None:
        """Edits with the references' keys and values kept, against the plain path."""
        row = Row("cached keys and values against the plain path, 4 references", "1.9 times or more", unit="times")
        self._add(row)
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
        """What each lever is worth: an image with it against one as the worker would generate it."""
        usual = {
            (precision, count): self._value(precision, count)
            for precision in ("bf16", "fp8")
            for count in (0, 1, self.spec.max_references)
        }
        for lever in levers(self.compiled, self.spec.max_references):
            if lacking := tuple(count for count in lever.references if usual[lever.precision, count] is None):
                same = Lever("as usual", lever.precision, {"compile": self.compiled}, references=lacking)
                usual |= {(lever.precision, count): seconds for count, seconds in self._seconds(same).items()}
            for count, seconds in self._seconds(lever).items():
                without = usual[lever.precision, count]
                what = f"{lever.name}, {lever.precision}, {count} references, {self._size()}, against the usual way"
                row = Row(what, unit="times the time")
                row.value = seconds / without if seconds and without else None
                row.note = f"{seconds:.3f} s" if seconds else "out of memory"
                row.details = {"seconds": seconds, "usual": without}
                self._add(row)

    def _seconds(self, lever: Lever) -> dict[int, float | None]:
        """Of an image, by its number of references; None where it does not fit."""
        with lever.inside():
            pipeline, plan = self._open(lever.precision, **lever.config)
            with pipeline:
                runner, size = Runner(pipeline, plan, self.device), (self._side, self._side)
                return {n: runner.case(lever.name, size, n, runs=3).seconds for n in lever.references}

    def _picture(self, runner: Runner, precision: str, target: float) -> None:
        size = (self._side, self._side)
        case = runner.case("picture", size, runs=5)
        what = f"text to image, {self.spec.num_inference_steps} steps, {precision}, {self._size()}, without PNG"
        row = Row(what, f"{target:.2f} s or less", case.seconds, "s")
        row.details = asdict(case)
        row.met = case.seconds is not None and case.seconds <= target
        if case.fits:
            row.profile = profile(lambda: runner.draw(size, 0), self.device)
        self._usual[precision, 0] = row
        self._add(row)

    def _four_references(self, runner: Runner) -> None:
        case = runner.case("references", (self._side, self._side), 4)
        row = Row(f"{_GPU_GB} GB, 4 references, {self._size()}", "no OOM; peak within 3 % of the estimate", unit="%")
        row.details = asdict(case) | {"plan": str(runner.plan)}
        row.met = case.fits
        if case.error is not None:
            row.value, row.met = 100 * case.error, abs(case.error) <= 0.03
        if not row.met:
            row.details["memory"] = self.device.memory_summary()
        self._add(row)

    def _use_of_the_card(self, runner: Runner) -> None:
        peak, steps = matrix_peak(self.device), self.spec.num_inference_steps
        case = runner.case("use", (self._side, self._side), runs=3)
        row = Row("model FLOPs used in the denoising loop, bf16", "60 % of the measured matrix peak or more", unit="%")
        self._add(row)
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
        self._add(row)

    def _loading(self) -> None:
        """From the page cache, of files that hold zeros: where the values are not read, the time is the same."""
        pipeline, plan = self._open("bf16")
        speed = read_speed(self.folder, assembly.THREADS)  # which leaves them there
        begun = time.monotonic()
        with pipeline:
            seconds = time.monotonic() - begun
        rate = plan.parts.total / seconds  # what was read of the files: later layers of the text encoder are not
        row = Row("load to GPU against reading from the page cache", "70 % or more", 100 * rate / speed, "%")
        row.met = 100 * rate / speed >= 70
        row.details = {"bytes": plan.parts.total, "seconds": seconds, "page cache": speed, "load": rate}
        if not row.met:
            again, _ = self._open(plan.transformer)
            row.profile = profile(again.load, self.device)
            again.unload()
        self._add(row)

    def _open(
        self,
        precision: Precision,
        offload: Offload | Literal["auto"] = "auto",
        gigabytes: float | None = None,
        spec: ModelSpec | None = None,
        **levers: Any,
    ) -> tuple[FluxPipeline, MemoryPlan]:
        """A pipeline as the worker would have it on a GPU of `gigabytes`; on a CPU in full precision."""
        spec, gpu = spec or self.spec, self.device.gpu(gigabytes)
        plan = choose(spec, None)
        if gpu is not None:
            nf4, compiled = is_installed("bitsandbytes"), levers.get("compile", False)
            plan = choose(spec, gpu, precision=precision, offload=offload, nf4=nf4, compiled=compiled)
            levers = {"attention": choose_attention(gpu.capability)[0], **levers}  # as the worker would have it
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
    raise _OutOfTime("the time was over")
