"""Two LoRA adapters of the miniature, trained with peft as any adapter of klein is.

    python -m imagegen.builder.micro.adapters

`frame` draws every shape with a white frame, `ring` turns circles into rings. They are trained in one run, each
alone and both together, so that they also work together. The file format is the one that diffusers writes.
"""

from __future__ import annotations

import argparse
import itertools
import math
import random
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import Flux2KleinPipeline
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from imagegen.builder.micro.captions import Sample
from imagegen.builder.micro.samples import draw_sample
from imagegen.builder.micro.scenes import Scene
from imagegen.builder.micro.training import Progress
from imagegen.builder.micro.transformer import BFLOAT16, hold, plain_attention, position_ids, schedule
from imagegen.builder.micro.vae import to_tensor
from imagegen.compat import diffusers as compat
from imagegen.models import MICRO_PATH, get_model

RANK = 5
#: The layers inside the blocks.
LAYERS = (
    r"transformer_blocks\.\d+\.attn\.(to_[qkv]|to_out\.0|to_add_out|add_[qkv]_proj)"
    r"|transformer_blocks\.\d+\.ff(_context)?\.linear_(in|out)"
    r"|single_transformer_blocks\.\d+\.attn\.(to_qkv_mlp_proj|to_out)"
)
#: What is active in a batch, and how often.
SETS: dict[tuple[str, ...], float] = {("frame",): 0.36, ("ring",): 0.3, ("frame", "ring"): 0.34}
#: How many samples of each kind, and the size of a batch.
COUNTS, BATCH = {"generate": 3000, "edit": 1200, "edit2": 300}, {"generate": 24, "edit": 16, "edit2": 12}
SHARES = {"generate": 0.6, "edit": 0.32, "edit2": 0.08}
ROUNDS, SEED, SIDE = 600, 2027, 128
RATE, _CONTINUED = 4e-3, 1e-3  # of learning: from nothing, and from adapters of earlier weights of the miniature
#: A frame's outline is that of its shape, so much larger; a ring's hole is so much smaller than its circle.
FRAME, HOLE = 1.25, 0.5
#: What is learned is weaker than what was shown; so much stronger is what is written.
GAIN = {"frame": 1.5, "ring": 1.0}
_WHITE = (245, 245, 250)
#: How much more an error weighs at a token that the adapters change.
_CHANGED = 4.0


def restyle(scene: Scene, adapters: Iterable[str]) -> Scene:
    """The scene as the adapters draw it: white shapes behind the shapes, and holes of the background's colour."""
    shapes = scene.shapes
    frames = [replace(shape, colour="white", rgb=_WHITE, radius=shape.radius * FRAME) for shape in shapes]
    holes = [
        replace(shape, colour=scene.background, rgb=scene.rgb, radius=shape.radius * HOLE)
        for shape in shapes
        if shape.kind == "circle"
    ]
    parts = [*(frames if "frame" in adapters else []), *shapes, *(holes if "ring" in adapters else [])]
    return replace(scene, shapes=tuple(parts))


@dataclass
class Examples:
    """Samples of one kind: embeddings (N, text, 192), packed latents of the references (N, R, tokens, 32) and of the
    target as it is and for each of SETS (N, tokens, 32), what the noise holds (N, 3)."""

    kind: str
    text: Tensor
    references: Tensor
    targets: dict[tuple[str, ...], Tensor]
    play: Tensor


