"""Measures seconds for each image, in this process or at a server, and prints Markdown.

    imagegen bench                                   the model of the settings, on this machine
    imagegen bench --url http://localhost:7000       a server, its HTTP included

Every kind of job runs once unmeasured, then --runs times. Edits have 1 to --references references of the same size.
"""

from __future__ import annotations

import argparse
import base64
import io
import statistics
import sys
import time
from typing import Any

from tqdm import tqdm

from imagegen.cli.jobs import Local, add_place, runner


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--runs", type=_count, default=5, metavar="N", help="of each kind of job; default: 5")
    parser.add_argument("--side", type=int, metavar="PIXELS", help="of the square image; default: the model's own")
    parser.add_argument(
        "--references", type=int, choices=range(5), default=1, metavar="N", help="the most of an edit; default: 1"
    )
    add_place(parser)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of runs; allowed is 1 or more")
    return int(text)


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit status."""
    where = runner(args)
    size = {} if args.side is None else {"width": args.side, "height": args.side}
    rows = []
    with tqdm(total=(args.references + 1) * (args.runs + 1), disable=not sys.stderr.isatty(), leave=False) as bar:
        for references in range(args.references + 1):
            fields = _job(references, args.side or 512) | size
            seconds = []
            for i in range(args.runs + 1):
                bar.set_description(_name(references))
                begun = time.monotonic()
                output = where.run({**fields, "seed": i})
                seconds.append(time.monotonic() - begun)
                bar.update()
            rows.append(_row(references, output, seconds[1:]))
    if isinstance(where, Local) and (start := where.service.health().start) is not None:
        print(f"{output['model']}; start: {start.show()}\n")
    print("| job | size | median s | least s | most s | images a minute |\n|---|---|---|---|---|---|")
    print("\n".join(rows))
    return 0


def _name(references: int) -> str:
    return f"edit, {references} reference{'s' * (references > 1)}" if references else "generate"


def _row(references: int, output: dict[str, Any], seconds: list[float]) -> str:
    median = statistics.median(seconds)
    figures = f"{median:.3f} | {min(seconds):.3f} | {max(seconds):.3f} | {60 / median:.1f}"
    return f"| {_name(references)} | {output['width']}x{output['height']} | {figures} |"


def _job(references: int, side: int) -> dict[str, Any]:
    if not references:
        return {"mode": "generate", "prompt": "a red circle on a blue background"}
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (side, side), "blue").save(file, "PNG")
    image = base64.b64encode(file.getvalue()).decode("ascii")
    return {"mode": "edit", "prompt": "make the background green", "images": [image] * references}
