"""The transformer: Flux2Transformer2DModel of 2 M parameters, trained with the flow-matching velocity loss."""

from __future__ import annotations

import itertools
import math
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from diffusers import Flux2Transformer2DModel
from torch import Tensor, distributed, nn

from imagegen.builder.micro.pool import CELLS, Group, Pool
from imagegen.builder.micro.scenes import SHAPES
from imagegen.builder.micro.training import Checkpoint, Progress, load, save
from imagegen.compat import diffusers as compat

#: How often each kind is trained, and its batch at 128x128 in each process.
SHARES = {"generate": 0.2, "edit": 0.44, "edit2": 0.15, "combine": 0.04, "combine3": 0.07, "combine4": 0.1}
BATCH = {"generate": 32, "edit": 24, "edit2": 24, "combine": 16, "combine3": 12, "combine4": 10}
LEARNING_RATE, _CONTINUED = 2e-3, 3e-4  # from nothing, and from trained weights; the heads always begin anew
#: Batches of a round that go from noise to image: in turn, for several steps in a row with the same images led the
#: weights astray.
_TOGETHER = 4
#: Batches of a round that show truth mixed with noise (`mix`).
_MIXED = 8
#: Numbers of sampling steps that are trained, and how often: four is what the model is for.
_STEPS = {4: 16, 1: 1, 2: 1, 3: 1, 6: 1, 8: 1}
#: How many numbers the noise holds (`captions.Sample.play`), and how much it weighs to know them.
NUMBERS, _NUMBERS_WEIGHT = 3, 0.2
#: How much it weighs to know what is at a token (`pool._kinds`), and how much more a shape than nothing.
_KINDS_WEIGHT, _CLASS_WEIGHTS = 0.1, torch.tensor([1.0] + [3.0] * len(SHAPES))
KINDS = len(_CLASS_WEIGHTS)
#: How much it weighs to know the outline at a token (`pool._outlines`).
_OUTLINES_WEIGHT = 0.5
#: How much more than background an error weighs at a shape's token: up to _FAINT / _CONTRAST, where hardly anything
#: stands out from the first token (a gradient alone does, somewhat); half of that where the latents' mean squared
#: difference is _CONTRAST.
_FAINT, _CONTRAST = 4.0, 0.5
#: In bfloat16 a training step is 1.35 times as fast with AVX-512, and takes 11 times as long with AVX2 alone (AMD
#: EPYC). All other processors train in float32.
BFLOAT16 = "AVX512" in torch.backends.cpu.get_cpu_capability()
#: Below this noise level the weight of an error no longer rises.
_LOWEST = 0.05
_EMA = 0.998
_CHECKPOINT_EVERY = 15


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
    """The noise levels (steps,) at which the pipeline calls the model for an image of so many tokens."""
    shift = math.exp(compat.time_shift(tokens, steps))
    s = torch.linspace(1.0, 1 / steps, steps)
    return shift * s / (1 + (shift - 1) * s)


