"""`python -m imagegen` with a GPU that fails by the job's seed: `python -m tests.support.faulty_gpu`.

From the seed NOISE images are of 1024x1024 and do not compress: 4.2 MB in base64. From the seed SLOW a step takes a
tenth of a second, in which the processor is free. Each step's time is a line of
STEPS_FILE, where set. The model is loaded once LOAD_FILE is there, where set.
"""

import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from imagegen.__main__ import main
from imagegen.model.pipeline import FluxPipeline

DEAD, HANGS, TOO_LARGE, NOISE, SLOW = 13, 14, 15, 16, 32

_generate = FluxPipeline.generate_prepared
_load = FluxPipeline.__init__


def _slow_load(self, *arguments, **options):
    while (path := os.environ.get("LOAD_FILE")) and not Path(path).exists():
        time.sleep(0.05)
    _load(self, *arguments, **options)


def _fail(seed):
    if seed == DEAD:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
    if seed == TOO_LARGE:
        raise torch.OutOfMemoryError("CUDA out of memory")
    if seed == HANGS:
        if path := os.environ.get("STEPS_FILE"):
            Path(path).touch()  # the GPU has begun
        time.sleep(3600)


def _faulty(self, inputs, prompt, seed, on_step, *rest):
    self.translating_gpu_errors(lambda: _fail(seed))

    def after_step(*step):
        if SLOW <= seed < SLOW + 8:
            time.sleep(0.1)
        if path := os.environ.get("STEPS_FILE"):
            with Path(path).open("a") as file:
                file.write(f"{time.monotonic()}\n")
        return on_step(*step)

    generated = _generate(self, inputs, prompt, seed, after_step, *rest)
    if NOISE <= seed < NOISE + 8:
        generated.image = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (1024, 1024, 3), np.uint8))
    return generated


if __name__ == "__main__":
    FluxPipeline.generate_prepared = _faulty
    FluxPipeline.__init__ = _slow_load
    sys.exit(main())
