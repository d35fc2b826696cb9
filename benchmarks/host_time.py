"""What the host does for an image beside the model, in CPU seconds of the GPU's thread, against the bare diffusers call.

    OMP_NUM_THREADS=1 python -m benchmarks.host_time [--images 20]

klein-9b's modules at a small width, whose transformer, text encoder and VAE return at once: what is left is the host's
work, of which a GPU sees nothing and for which it waits. 1024x1024, 4 steps, a new prompt for each image; both ways
take turns in one run, so that another job on the machine slows both alike. CPU seconds and no time of the clock: a GPU
worker's thread has a core for itself. Prints Markdown for docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

if not __package__:  # started by its path, which makes this folder the place of imports
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.random_model import write_model
from imagegen.model.config import FluxConfig
from imagegen.model.pipeline import FluxPipeline
from imagegen.models import ModelSpec, get_model

SIDE, STEPS = 1024, 4


def small_klein() -> ModelSpec:
    """klein-9b with all its layers and latents, at a small width."""
    spec = get_model("klein-9b")
    small = replace(
        spec.architecture,
        hidden=64,
        heads=2,
        text_hidden=64,
        text_feed_forward=64,
        text_heads=4,
        text_kv_heads=2,
        text_head_width=16,
        vocabulary=118,
    )
    return replace(spec, architecture=small)


def make_free(pipe: Any) -> None:
    """Lets the parts of a pipeline return what was prepared, at once."""
    size = SIDE // 8
    a = pipe.transformer.config
    states = torch.zeros(1, 512, a.joint_attention_dim // 3)
    latents = torch.zeros(1, 32, size, size)
    image = torch.rand(1, 3, SIDE, SIDE) * 2 - 1
    hidden = type("Output", (), {"hidden_states": [states] * 37})()
    pipe.text_encoder.forward = lambda *_, **__: hidden
    pipe.transformer.forward = lambda hidden_states, **_: (hidden_states,)
    pipe.vae.decode = lambda *_, **__: (image,)
    pipe.vae.encode = lambda *_, **__: type("Encoded", (), {"latents": latents})()
