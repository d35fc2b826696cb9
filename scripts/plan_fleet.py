"""How many workers, and how long to keep them: a simulation of a queue whose workers come and go.

    python -m scripts.plan_fleet daily --rate 0.5 --job-seconds 1.5 --price 0.00031 --target 10 --png plan.png
    python -m scripts.plan_fleet jobs.csv --cold-start 25 --idle-timeout 60 --max-workers 8

The trace is `steady` (jobs come independently), `bursty` (nine tenths of the jobs in a tenth of the time), `daily` (a
sine from a tenth of the rate at night to 1.9 of it by day), or a CSV: seconds at which a job comes and, in a second
column if there is one, seconds that it takes. Prints Markdown: how long jobs wait, how often a worker starts, what
1,000 images cost. With `--target` it searches the idle timeout and the number of active workers that keep the wait
below it for the least money. The model and its check against the real worker: docs/fleet.md.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

if not __package__:  # started by its path, which makes this folder the place of imports
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from scripts.fleet_simulation import Fleet, Outcome, Seconds, bursty, daily, simulate, steady

PERCENTILES = (50, 90, 95, 99)
#: What is tried for a target.
IDLE_TIMEOUTS = (1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 900.0)


TRACES = {"steady": steady, "bursty": bursty, "daily": daily}


def read_csv(path: Path) -> tuple[Seconds, Seconds | None]:
    """A trace of one's own: when each job comes, and how long it takes where the file says so. A header is passed over.

    Raises:
        ValueError: a line is not one or two numbers, or there is none.
    """
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            if line.strip():
                rows.append([float(cell) for cell in line.split(",")])
        except ValueError:
            if number > 1:
                raise ValueError(f"{path}, line {number}: {line[:60]!r} is not one or two numbers") from None
    if not rows or len({len(row) for row in rows}) != 1 or len(rows[0]) > 2 or not np.isfinite(rows).all():
        raise ValueError(f"{path}: lines of one number, or all of two: when a job comes, how many seconds it takes")
    table = np.array(sorted(rows))
    if len(rows[0]) == 2 and (table[:, 1] <= 0).any():
        raise ValueError(f"{path}: a job takes more than 0 seconds")
    arrivals = np.ascontiguousarray(table[:, 0] - table[0, 0])
    return arrivals, np.ascontiguousarray(table[:, 1]) if len(rows[0]) == 2 else None


def read_times(path: Path) -> Seconds:
    """Measured seconds of jobs, one a line.

    Raises:
        OSError: the file cannot be read.
        ValueError: a line is not a number over 0, or there is none.
    """
    lines = path.read_text(encoding="utf-8").split("\n")
    wrong = ValueError(f"{path}: lines of one number, over 0: the seconds of a job")
    try:
        times = np.array([float(line) for line in lines if line.strip()])
    except ValueError:
        raise wrong from None
    if not len(times) or not np.isfinite(times).all() or (times <= 0).any():
        raise wrong
    return times


def candidates(arrivals: Seconds, seconds: Seconds, fleet: Fleet) -> Iterator[Fleet]:
    """What is tried: every idle timeout with 0 to twice as many active workers as are busy on average."""
    load = seconds.sum() / max(arrivals[-1], seconds[0])
    most = min(fleet.max_workers, math.ceil(2 * load) + 2)
    for active in sorted({round(most * i / 12) for i in range(13)}):
        for timeout in IDLE_TIMEOUTS:
            yield replace(fleet, min_workers=active, idle_timeout=timeout)


def recommend(
    arrivals: Seconds, seconds: Seconds, fleet: Fleet, target: float, percentile: float
) -> tuple[Fleet, Outcome] | None:
    """The cheapest fleet whose jobs wait at most `target` seconds at this percentile; None if none of them does."""
    best: tuple[Fleet, Outcome] | None = None
    for tried in candidates(arrivals, seconds, fleet):
        outcome = simulate(arrivals, seconds, tried)
        good = np.percentile(outcome.waits, percentile) <= target
        if good and (best is None or outcome.worker_seconds < best[1].worker_seconds):
            best = tried, outcome
    return best


def row(name: str, fleet: Fleet, outcome: Outcome, pictures: int) -> str:
    """A line of the table."""
    waits = " / ".join(f"{value:.1f}" for value in np.percentile(outcome.waits, PERCENTILES))
    cost = outcome.worker_seconds * fleet.price / (len(outcome.waits) * pictures) * 1000
    return (
        f"| {name} | {fleet.min_workers} to {fleet.max_workers}, {fleet.idle_timeout:g} s | {waits} / "
        f"{outcome.waits.max():.1f} | {outcome.cold_starts} | {outcome.most} | "
        f"{outcome.busy / outcome.worker_seconds:.0%} | {outcome.worker_seconds / 3600:.1f} | {cost:.3f} |"
    )


def draw(arrivals: Seconds, runs: dict[str, Outcome], path: Path) -> None:
    """For each run: jobs (grey) and workers (green) over time, and below how long which share of the jobs waited."""
    width, height, left, top = 1000, 150, 70, 30
    picture = Image.new("RGB", (left + width + 20, len(runs) * 2 * (height + 50) + top), "white")
    pen = ImageDraw.Draw(picture)
    for name, outcome in runs.items():
        end = max(outcome.stops.max(), arrivals[-1])
        times = np.linspace(0, end, width)
        on = np.searchsorted(outcome.starts, times, "right") - np.searchsorted(outcome.stops, times, "right")
        counts, _ = np.histogram(arrivals, width // 5, (0, end))
        rates = np.repeat(counts / (end * 5 / width), 5)
        title = f"{name}: workers (green, at most {outcome.most}), jobs a second (grey, at most {rates.max():.2g})"
        axes(pen, (left, top, width, height), f"{title}; {end / 3600:.1f} h")
        for x in range(width):
            level = rates[x] / max(rates.max(), 1e-9) * height
            pen.line((left + x, top + height - level, left + x, top + height), fill="#d0d0d0")
        plot(pen, (left, top, width, height), on / outcome.most, "#2e8b57")
        top += height + 50
        waits = np.percentile(outcome.waits, np.linspace(0, 100, width))
        axes(pen, (left, top, width, height), f"{name}: seconds waited, by percentile; at most {waits[-1]:.1f}")
        plot(pen, (left, top, width, height), waits / max(waits[-1], 1e-9), "#4682b4")
        for percentile in (0, 25, *PERCENTILES[:3], 100):
            x = left + percentile * width // 100
            pen.text((x - 8, top + height + 4), f"{percentile} %", fill="grey")
        top += height + 50
    picture.save(path)


Box = tuple[int, int, int, int]


def axes(pen: ImageDraw.ImageDraw, box: Box, title: str) -> None:
    """The frame of a plot: left, top, width, height."""
    left, top, width, height = box
    pen.rectangle((left, top, left + width, top + height), outline="#808080")
    pen.text((left, top - 18), title, fill="black")


def plot(pen: ImageDraw.ImageDraw, box: Box, values: Sequence[float] | Seconds, colour: str) -> None:
    """A line through `values`, of 0 to 1, one a pixel."""
    left, top, _, height = box
    pen.line([(left + x, top + height * (1 - float(value))) for x, value in enumerate(values)], fill=colour, width=2)


def parser() -> argparse.ArgumentParser:
    """The command line's."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("trace", help="steady, bursty, daily, or a CSV")
    made.add_argument("--rate", type=float, default=0.5, help="jobs a second, on average (default 0.5)")
    made.add_argument("--hours", type=float, default=24.0, help="length of the trace (default 24)")
    made.add_argument("--job-seconds", type=float, default=1.5, help="seconds of a worker (default 1.5)")
    made.add_argument("--job-times", type=Path, metavar="FILE", help="measured ones, one a line, to draw from instead")
    made.add_argument("--pictures", type=int, default=1, help="pictures of a job (default 1)")
    made.add_argument("--cold-start", type=float, default=20.0, help="seconds until a new worker works (default 20)")
    made.add_argument("--idle-timeout", type=float, default=30.0, help="seconds (default 30)")
    made.add_argument("--scale-after", type=float, default=4.0, help="seconds that a job waits for it (default 4)")
    made.add_argument("--min-workers", type=int, default=0, help="always on (default 0)")
    made.add_argument("--max-workers", type=int, default=10, help="(default 10)")
    made.add_argument("--price", type=float, default=0.00031, help="of a worker a second (default 0.00031)")
    made.add_argument("--target", type=float, metavar="SECONDS", help="recommend what keeps the wait below this")
    made.add_argument("--percentile", type=float, default=95.0, help="for so many of 100 jobs (default 95)")
    made.add_argument("--seed", type=int, default=0, help="of the trace (default 0)")
    made.add_argument("--png", type=Path, help="draw it")
    return made


