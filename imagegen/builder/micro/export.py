"""Puts the trained parts together: a diffusers folder in half precision that `Flux2KleinPipeline` opens."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline

from imagegen.builder.micro.pool import Pool
from imagegen.builder.micro.text_encoder import build_text_encoder
from imagegen.builder.micro.tokenizer import build_tokenizer
from imagegen.builder.micro.training import load
from imagegen.builder.micro.transformer import build_transformer
from imagegen.builder.micro.vae import build_vae

MAX_MEGABYTES = 8.0


def export(work: Path, out: Path) -> None:
    """Writes the model to `out`, which is replaced whole except for its card (README.md) and its adapters (loras).

    The adapters were trained on the weights before: `imagegen.builder.micro.adapters` trains them anew or, for weights
    that were trained further, with `--init-from` further as well.

    Raises:
        ValueError: the weights are over 8 MB.
    """
    tokenizer, vae, transformer = build_tokenizer(), build_vae(), build_transformer()
    text_encoder = build_text_encoder(tokenizer)
    load(text_encoder, work / "text_encoder.safetensors")
    load(vae, work / "vae.safetensors")
    if (done := work / "transformer.safetensors").exists():
        load(transformer, done)
    else:  # the best so far
        transformer.load_state_dict(torch.load(work / "transformer.pt", weights_only=True)["averaged"])
    pool: Pool = torch.load(work / "pool.pt", weights_only=False)  # our own file
    vae.bn.running_mean.copy_(pool.mean)
    vae.bn.running_var.copy_(pool.var)
    text_encoder.tie_weights()
    pipeline = Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=vae.half(),
        text_encoder=text_encoder.half(),
        tokenizer=tokenizer,
        transformer=transformer.half(),
        is_distilled=True,
    )
    fresh = out.with_name(f"{out.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    pipeline.save_pretrained(fresh)
    size = sum(path.stat().st_size for path in fresh.rglob("*.safetensors")) / 1e6
    if size > MAX_MEGABYTES:
        raise ValueError(f"the weights are {size:.1f} MB, over {MAX_MEGABYTES}")
    if (out / "README.md").exists():
        shutil.copy(out / "README.md", fresh)
    if (out / "loras").exists():
        shutil.copytree(out / "loras", fresh / "loras")
    shutil.rmtree(out, ignore_errors=True)
    fresh.rename(out)
    for path in out.rglob("*.safetensors"):
        path.chmod(0o644)  # a container runs as another user
    print(f"export: {size:.1f} MB in {out}")
