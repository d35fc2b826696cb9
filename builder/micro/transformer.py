"""The transformer: Flux2Transformer2DModel of 2 M parameters, trained with the flow-matching velocity loss."""

from __future__ import annotations

import math
import os
import random
from pathlib import Path

import torch
from diffusers import Flux2KleinPipeline, Flux2Transformer2DModel
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from torch import Tensor

from builder.micro.pool import Group, Pool
from builder.micro.training import Progress, save

#: How often each kind is trained, and its batch at the start and later.
SHARES = {"generate": 0.5, "edit": 0.44, "combine": 0.06}
BATCH = {"generate": 32, "edit": 24, "combine": 16}
LEARNING_RATE = 2e-3
_EMA = 0.998
_CHECKPOINT_EVERY = 500


def build_transformer() -> Flux2Transformer2DModel:
    """Default random weights; the output starts at zero."""
    model = Flux2Transformer2DModel(
        in_channels=32,
        num_layers=2,
        num_single_layers=4,
        attention_head_dim=32,
        num_attention_heads=4,
        joint_attention_dim=192,
        timestep_guidance_channels=64,
        mlp_ratio=3.0,
        axes_dims_rope=(8, 8, 8, 8),
        rope_theta=100,
        guidance_embeds=False,
    )
    torch.nn.init.zeros_(model.proj_out.weight)
    return model


def schedule(tokens: int, steps: int = 4) -> Tensor:
    """The noise levels (steps,) at which the pipeline calls the model for a picture of so many tokens."""
    shift = math.exp(compute_empirical_mu(tokens, steps))
    s = torch.linspace(1.0, 1 / steps, steps)
    return shift * s / (1 + (shift - 1) * s)


def draw_times(count: int, tokens: int, rng: torch.Generator) -> Tensor:
    """Noise levels (count,): six in ten are the very ones of the four steps, the rest spread with shifts of 7 and 2."""
    exact = schedule(tokens)[torch.randint(0, 4, (count,), generator=rng)]
    u = torch.rand(count, generator=rng)
    shift = torch.where(torch.rand(count, generator=rng) < 0.5, 7.0, 2.0)
    spread = shift * u / (1 + (shift - 1) * u)
    return torch.where(torch.rand(count, generator=rng) < 0.6, exact, spread)


def position_ids(width: int, height: int, references: int) -> tuple[Tensor, Tensor]:
    """Ids of the picture's and its references' tokens, and of the text's, as the pipeline makes them."""
    latents = torch.empty(1, 32, height // 16, width // 16)
    ids = [Flux2KleinPipeline._prepare_latent_ids(latents)[0]]
    if references:
        ids.append(Flux2KleinPipeline._prepare_image_ids([latents] * references)[0])
    return torch.cat(ids), Flux2KleinPipeline._prepare_text_ids(torch.empty(1, 32, 1))[0]


def loss_of(
    model: Flux2Transformer2DModel, group: Group, pool: Pool, rng: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss of one batch of `group`, and each sample's plain error and time (B,)."""
    chosen = torch.randint(0, len(group.captions), (BATCH[group.kind],), generator=rng)
    target, references = group.target[chosen], group.references[chosen].flatten(1, 2)
    text = pool.embeddings[group.captions[chosen]].float()
    noise = torch.randn(target.shape, generator=rng)
    time = draw_times(len(chosen), target.shape[1], rng)
    noisy = torch.lerp(target, noise, time[:, None, None])
    image_ids, text_ids = position_ids(group.width, group.height, group.references.shape[1])
    velocity = model(
        hidden_states=torch.cat([noisy, references], 1),
        encoder_hidden_states=text,
        timestep=time,
        img_ids=image_ids,
        txt_ids=text_ids,
        return_dict=False,
    )[0][:, : target.shape[1]]
    error = ((velocity.float() - (noise - target)) ** 2).mean(-1)  # (B, tokens)
    # What is not background is a small part of the picture and all of its meaning.
    different = (target - target[:, :1]).square().mean(-1) > 0.05
    weight = 1 + 2 * different.float()
    return (error * weight).sum() / weight.sum(), error.detach().mean(1), time


def train_transformer(work: Path, steps: int, seed: int) -> None:
    """Trains from the pool in `work`, going on from `transformer.pt` if there is one; writes the averaged weights."""
    pool: Pool = torch.load(work / "pool.pt", weights_only=False)  # our own file, written a stage before
    torch.manual_seed(seed)
    model, averaged = build_transformer(), build_transformer()
    averaged.load_state_dict(model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.01)
    checkpoint, first = work / "transformer.pt", 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        averaged.load_state_dict(state["averaged"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]

    sizes = {kind: sum(len(g.captions) for g in pool.groups if g.kind == kind) for kind in SHARES}
    weights = [SHARES[g.kind] * len(g.captions) / sizes[g.kind] for g in pool.groups]
    progress = Progress("transformer", steps, first)
    for step in range(first, steps):
        # Seeded by the step, so that a stopped training goes on as if it had not been.
        group = random.Random(f"{seed}-{step}").choices(pool.groups, weights)[0]
        rng = torch.Generator().manual_seed(seed * 10_000_000 + step)
        for settings in optimizer.param_groups:
            settings["lr"] = LEARNING_RATE * min(1.0, (step + 1) / 100) * (1 - step / steps) ** 0.8
        with torch.autocast("cpu", torch.bfloat16):  # 1.35 times as fast where the processor knows bfloat16
            loss, errors, times = loss_of(model, group, pool, rng)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            for mean, value in zip(averaged.parameters(), model.parameters(), strict=True):
                mean.lerp_(value, 1 - min(_EMA, (step + 1) / (step + 10)))
        for name, low, high in (("high", 0.9, 1.1), ("middle", 0.5, 0.9), ("low", 0.0, 0.5)):
            if (inside := (times > low) & (times <= high)).any():
                progress.note(**{f"{group.kind[0]}/{name}": errors[inside].mean().item()})
        progress(step)
        if (step + 1) % _CHECKPOINT_EVERY == 0:
            state = {
                "model": model.state_dict(),
                "averaged": averaged.state_dict(),
                "optimizer": optimizer.state_dict(),
            }
            torch.save({**state, "step": step + 1}, work / "transformer.pt.part")
            os.replace(work / "transformer.pt.part", checkpoint)
    save(averaged, work / "transformer.safetensors")