def load_trace(args: argparse.Namespace) -> tuple[Seconds, Seconds]:
    """The jobs that the command line asks for.

    Raises:
        OSError: a file cannot be read.
        ValueError: there is no such trace, no job in it, or a job takes no time.
    """
    noise, times = np.random.default_rng(args.seed), None
    if args.trace in TRACES:
        arrivals = TRACES[args.trace](args.rate, args.hours * 3600, noise)
    elif Path(args.trace).is_file():
        arrivals, times = read_csv(Path(args.trace))
    else:
        raise ValueError(f"{args.trace} is none of {', '.join(TRACES)}, and no file")
    if not len(arrivals):
        raise ValueError("no job comes: --rate or --hours is too small")
    if args.job_times is not None:
        times = noise.choice(read_times(args.job_times), len(arrivals))
    return arrivals, times if times is not None else np.full(len(arrivals), args.job_seconds)


def check(args: argparse.Namespace) -> None:
    """What no fleet can be.

    Raises:
        ValueError: a number is out of its range, or the image cannot be written.
    """
    if not 0 <= args.min_workers <= args.max_workers or args.max_workers < 1 or args.pictures < 1:
        raise ValueError("0 <= --min-workers <= --max-workers, at least 1, and --pictures at least 1")
    positive = {"--rate": args.rate, "--hours": args.hours, "--job-seconds": args.job_seconds}
    least = {"--cold-start": args.cold_start, "--idle-timeout": args.idle_timeout, "--scale-after": args.scale_after}
    least |= {"--price": args.price, "--target": 0.0 if args.target is None else args.target}
    for name, value in {**positive, **least}.items():
        if not math.isfinite(value) or value < 0 or (value == 0 and name in positive):
            raise ValueError(f"{name} is {value:g}; it is {'over 0' if name in positive else '0 or more'}")
    if not 0 < args.percentile <= 100:
        raise ValueError(f"--percentile is {args.percentile:g}; it is over 0 and at most 100")
    if args.png is not None and (args.png.suffix.lower() != ".png" or not args.png.parent.is_dir()):
        raise ValueError(f"--png {args.png}: a name that ends in .png, in a folder that there is")


