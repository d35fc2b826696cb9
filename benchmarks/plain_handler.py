"""The handler that one would write in twenty lines with runpod and diffusers: the baseline of every comparison.

python benchmarks/plain_handler.py [--test_input JSON | --rp_serve_api]     MODEL: a model directory
"""

import base64
import io
import os
import sys

if "--help" in sys.argv:  # the SDK's comes after the model is loaded
    sys.exit(print(f"usage: {__doc__}"))

import runpod
import torch
from diffusers import Flux2KleinPipeline

pipe = Flux2KleinPipeline.from_pretrained(os.environ.get("MODEL", "imagegen/micro"), dtype=torch.float32)


def handler(job):
    i = job["input"]
    size, seed = i.get("width", 128), i.get("seed", 0)
    image = pipe(
        prompt=i["prompt"], width=size, height=size, num_inference_steps=4, guidance_scale=1.0,
        max_sequence_length=32, generator=torch.Generator().manual_seed(seed),
    ).images[0]  # fmt: skip
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return {"image": base64.b64encode(buffer.getvalue()).decode()}


runpod.serverless.start({"handler": handler})
