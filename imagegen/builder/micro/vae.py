"""The VAE: AutoencoderKLFlux2 with channels (8, 16, 32, 64), from a start that already copies colours.

From default weights this network is hopeless at this size. It starts as an averaging pyramid instead: shortcuts and
convolutions are diracs, downsampling averages, second convolutions of the residual blocks are near zero, and one
constant channel pins the statistics of the last group norms, so that they scale by a known number.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLFlux2
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from PIL import Image
from torch import Tensor, nn

from imagegen.builder.micro.scenes import Scene
from imagegen.builder.micro.text_encoder import draw_samples
from imagegen.builder.micro.training import Checkpoint, Progress, save

CHANNELS = (8, 16, 32, 64)
LATENTS = 8
_CONSTANT = 7  # the channel that holds a constant, the last of the narrowest level
_LEVEL = 8.0  # its value, well above what images in -1..1 reach
_LIFT = 3.0  # SiLU is nearly the identity plus a constant from here up
_EDGES = 4.0  # how much more a pixel near an edge weighs
_CHECKPOINT_EVERY = 250


def build_vae() -> AutoencoderKLFlux2:
    """The network at its start."""
    vae = AutoencoderKLFlux2(
        block_out_channels=CHANNELS,
        layers_per_block=1,
        latent_channels=LATENTS,
        norm_num_groups=1,
        mid_block_add_attention=False,
        sample_size=128,
    )
    with torch.no_grad():
        for module in vae.modules():
            if isinstance(module, ResnetBlock2D):
                module.conv2.weight.mul_(0.1)
                module.conv2.bias.zero_()
                if module.conv_shortcut is not None:
                    _dirac(module.conv_shortcut)
            elif isinstance(module, Downsample2D):
                # The pipeline pads right and bottom by one: the four taps of the upper left are the 2x2 average.
                _dirac(module.conv)
                centre = module.conv.weight[:, :, 1, 1].clone() / 4
                module.conv.weight.zero_()
                module.conv.weight[:, :, :2, :2] = centre[:, :, None, None]
            elif isinstance(module, Upsample2D):
                _dirac(module.conv)
        for conv in (vae.encoder.conv_in, vae.decoder.conv_in):
            noise = conv.weight.clone()
            _dirac(conv)
            conv.weight += 0.3 * noise
            conv.weight[_CONSTANT] = 0
            conv.bias[_CONSTANT] = _LEVEL
        for part, width, out in ((vae.encoder, CHANNELS[-1], 2 * LATENTS), (vae.decoder, CHANNELS[0], 3)):
            norm, conv = part.conv_norm_out, part.conv_out
            mean = _LEVEL / width
            deviation = math.sqrt(_LEVEL**2 / width - mean**2)
            norm.weight.fill_(deviation)
            norm.bias.fill_(mean + _LIFT)
            noise = conv.weight.clone()
            _dirac(conv)
            conv.bias[:] = -_LIFT * torch.sigmoid(torch.tensor(_LIFT)) * conv.weight.sum((1, 2, 3))
            conv.weight += 0.1 * noise
            if out == 2 * LATENTS:  # the log variance is never used: the pipeline takes the mode
                conv.weight[LATENTS:] = 0
                conv.bias[LATENTS:] = -10
        for conv in (vae.quant_conv, vae.post_quant_conv):
            _dirac(conv)
    return vae


def _dirac(conv: nn.Conv2d) -> None:
    """Output channel i copies input channel i; nothing else."""
    assert conv.bias is not None
    conv.weight.zero_()
    middle = conv.kernel_size[0] // 2
    for i in range(min(conv.in_channels, conv.out_channels)):
        conv.weight[i, i, middle, middle] = 1
    conv.bias.zero_()


def to_tensor(pictures: Sequence[Image.Image]) -> Tensor:
    """(B, 3, H, W) in -1..1, as the pipeline's image processor makes it."""
    stacked = np.stack([np.asarray(picture) for picture in pictures])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 127.5 - 1


def _pictures(count: int, size: tuple[int, int], rng: random.Random) -> Tensor:
    scenes: list[Scene] = []
    while len(scenes) < count:
        for drawn in draw_samples(count, rng):
            scenes += [*drawn.references, drawn.target]
    return to_tensor([scene.draw(*size) for scene in scenes[:count]])


def near_edges(images: Tensor) -> Tensor:
    """(B, 1, H, W): 1 within two pixels of where colours change, else 0."""
    reach = nn.MaxPool2d(5, stride=1, padding=2)
    most, least = reach(images), -reach(-images)
    near: Tensor = ((most - least).amax(1, keepdim=True) > 0.25).float()
    return near


def train_vae(path: Path, steps: int, seed: int) -> None:
    """Trains on whole scenes (crops would teach the norms other statistics) and writes the weights to `path`; goes on
    from a checkpoint beside `path` if there is one.

    Raises:
        ValueError: the checkpoint is of another number of steps or seed.
    """
    torch.manual_seed(seed)
    vae = build_vae()
    optimizer = torch.optim.AdamW(vae.parameters(), lr=2e-3, betas=(0.9, 0.99), weight_decay=0.0)
    checkpoint = Checkpoint(
        path.with_suffix(".pt"), {"vae": vae, "optimizer": optimizer}, {"steps": steps, "seed": seed}
    )
    first = checkpoint.restore()
    progress = Progress("vae", steps, first)
    for step in range(first, steps):
        torch.manual_seed(seed * 10_000_000 + step)
        rng = random.Random(f"{seed}-{step}")
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, (step + 1) / 50) * (1 - step / steps) ** 0.7
        size, count = (
            ((64, 64), 24)
            if step % 2
            else rng.choice([*[((128, 128), 8)] * 4, ((96, 96), 12), ((144, 96), 8), ((96, 144), 8), ((192, 192), 4)])
        )
        images = _pictures(count, size, rng)
        latents = vae.encode(images).latent_dist.mode()
        # A little noise makes the decoder forgive what the transformer gets slightly wrong.
        noise = torch.randn_like(latents) * latents.detach().std((0, 2, 3), keepdim=True)
        decoded = vae.decode(latents + 0.05 * noise).sample
        error = (decoded - images).abs()
        # Edges are few of the pixels, and all of a small shape.
        weight = 1 + _EDGES * near_edges(images)
        loss = ((error + error**2) * weight).mean() / weight.mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        progress(step, **{f"error_of_255_at_{size[0]}x{size[1]}": error.mean().item() * 127.5})
        if (step + 1) % _CHECKPOINT_EVERY == 0:
            checkpoint.save(step + 1)
    save(vae, path)