def main() -> int:
    """The command line; exit status 1 where the target cannot be met, or what was asked for makes no sense."""
    args = parser().parse_args()
    try:
        check(args)
        arrivals, seconds = load_trace(args)
        return show(args, arrivals, seconds)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def show(args: argparse.Namespace, arrivals: Seconds, seconds: Seconds) -> int:
    """Prints and draws what comes of the jobs; returns the exit status.

    Raises:
        OSError: the image cannot be written.
    """
    fleet = Fleet(args.min_workers, args.max_workers, args.scale_after, args.cold_start, args.idle_timeout, args.price)
    print(f"{args.trace}: {len(arrivals)} jobs in {arrivals[-1] / 3600:.1f} h, {seconds.mean():.2f} s each\n")
    titles = " / ".join(f"{p} %" for p in PERCENTILES)
    columns = (
        f"workers, idle timeout | wait s: {titles} / most | cold starts | most on | busy | hours paid | 1,000 cost"
    )
    print(f"| | {columns} |")
    print("|---|---|---|---|---|---|---|---|")
    runs = {"as given": simulate(arrivals, seconds, fleet)}
    print(row("as given", fleet, runs["as given"], args.pictures))
    status = 0
    if args.target is not None:
        best = recommend(arrivals, seconds, fleet, args.target, args.percentile)
        if best is None:
            most = f"with at most {fleet.max_workers} workers"
            print(f"\n{args.percentile:g} % of the jobs within {args.target:g} s: not {most}; raise --max-workers")
            status = 1
        else:
            chosen = replace(best[0], max_workers=best[1].most)
            runs["recommended"] = best[1]
            print(row("recommended", chosen, best[1], args.pictures))
    if args.png is not None:
        draw(arrivals, runs, args.png)
    return status


if __name__ == "__main__":
    sys.exit(main())