def position_ids(width: int, height: int, references: int) -> tuple[Tensor, Tensor]:
    """Ids of the image's and its references' tokens, and of the text's, as the pipeline makes them."""
    latents = torch.empty(1, 32, height // 16, width // 16)
    return compat.position_ids(latents, references, 32)


def hold(noise: Tensor, play: Tensor) -> Tensor:
    """The noise (B, tokens, C) with the numbers of `play` (B, n) in it, NaN for those that are free: number i becomes
    the mean of channel i, scaled to a variance of 1.

    Where the numbers are standard normal and independent, so is the noise that comes out: training pairs each noise
    with the one image that it is to become, and sampling draws from the same noise as ever.
    """
    count, tokens = play.shape[1], math.sqrt(noise.shape[1])
    means = noise[:, :, :count].mean(1)
    moves = torch.where(play.isnan(), 0.0, play / tokens - means)
    return torch.cat([noise[:, :, :count] + moves[:, None], noise[:, :, count:]], -1)


def plain_attention(query: Tensor, key: Tensor, value: Tensor, **_: Any) -> Tensor:
    """torch's scaled_dot_product_attention without its options, as two matrix products.

    Its kernels for the CPU took 43 % of a training step in bfloat16; a step is 0.7 times as long without them.
    """
    weights = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    attended: Tensor = weights.softmax(-1) @ value
    return attended


class Trainee(nn.Module):
    """The transformer, with auxiliary heads that tell what its tokens know; they are not kept.

    They ask directly for what the error of the images alone hardly teaches: the numbers that the noise holds were
    found within some hundred steps (next to nothing of them in 1,750 steps without); which shape is where decides what
    to draw, and which of two the words mean; its outline, whatever the colours, keeps its corners and its turn.

    Args:
        fast: computes with `plain_attention`, and in bfloat16 where that is faster.
    """

    def __init__(self, transformer: Flux2Transformer2DModel, fast: bool = True) -> None:
        super().__init__()
        self.transformer, self.fast = transformer, fast
        self.numbers, self.shapes = (
            nn.Sequential(nn.LayerNorm(transformer.inner_dim), nn.Linear(transformer.inner_dim, count))
            for count in (NUMBERS, KINDS + CELLS)
        )
        self._early = self._late = torch.empty(0)
        transformer.transformer_blocks[-1].register_forward_hook(self._keep_early)
        transformer.single_transformer_blocks[-2].register_forward_hook(self._keep_late)

    def _keep_early(self, _: nn.Module, __: object, out: tuple[Tensor, Tensor]) -> None:
        self._early = out[1]

    def _keep_late(self, _: nn.Module, __: object, out: Tensor) -> None:
        self._late = out[:, -self._early.shape[1] :]

    def forward(self, tokens: int, **inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The velocity (B, tokens, C); what each of the image's `tokens` takes the noise's numbers to be (B, tokens,
        NUMBERS), behind the double blocks; and the logits of which shape is at each token, references' included (B,
        all, KINDS), and of which cells of it are covered (B, all, CELLS): of a reference behind the double blocks, of
        the image to come before the last block."""
        attention = plain_attention if self.fast else nn.functional.scaled_dot_product_attention
        with (
            torch.autocast("cpu", torch.bfloat16, enabled=self.fast and BFLOAT16),
            patch.object(nn.functional, "scaled_dot_product_attention", attention),
        ):
            velocity = self.transformer(**inputs, return_dict=False)[0][:, :tokens]
            numbers = self.numbers(self._early[:, :tokens])
            shapes = self.shapes(torch.cat([self._late[:, :tokens], self._early[:, tokens:]], 1)).float()
        return velocity.float(), numbers.float(), shapes[..., :KINDS], shapes[..., KINDS:]


@dataclass
class Batch:
    """Samples between noise and image: `noisy` (B, tokens, 32) is where the model itself has come to, or a mixture of
    both (`mix`); `references` (B, R * tokens, 32), `kinds` (B, (1 + R) * tokens) and `outlines` (B, (1 + R) * tokens,
    CELLS), the target's first."""

    group: Group
    target: Tensor
    references: Tensor
    text: Tensor
    kinds: Tensor
    outlines: Tensor
    noise: Tensor
    noisy: Tensor


def draw_batch(group: Group, pool: Pool, rng: torch.Generator) -> Batch:
    """A batch of `group`, at its noise."""
    size = min(BATCH[group.kind], BATCH[group.kind] * 128 * 128 // (group.width * group.height))
    chosen = torch.randint(0, len(group.captions), (size,), generator=rng)
    target, references = group.target[chosen], group.references[chosen].flatten(1, 2)
    noise = hold(torch.randn(target.shape, generator=rng), group.play[chosen])
    text = pool.embeddings[group.captions[chosen]].float()
    kinds, outlines = (labels[chosen].flatten(1, 2) for labels in (group.kinds, group.outlines))
    return Batch(group, target, references, text, kinds, outlines, noise, noise)


@dataclass
class Step:
    """What the model made of a batch: the loss, the velocity (B, tokens, 32), the mean squared error of the image that
    it foresees, that of the noise's numbers, the share of shapes' tokens whose kind it knows (NaN where there is no
    shape), and the cross entropy of all tokens' cells."""

    loss: Tensor
    velocity: Tensor
    error: float
    numbers: float
    known: float
    blurred: float


def sample(model: nn.Module, batches: list[Batch], steps: int) -> Iterator[tuple[int, Batch, Step]]:
    """Takes batches from noise to image as the pipeline does, in turn, with what the Trainee `model` has come to be:
    its weights may change between the steps.

    Yields:
        The step, from 0; the batch that has made it; what it came to.
    """
    for number, batch in itertools.product(range(steps), batches):
        count, tokens = batch.target.shape[:2]
        levels = [*schedule(tokens, steps).tolist(), 0.0]
        step = _advance(model, batch, torch.full((count,), levels[number]))
        batch.noisy = batch.noisy + (levels[number + 1] - levels[number]) * step.velocity
        yield number, batch, step


def mix(model: nn.Module, batches: list[Batch], rng: torch.Generator) -> Iterator[tuple[None, Batch, Step]]:
    """Shows each batch once as truth mixed with noise, each sample at a level of its own between 0 and that of the last
    of four steps: levels that an edit with `strength` below 1 comes to, and an image of more steps.

    It teaches to keep what is seen and to take the noise away. (An edit with `strength` begins at the reference under
    noise; here it is the truth.)

    Yields:
        None for a step's number; the batch; what it came to.
    """
    for batch in batches:
        count, tokens = batch.target.shape[:2]
        level = schedule(tokens)[-1] * torch.rand(count, generator=rng)
        batch.noisy = torch.lerp(batch.target, batch.noise, level[:, None, None])
        yield None, batch, _advance(model, batch, level)


def _advance(model: nn.Module, batch: Batch, level: Tensor) -> Step:
    """What the model makes of `batch.noisy`, where each sample is at its noise level (B,)."""
    tokens = batch.target.shape[1]
    image_ids, text_ids = position_ids(batch.group.width, batch.group.height, batch.group.references.shape[1])
    velocity, numbers, kinds, outlines = model(
        tokens,
        hidden_states=torch.cat([batch.noisy, batch.references], 1),
        encoder_hidden_states=batch.text,
        timestep=level,
        img_ids=image_ids,
        txt_ids=text_ids,
    )
    foreseen = batch.noisy - level[:, None, None] * velocity
    error = (foreseen - batch.target).square().mean(-1)  # (B, tokens)
    # What is not background is a small part of the image and all of its meaning. In orange on red or blue on
    # purple it stands out, and a lost outline costs, a tenth of what it does in white on black.
    different = (batch.target - batch.target[:, :1]).square().mean(-1)
    weight = 1 + batch.outlines[:, :tokens].any(-1) * _FAINT / (different + _CONTRAST)
    # The image's error is the velocity's times the level. Its square alone would teach next to nothing at low levels.
    loss = (error * weight / level[:, None].clamp(min=_LOWEST)).sum() / weight.sum()
    # Where nothing of the image is to be seen yet, the tokens are to know the noise's numbers. Also where this weighs
    # nothing it is in the sum: DistributedDataParallel wants a gradient of every weight.
    held = batch.noise[:, :, :NUMBERS].mean(1, keepdim=True) * math.sqrt(tokens)
    missed = (numbers - held).square().mean()
    loss = loss + (_NUMBERS_WEIGHT if batch.group.kind == "generate" and level.min() > 0.9 else 0.0) * missed
    unsure = nn.functional.cross_entropy(kinds.flatten(0, 1), batch.kinds.flatten(), _CLASS_WEIGHTS)
    loss = loss + _KINDS_WEIGHT * unsure
    blurred = nn.functional.binary_cross_entropy_with_logits(outlines, batch.outlines.float())
    loss = loss + _OUTLINES_WEIGHT * blurred
    shapes = batch.kinds > 0
    known = (kinds.argmax(-1) == batch.kinds)[shapes].float().mean()
    return Step(loss, velocity.detach(), error.mean().item(), missed.item(), known.item(), blurred.item())


def train_transformer(work: Path, rounds: int, seed: int, start: Path | None) -> None:  # noqa: C901 - one loop
    """Trains from the pool in `work`, going on from `transformer.pt` if there is one; writes the averaged weights.

    A round takes a few batches from noise to image as the pipeline does, and learns at every noise level from where the
    model itself has come to, not from the truth mixed with noise. Trained on the latter alone, it trusted what it saw,
    its own first mistakes: four steps were worse than the first (mean squared error 0.17 and 0.13). Other batches show
    truth mixed with noise at the levels below those of four steps, where an edit of low `strength` begins. In both, the
    square of an error is divided by its level.

    Begins with the weights of the file `start` where it is given, at a lower rate. Several processes
    (torch.distributed's RANK and WORLD_SIZE) train one model with a batch each: a thread a process loses less to other
    work on the machine than OpenMP's threads, which wait for each other in every operation.

    Raises:
        ValueError: the checkpoint is of another number of processes, whose batches were others, or of another number of
            rounds, seed or rate, as with another `start`.
    """
    pool: Pool = torch.load(work / "pool.pt", weights_only=False)  # our own file, written a stage before
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    torch.manual_seed(seed)
    model, averaged = build_transformer(), build_transformer()
    rate = LEARNING_RATE
    if start is not None:
        load(model, start)
        rate = _CONTINUED
    averaged.load_state_dict(model.state_dict())
    trainee = Trainee(model)
    heads = [*trainee.numbers.parameters(), *trainee.shapes.parameters()]
    optimizer = torch.optim.AdamW(
        [{"params": [*model.parameters()], "peak": rate}, {"params": heads, "peak": LEARNING_RATE}],
        betas=(0.9, 0.99),
        weight_decay=0.01,
    )
    checkpoint = Checkpoint(
        work / "transformer.pt",
        {"trainee": trainee, "averaged": averaged, "optimizer": optimizer},
        {"processes": world, "rounds": rounds, "rate": rate, "seed": seed},
    )
    first = checkpoint.restore()
    trained: nn.Module = trainee
    if world > 1:
        distributed.init_process_group("gloo")
        trained = nn.parallel.DistributedDataParallel(trainee)

    sizes = {kind: sum(len(g.captions) for g in pool.groups if g.kind == kind) for kind in SHARES}
    weights = [SHARES[g.kind] * len(g.captions) / sizes[g.kind] for g in pool.groups]
    progress = Progress("transformer", rounds, first, every=5)
    for number in range(first, rounds):
        # Seeded by the round, so that a stopped training goes on as if it had not been; one group in all processes,
        # which wait for each other.
        shared = random.Random(f"{seed}-{number}")
        (steps,) = shared.choices(list(_STEPS), list(_STEPS.values()))
        rng = torch.Generator().manual_seed((seed * 10_000_000 + number) * world + rank)
        groups = shared.choices(pool.groups, weights, k=_TOGETHER + _MIXED)
        batches = [draw_batch(group, pool, rng) for group in groups]
        for settings in optimizer.param_groups:
            settings["lr"] = settings["peak"] * min(1.0, (number + 1) / 10) * (1 - number / rounds) ** 0.8
        own, mixed = sample(trained, batches[:_TOGETHER], steps), mix(trained, batches[_TOGETHER:], rng)
        for at, batch, step in itertools.chain(own, mixed):
            optimizer.zero_grad(set_to_none=True)
            step.loss.backward()
            torch.nn.utils.clip_grad_norm_(trainee.parameters(), 1.0)
            optimizer.step()
            if rank > 0:
                continue
            with torch.no_grad():
                for mean, value in zip(averaged.parameters(), model.parameters(), strict=True):
                    mean.lerp_(value, 1 - min(_EMA, (number + 1) / (number + 2)))
            kind = batch.group.kind
            if at == 0:
                progress.note(**{f"{kind}/first": step.error, "shapes": step.known, "outlines": step.blurred})
                if kind == "generate":
                    progress.note(numbers=step.numbers)
            if at == steps - 1:
                progress.note(**{f"{kind}/last": step.error})
            if at is None:
                progress.note(mixed=step.error)
        if rank > 0:
            continue
        progress(number)
        if (number + 1) % _CHECKPOINT_EVERY == 0:
            checkpoint.save(number + 1)
    if rank == 0:
        save(averaged, work / "transformer.safetensors")
    if world > 1:
        distributed.destroy_process_group()
