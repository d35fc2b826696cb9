"""`python -m imagegen` with a GPU that fails by the job's seed: `python -m tests.support.faulty_gpu`.

From the seed NOISE pictures are of 1024x1024 and do not compress: 4.2 MB in base64. Each step's time is a line of
STEPS_FILE, where set. The model is loaded once LOAD_FILE is there, where set.
"""

import os
import sys
import time
from pathlib import Path

import diffusers
import numpy as np
import torch

from imagegen.__main__ import main
from imagegen.model.pipeline import FluxPipeline

DEAD, HANGS, TOO_LARGE, NOISE = 13, 14, 15, 16

_call = diffusers.Flux2KleinPipeline.__call__
_load = FluxPipeline.__init__


def _slow_load(self, *arguments, **options):
    while (path := os.environ.get("LOAD_FILE")) and not Path(path).exists():
        time.sleep(0.05)
    _load(self, *arguments, **options)


def _faulty(self, *arguments, generator, callback_on_step_end, **options):
    seed = generator.initial_seed()
    if seed == DEAD:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
    if seed == TOO_LARGE:
        raise torch.OutOfMemoryError("CUDA out of memory")
    if seed == HANGS:
        time.sleep(3600)

    def after_step(*step):
        if path := os.environ.get("STEPS_FILE"):
            with Path(path).open("a") as file:
                file.write(f"{time.monotonic()}\n")
        return callback_on_step_end(*step)

    result = _call(self, *arguments, generator=generator, callback_on_step_end=after_step, **options)
    if NOISE <= seed < NOISE + 8:
        pixels = np.random.default_rng(seed).integers(0, 256, (1024, 1024, 3), np.uint8)
        result.images = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255  # as the worker asks for them
    return result


if __name__ == "__main__":
    diffusers.Flux2KleinPipeline.__call__ = _faulty
    FluxPipeline.__init__ = _slow_load
    sys.exit(main())
