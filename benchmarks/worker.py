"""How busy the GPU is kept: the worker against the plain handler on a stand-in of RunPod's queue, in one run.

    python -m benchmarks.worker --simulate 0.6 [--jobs 40] [--timeline PNG] [--concurrency 4]
    python -m benchmarks.worker --simulate 0.6 --fetch 3
    python -m benchmarks.worker --slow 0.1
    python -m benchmarks.worker --memory [--jobs 500]

`--simulate`: 1024x1024 through the real pipeline, whose transformer sleeps so long in the 4 steps of a job; its other
parts return at once what was prepared, since on this machine they would take the worker's own CPU. Busy is the time in
which the transformer sleeps, so all else that the GPU's thread does counts as idle; the host's share is what of that
is its own work, in CPU seconds. (A GPU works on while its thread does: this is the worst case.) `--slow`: micro at
128x128, whose transformer sleeps this long in each step; busy is the time in which text encoder, transformer or VAE
runs. The jobs lie in the queue before the worker starts. `--memory`: what micro's worker holds after
50 jobs and after all, every fourth an edit. `--fetch`: each job has a reference that takes this long to arrive; the
plain handler, which knows none, is left out. `--concurrency`: with the SDK's own loop too, this many jobs in flight.
Prints Markdown for docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import platform
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

if not __package__:  # started by its path, which makes this folder the place of imports
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.measure import table
from tests.support.runpod_queue import Job, RunPodQueue

WORKER, PLAIN = "handler.py", "benchmarks/plain_handler.py"
PROMPT = "a red circle on a blue background"
#: Of a job: four steps; with --slow the text encoder and the VAE too.
_CALLS = {"--simulate": 4, "--slow": 6}


@dataclass(frozen=True)
class Run:
    """What one worker did; times are of time.monotonic(), each job's in the order in which they were generated."""

    started: float
    jobs: list[Job]
    intervals: list[tuple[float, float]]
    begun: list[float]
    ended: list[float]
    #: CPU seconds of the GPU's thread, from the first step to the last.
    cpu: float

    @property
    def busy(self) -> float:
        """The share of the time from the first job's begin to the last one's end in which the GPU worked."""
        return sum(end - begin for begin, end in self.intervals) / (self.ended[-1] - self.begun[0])

    @property
    def prefetched(self) -> int:
        """The most jobs at any time that had been taken and not begun."""
        taken = sorted(job.taken[0][0] for job in self.jobs)
        return max(sum(t <= now for t in taken) - sum(b <= now for b in self.begun) for now in taken)

    def row(self, name: str) -> str:
        """Its line of the table."""
        rate = len(self.jobs) / (max(job.ended for job in self.jobs) - self.begun[0])
        waits = [begin - job.taken[0][0] for job, begin in zip(self.jobs, self.begun, strict=True)]
        waited = f"{statistics.median(waits):.2f} / {max(waits):.2f}"
        cold = self.jobs[0].ended - self.started
        share = self.cpu / (self.ended[-1] - self.begun[0])
        return f"| {name} | {rate:.2f} | {self.busy:.1%} | {share:.1%} | {waited} | {self.prefetched} | {cold:.1f} |"


def measure(script: str, mode: str, seconds: float, count: int, folder: Path, *options: str) -> Run:
    """One worker and `count` jobs that lie in the queue when it starts.

    Args:
        options: of worker_under_test.
    """
    intervals = folder / "-".join((Path(script).stem, mode, *options))
    fields: dict[str, object] = {}
    if mode == "--simulate":
        fields |= {"width": 1024, "height": 1024}
    if "--fetch" in options:
        fields["image"] = _reference()
    environment = {"IMAGEGEN_MODEL": "micro", "IMAGEGEN_DEVICE": "cpu", "RUNPOD_LOG_LEVEL": "INFO"}
    command = ("-m", "benchmarks.worker_under_test", script, str(intervals), mode, str(seconds), *options)
    with RunPodQueue() as queue:
        jobs = [queue.run({**fields, "prompt": f"{PROMPT}, {i}", "seed": i}) for i in range(count)]
        started = time.monotonic()
        with queue.worker(folder / "log", *command, **environment):
            for job in jobs:
                if job.wait(120 + count * 10).status != "COMPLETED" or not job.output:
                    raise RuntimeError(f"{script}: {job.error}; {(folder / 'log').read_text()[-2000:]}")
    lines = [tuple(map(float, line.split())) for line in intervals.read_text().splitlines()]
    lines = sorted(lines)[-_CALLS[mode] * count :]  # those before are of the warm-up
    calls, used = [(begin, end) for begin, end, _ in lines], [cpu for _, _, cpu in lines]
    begun = [begin for begin, _ in calls[:: _CALLS[mode]]]
    ended = [end for _, end in calls[_CALLS[mode] - 1 :: _CALLS[mode]]]
    return Run(started, jobs, calls, begun, ended, used[-1] - used[0])


