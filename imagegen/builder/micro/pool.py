"""The training pool: every image's latents and every caption's embeddings, computed once.

Computing embeddings in the loop is what makes a naive trainer ten times slower.
"""

from __future__ import annotations

import io
import itertools
import math
import multiprocessing
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLFlux2
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from imagegen.builder.micro.samples import draw_sample
from imagegen.builder.micro.scenes import SHAPES, Scene
from imagegen.builder.micro.text_encoder import build_text_encoder, embed, tokenize
from imagegen.builder.micro.tokenizer import build_tokenizer
from imagegen.builder.micro.training import load
from imagegen.builder.micro.vae import build_vae, to_tensor
from imagegen.compat import diffusers as compat

#: (kind of sample, width, height): how many. Mostly the size that the model is asked for, enough of others to cope.
COUNTS: dict[tuple[str, int, int], int] = {
    ("generate", 128, 128): 5000,
    ("edit", 128, 128): 14000,
    ("edit2", 128, 128): 5000,
    ("combine", 128, 128): 1500,
    ("combine3", 128, 128): 2500,
    ("combine4", 128, 128): 2500,
    **{("generate", w, h): 500 for w, h in ((96, 96), (160, 160), (144, 96), (96, 144), (192, 128), (128, 192))},
    **{("generate", w, h): 1500 for w, h in ((192, 192), (256, 256))},
    **{("edit", w, h): 500 for w, h in ((96, 96), (144, 96), (96, 144), (192, 128), (128, 192), (192, 192))},
}
#: A token is 16 pixels wide and high; its outline is told in cells of 2 by 2.
_CELL, _ACROSS = 2, 8
CELLS = _ACROSS * _ACROSS
_PIECE = 500  # samples that one process draws and encodes at a time
#: References as other hands make them: with hard edges, and as JPEG of such a quality.
_HARD_EDGES, _JPEG, _QUALITY = 0.15, 0.2, (40, 90)


@dataclass
class Group:
    """Samples of one kind and size. `captions` (N,) indexes the embeddings; `target` (N, tokens, 32) and `references`
    (N, R, tokens, 32) hold packed, normalised latents; `play` (N, 3) what the noise must hold, NaN where it is free;
    `kinds` (N, 1 + R, tokens) which shape is at each token of the target and the references (see _kinds), `outlines`
    (N, 1 + R, tokens, CELLS) which cells of each token a shape covers (see _outlines)."""

    kind: str
    width: int
    height: int
    captions: Tensor
    target: Tensor
    references: Tensor
    play: Tensor
    kinds: Tensor
    outlines: Tensor


@dataclass
class Pool:
    """All groups, the embeddings (captions, MAX_TOKENS, 192), and the VAE's statistics (32,) each."""

    groups: list[Group]
    embeddings: Tensor
    mean: Tensor
    var: Tensor