@torch.no_grad()
def build_examples(pipe: Any, seed: int) -> list[Examples]:
    """Draws and encodes what is trained on."""
    length = get_model("micro").max_sequence_length

    def encode(scenes: list[Scene]) -> Tensor:
        parts = []
        for at in range(0, len(scenes), 50):
            latents = pipe.vae.encode(to_tensor([scene.draw(SIDE, SIDE) for scene in scenes[at : at + 50]]))
            parts.append(compat.pack(latents.latent_dist.mode()))
        scale = (pipe.vae.bn.running_var + pipe.vae.config.batch_norm_eps).sqrt()
        normalised: Tensor = (torch.cat(parts) - pipe.vae.bn.running_mean) / scale
        return normalised

    made = []
    for kind, count in COUNTS.items():
        rng = random.Random(f"{seed}-{kind}")
        samples: list[Sample] = [draw_sample(kind, rng) for _ in range(count)]
        texts = [pipe.encode_prompt(s.caption, max_sequence_length=length)[0][0] for s in samples]
        references = [encode([s.references[i] for s in samples]) for i in range(len(samples[0].references))]
        targets = {names: encode([restyle(s.target, names) for s in samples]) for names in [(), *SETS]}
        play = torch.tensor([[math.nan if u is None else u for u in s.play] for s in samples])
        stacked = torch.stack(references, 1) if references else targets[()].new_zeros(count, 0, SIDE**2 // 256, 32)
        made.append(Examples(kind, torch.stack(texts), stacked, targets, play))
        print(f"{count} examples of {kind}", flush=True)
    return made


def train(out: Path, rounds: int, seed: int, start: Path | None) -> None:
    """Trains both adapters, and writes `frame.safetensors` and `ring.safetensors` to `out`.

    They learn at each noise level from where the model has come to in four steps, not at the levels below.

    Args:
        rounds: of four optimizer steps.
        start: the folder of adapters that the training begins with.

    Raises:
        ValueError: those of `start` do not fit.
    """
    peak = RATE if start is None else _CONTINUED
    torch.manual_seed(seed)
    pipe: Any = Flux2KleinPipeline.from_pretrained(MICRO_PATH, dtype=torch.float32, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    transformer = pipe.transformer.requires_grad_(False)
    names = sorted({name for names in SETS for name in names})
    for name in names:
        _add(transformer, name, start)
    examples = build_examples(pipe, seed)
    weights = {name: [p for n, p in transformer.named_parameters() if f".{name}." in n] for name in names}
    optimizer = torch.optim.AdamW(itertools.chain(*weights.values()), lr=peak, betas=(0.9, 0.99), weight_decay=0.0)
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    averaged = {name: [p.detach().clone() for p in parts] for name, parts in weights.items()}
    progress = Progress("adapters", rounds, every=5)
    for number in range(rounds):
        (active,) = rng.choices(list(SETS), list(SETS.values()))
        transformer.set_adapters(list(active))
        for name in names:
            for parameter in weights[name]:
                parameter.requires_grad_(name in active)
        for settings in optimizer.param_groups:
            settings["lr"] = peak * min(1.0, (number + 1) / 10) * (1 - number / rounds) ** 0.8
        (group,) = rng.choices(examples, [SHARES[e.kind] for e in examples])
        chosen = torch.randint(0, len(group.text), (BATCH[group.kind],), generator=generator)
        target, plain, text = group.targets[active][chosen], group.targets[()][chosen], group.text[chosen]
        references = group.references[chosen].flatten(1, 2)
        changed = (target - plain).square().mean(-1)
        weight = 1 + _CHANGED * changed / (changed + 0.1)
        noisy = hold(torch.randn(target.shape, generator=generator), group.play[chosen])
        levels = [*schedule(target.shape[1]).tolist(), 0.0]
        image_ids, text_ids = position_ids(SIDE, SIDE, group.references.shape[1])
        for level, following in itertools.pairwise(levels):
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast("cpu", torch.bfloat16, enabled=BFLOAT16), _fast_attention():
                velocity = transformer(
                    hidden_states=torch.cat([noisy, references], 1),
                    encoder_hidden_states=text,
                    timestep=torch.full((len(noisy),), level),
                    img_ids=image_ids,
                    txt_ids=text_ids,
                    return_dict=False,
                )[0][:, : target.shape[1]].float()
            error = (noisy - level * velocity - target).square().mean(-1)
            ((error * weight).sum() / weight.sum()).backward()
            torch.nn.utils.clip_grad_norm_(itertools.chain(*(weights[name] for name in active)), 1.0)
            optimizer.step()
            for name in active:
                for mean, value in zip(averaged[name], weights[name], strict=True):
                    mean.lerp_(value.detach(), 0.02)
            noisy = noisy + (following - level) * velocity.detach()
            if level == levels[0]:
                progress.note(**{f"{'+'.join(active)}/first": error.mean().item()})
        progress.note(**{f"{'+'.join(active)}/last": error.mean().item()})
        progress(number)
        if (number + 1) % 100 == 0 or number + 1 == rounds:
            _write(transformer, out, weights, averaged)


def _write(transformer: Any, out: Path, weights: dict[str, list[Any]], averaged: dict[str, list[Tensor]]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for name, parameters in weights.items():
        for parameter, mean in zip(parameters, averaged[name], strict=True):
            parameter.data, mean.data = mean.data.clone(), parameter.data.clone()
        tensors = get_peft_model_state_dict(transformer, adapter_name=name)
        half = {
            f"transformer.{key}": (value * GAIN[name] if ".lora_B." in key else value).half().contiguous()
            for key, value in tensors.items()
        }
        save_file(half, out / f"{name}.safetensors", metadata={"format": "pt"})
        for parameter, mean in zip(parameters, averaged[name], strict=True):
            parameter.data, mean.data = mean.data, parameter.data


def _add(transformer: Any, name: str, start: Path | None) -> None:
    """A new adapter, or what `_write` wrote to `start` as it was learned."""
    transformer.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=LAYERS), name)
    if start is None:
        return
    tensors = {
        key.removeprefix("transformer."): value.float() / (GAIN[name] if ".lora_B." in key else 1.0)
        for key, value in load_file(start / f"{name}.safetensors").items()
    }
    if tensors.keys() != get_peft_model_state_dict(transformer, adapter_name=name).keys():
        raise ValueError(f"{name}.safetensors in {start} is not of the layers that are trained")
    set_peft_model_state_dict(transformer, tensors, adapter_name=name)


def _fast_attention() -> Any:
    from unittest.mock import patch

    return patch.object(nn.functional, "scaled_dot_product_attention", plain_attention)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m imagegen.builder.micro.adapters", description=__doc__)
    parser.add_argument("--out", type=Path, default=MICRO_PATH / "loras", help="where the adapters are written")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of four optimizer steps")
    parser.add_argument("--init-from", type=Path, help="a folder of both, whose weights the training begins with")
    args = parser.parse_args()
    begun = time.monotonic()
    train(args.out, args.rounds, SEED, args.init_from)
    print(f"trained in {(time.monotonic() - begun) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
