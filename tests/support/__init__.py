"""What tests share: helpers, stand-ins of what cannot run here, and inputs."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path

from imagegen.settings import Settings

#: Of the checkout: where `python handler.py` runs, and where the files that the tests read are.
ROOT = Path(__file__).parents[2]


def settings(**changes) -> Settings:
    """Settings for micro on the CPU, with `changes`; no .env is read."""
    return Settings(_env_file=None, **{"model": "micro", "device": "cpu", **changes})


def until(condition, timeout: float = 300, every: float = 0.005):
    """Waits until a condition holds, and returns its value; long enough for a machine that does much else.

    `timeout` and `every` are seconds.
    """
    end = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < end, "it did not come about"
        time.sleep(every)
    return value


@contextlib.contextmanager
def held_gpu(service, after=0):
    """The GPU takes `after` steps and holds the next, to the end of the block, or until the event it gives is set.

    A job that is cancelled meanwhile says so at once, and leaves the GPU at that end.
    """
    steps, release = iter(range(after)), threading.Event()

    def hold(*_):
        if next(steps, None) is None:
            release.wait(200)  # less than that after which the GPU counts as dead

    hook = service.start().result()._pipe.transformer.register_forward_pre_hook(hold)
    try:
        yield release
    finally:
        release.set()
        hook.remove()
