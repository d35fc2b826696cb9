"""What tests share: helpers, stand-ins of what cannot run here, and inputs."""

from __future__ import annotations

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