def _reference() -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (128, 128), "blue").save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def memory(count: int, folder: Path) -> list[float]:
    """Megabytes that a worker holds after 50 jobs of micro and after `count`."""
    edit = {"prompt": "make the background green", "images": [_reference()]}
    held = []
    environment = {"IMAGEGEN_MODEL": "micro", "IMAGEGEN_DEVICE": "cpu", "RUNPOD_LOG_LEVEL": "INFO"}
    with RunPodQueue() as queue, queue.worker(folder / "log", **environment) as worker:
        for done in (50, count):
            jobs = [queue.run(edit if i % 4 == 0 else {"prompt": PROMPT}) for i in range(done - len(queue.jobs))]
            for job in jobs:
                if job.wait(600).status != "COMPLETED":
                    raise RuntimeError(job.error)
            status = Path(f"/proc/{worker.process.pid}/status").read_text()
            held.append(int(status.split("VmRSS:")[1].split()[0]) / 1e3)
    return held


def draw(runs: dict[str, Run], path: Path, seconds: float = 12.0) -> None:
    """The first seconds of each run: for every job its wait in the worker (grey), the GPU (green), its sending (blue),
    and above them the GPU thread."""
    scale, row, left = 100, 14, 130
    rows = {name: sum(begin - run.begun[0] < seconds for begin in run.begun) for name, run in runs.items()}
    height = sum(rows.values()) * row + len(runs) * 70
    picture = Image.new("RGB", (left + int(seconds * scale) + 20, height), "white")
    pen, top = ImageDraw.Draw(picture), 10
    for name, run in runs.items():
        zero = run.begun[0]

        def bar(y: int, begin: float, end: float, colour: str, zero: float = zero) -> None:
            x0, x1 = (left + max(0.0, min(seconds, t - zero)) * scale for t in (begin, end))
            if x1 >= x0 + 1:
                pen.rectangle((x0, y, x1 - 1, y + row - 4), fill=colour)

        pen.text((10, top), f"{name}: the GPU is busy {run.busy:.1%}", fill="black")
        pen.text((10, top + 20), "GPU", fill="black")
        for begin, end in run.intervals:
            bar(top + 20, begin, end, "#2e8b57")
        for i in range(rows[name]):
            y, job = top + 40 + i * row, run.jobs[i]
            pen.text((10, y - 2), f"job {i}", fill="grey")
            bar(y, job.taken[0][0], run.begun[i], "#c8c8c8")
            bar(y, run.begun[i], run.ended[i], "#2e8b57")
            bar(y, run.ended[i], job.ended, "#4682b4")
        for second in range(int(seconds) + 1):
            x = left + second * scale
            pen.line((x, top + 18, x, top + 40 + rows[name] * row), fill="#e0e0e0")
            pen.text((x + 2, top + 40 + rows[name] * row), f"{second} s", fill="grey")
        top += rows[name] * row + 70
    picture.save(path)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--simulate", type=float, metavar="SECONDS", help="a model that sleeps so long")
    mode.add_argument("--slow", type=float, metavar="SECONDS", help="micro, each step longer by this")
    mode.add_argument("--memory", action="store_true", help="the memory of many jobs in turn")
    parser.add_argument("--jobs", type=int, help="default: 40, and 500 for --memory")
    parser.add_argument("--timeline", type=Path, metavar="PNG", help="draw what ran when")
    parser.add_argument("--fetch", type=float, metavar="SECONDS", help="until a job's reference has arrived")
    parser.add_argument("--concurrency", type=int, metavar="N", help="compare with the SDK's own loop")
    args = parser.parse_args()
    machine = f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, {os.cpu_count()} cores"
    if args.memory:
        count = args.jobs or 500
        with tempfile.TemporaryDirectory() as folder:
            first, last = memory(count, Path(folder))
        print(f"{machine}: {first:.0f} MB after 50 jobs, {last:.0f} MB after {count} ({last / first - 1:+.1%})")
        return 0
    chosen, seconds = ("--simulate", args.simulate) if args.simulate is not None else ("--slow", args.slow)
    count = args.jobs or 40
    options = () if args.fetch is None else ("--fetch", str(args.fetch))
    print(f"{machine}; {count} jobs, {' '.join((chosen, f'{seconds:g}', *options))}\n")
    heads = ["", "jobs/s", "GPU busy", "the host's share", "wait in the worker, median / most s", "prefetched, most"]
    print(table([*heads, "start to first answer s"], []))
    runs = {}
    with tempfile.TemporaryDirectory() as folder:
        compared: list[tuple[str, str, tuple[str, ...]]] = [("worker", WORKER, options)]
        if args.concurrency is not None:
            fixed = ("--concurrency", str(args.concurrency))
            compared.append((f"worker, the SDK's loop at {args.concurrency}", WORKER, (*options, *fixed)))
        if args.fetch is None:
            compared.append(("plain handler", PLAIN, ()))
        for name, script, more in compared:
            runs[name] = measure(script, chosen, seconds, count, Path(folder), *more)
            print(runs[name].row(name), flush=True)
    if args.timeline is not None:
        draw(runs, args.timeline)
    return 0


if __name__ == "__main__":
    sys.exit(main())