@torch.no_grad()
def build_pool(work: Path, seed: int) -> None:
    """Writes `pool.pt` from the trained text encoder and VAE in `work`."""
    tokenizer = build_tokenizer()
    encoder = build_text_encoder(tokenizer)
    load(encoder, work / "text_encoder.safetensors")
    encoder.half().float().eval()  # as delivered, see _open_vae

    numbers: dict[str, int] = {}
    groups = []
    pieces = [
        (*which, at, min(_PIECE, count - at)) for which, count in COUNTS.items() for at in range(0, count, _PIECE)
    ]
    with multiprocessing.get_context("spawn").Pool(initializer=_open_vae, initargs=(work,)) as workers:
        drawn = workers.imap(partial(_draw, seed=seed), pieces)
        for (kind, width, height), count in COUNTS.items():
            asked, *tensors = zip(*itertools.islice(drawn, -(-count // _PIECE)), strict=True)
            indices = torch.tensor([numbers.setdefault(text, len(numbers)) for text in itertools.chain(*asked)])
            arrays = (torch.from_numpy(np.concatenate(parts)) for parts in tensors)
            groups.append(Group(kind, width, height, indices, *arrays))
            print(f"pool: {count} of {kind} at {width}x{height}", flush=True)

    seen = groups[0].target.flatten(0, 1)
    mean, var = seen.mean(0), seen.var(0)
    scale = (var + build_vae().config.batch_norm_eps).sqrt()
    for group in groups:
        group.target.sub_(mean).div_(scale)
        group.references.sub_(mean).div_(scale)

    texts, parts = list(numbers), []
    for begin in range(0, len(texts), 256):
        parts.append(embed(encoder, *tokenize(tokenizer, texts[begin : begin + 256])).half())
    print(f"pool: {len(texts)} different captions", flush=True)
    torch.save(Pool(groups, torch.cat(parts), mean, var), work / "pool.pt")


_vae: list[AutoencoderKLFlux2] = []  # of a process that draws


def _open_vae(work: Path) -> None:
    """Begins a process that draws."""
    torch.set_num_threads(1)
    vae = build_vae()
    load(vae, work / "vae.safetensors")
    # Weights are delivered in half precision: what the transformer learns from has been rounded likewise.
    _vae.append(vae.half().float().eval())


@torch.no_grad()
def _draw(
    piece: tuple[str, int, int, int, int], seed: int
) -> tuple[list[str], *tuple[NDArray[np.float32], ...], NDArray[np.int64], NDArray[np.bool_]]:
    """Captions, `target`, `references`, `play`, `kinds` and `outlines` (see Group, not yet normalised) of a piece
    (kind, width, height, where it begins, how many), in a process with one thread. Arrays, since tensors would go
    through shared memory."""
    vae = _vae[0]
    kind, width, height, at, count = piece
    rng = random.Random(f"{seed}-{kind}-{width}x{height}-{at}")
    samples = [draw_sample(kind, rng) for _ in range(count)]
    play = np.array([[math.nan if u is None else u for u in s.play] for s in samples], dtype=np.float32)
    scenes = [(s.target, *s.references) for s in samples]
    kinds = np.array([[_kinds(scene, width, height) for scene in several] for several in scenes])
    outlines = np.array([[_outlines(scene, width, height) for scene in several] for several in scenes])
    target = _latents(vae, (s.target.draw(width, height) for s in samples))
    references = [
        _latents(vae, (as_found(s.references[i], width, height, rng) for s in samples))
        for i in range(len(samples[0].references))
    ]
    stacked = torch.stack(references, 1) if references else target.new_zeros(count, 0, *target.shape[1:])
    return [s.caption for s in samples], target.numpy(), stacked.numpy(), play, kinds, outlines


def _kinds(scene: Scene, width: int, height: int) -> NDArray[np.int64]:
    """What is at each token (tokens,): 0 nothing, else 1 + the index in SHAPES of the last shape whose circumscribed
    circle covers the token's middle."""
    rows, columns = np.indices((height // 16, width // 16)).reshape(2, -1) * 16 + 8
    kinds = np.zeros(rows.shape, dtype=np.int64)
    for shape in scene.shapes:
        distance = np.hypot(columns - shape.x * width, rows - shape.y * height)
        kinds[distance < shape.radius * min(width, height)] = 1 + SHAPES.index(shape.kind)
    return kinds


def _outlines(scene: Scene, width: int, height: int) -> NDArray[np.bool_]:
    """Which cells of each token (tokens, CELLS) the shapes cover by half or more, whatever their colours."""
    shapes = tuple(replace(shape, rgb=(255, 255, 255)) for shape in scene.shapes)
    drawn = Scene("black", (0, 0, 0), shapes).draw(width // _CELL, height // _CELL).getchannel(0)
    cells = np.asarray(drawn).reshape(height // 16, _ACROSS, width // 16, _ACROSS).transpose(0, 2, 1, 3)
    covered: NDArray[np.bool_] = cells.reshape(-1, CELLS) >= 128
    return covered


def as_found(scene: Scene, width: int, height: int, rng: random.Random) -> Image.Image:
    """The scene as a reference: smooth, or with hard edges, or from a JPEG, as someone else would have made it."""
    picture = scene.draw(width, height, supersampling=1) if rng.random() < _HARD_EDGES else scene.draw(width, height)
    if rng.random() < _JPEG:
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=rng.randint(*_QUALITY))
        picture = Image.open(file).convert("RGB")
    return picture


def _latents(vae: AutoencoderKLFlux2, pictures: Iterator[Image.Image]) -> Tensor:
    """Packed latents (N, tokens, 32), not yet normalised."""
    parts = []
    while batch := list(itertools.islice(pictures, 64)):
        modes = vae.encode(to_tensor(batch)).latent_dist.mode()
        parts.append(compat.pack(modes))
    return torch.cat(parts)
