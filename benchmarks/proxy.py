"""Event streams through nginx with its defaults: how late events are, and a wait that is longer than its timeout.

    python -m benchmarks.proxy [--wait 180] [--timeout 30]

micro in this process, Debian's nginx before it. Prints Markdown for docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

if not __package__:  # started by its path, which makes this folder the place of imports
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from tests.server.conftest import serving
from tests.support.nginx import lines, nginx

#: Seconds of a step in the first measurement, and its steps.
_STEP, _STEPS = 0.5, 8


def lateness(folder: Path) -> float:
    """Seconds from the end of a step to its event at the client, the most of `_STEPS`."""
    ended: list[float] = []

    def slow_step(*_: object) -> None:
        time.sleep(_STEP)

    with serving() as (backend, service):
        transformer = service.start().result()._pipe.transformer
        transformer.register_forward_pre_hook(slow_step)
        transformer.register_forward_hook(lambda *_: ended.append(time.monotonic()))
        with nginx(folder, backend) as url:
            job = {"prompt": "a red circle", "num_inference_steps": _STEPS}
            seen = [at for at, line in lines(url, "/generate", job) if line == "event: step"]
    return max(at - end for at, end in zip(seen, ended, strict=True))


def wait(folder: Path, seconds: float, timeout: int) -> tuple[str, int]:
    """The last event of a job whose first step takes so long, and the comments before it."""
    first = iter([True])

    def wait_once(*_: object) -> None:
        if next(first, False):
            time.sleep(seconds)

    with serving(stall_timeout=seconds + 60) as (backend, service):
        service.start().result()._pipe.transformer.register_forward_pre_hook(wait_once)
        with nginx(folder, backend, f"proxy_read_timeout {timeout}s;") as url:
            seen = [line for _, line in lines(url, "/generate", {"prompt": "a red circle"})]
    return seen[-2].removeprefix("event: "), sum(line.startswith(":") for line in seen)


def main() -> None:
    """Measures both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wait", type=float, default=180, help="seconds")
    parser.add_argument("--timeout", type=int, default=30, help="seconds of nginx's proxy_read_timeout")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        late = lateness(Path(folder) / "late")
        last, comments = wait(Path(folder) / "wait", arguments.wait, arguments.timeout)
    print("| | |\n|---|---|")
    print(f"| a step's event at the client after the step's end, the latest of {_STEPS} | {late * 1000:.0f} ms |")
    print(f"| a step of {arguments.wait:g} s, nginx's timeout at {arguments.timeout} s | {last}, {comments} comments |")


if __name__ == "__main__":
    main()
