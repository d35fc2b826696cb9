"""A model's folder with the architecture of its spec, full-size where that is klein's, and random weights: it needs the
memory and the time of the real one, and no download. Its images are noise.

    python -m benchmarks.random_model klein-9b FOLDER [--device cuda]

Modules are made on the meta device and their weights a file of at most 4 GB at a time, so that 35 GB pass through a
machine with little memory. Tokenizer and scheduler are micro's: prompts are padded to the model's length anyway.
"""

from __future__ import annotations

import argparse
import json
import shutil
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:  # started by its path, which makes this folder the place of imports
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from imagegen.errors import ConfigurationError
from imagegen.memory.footprint import part_bytes
from imagegen.memory.plan import gib
from imagegen.models import MICRO_PATH, Architecture, ModelSpec, get_model
from imagegen.weights.files import Stored

if TYPE_CHECKING:
    import torch

#: Bytes of a file.
_SHARD = 4 * 10**9
_NAMES = {
    "transformer": "diffusion_pytorch_model",
    "text_encoder": "model",
    "vae": "diffusion_pytorch_model",
}


def configs(a: Architecture) -> dict[str, dict[str, Any]]:
    """The config.json of each part: micro's, with the model's figures."""
    read = {part: json.loads((MICRO_PATH / part / "config.json").read_text(encoding="utf-8")) for part in _NAMES}
    read["transformer"] |= {
        "attention_head_dim": a.hidden // a.heads,
        "axes_dims_rope": [a.hidden // a.heads // 4] * 4,
        "in_channels": a.channels,
        "joint_attention_dim": 3 * a.text_hidden,
        "num_attention_heads": a.heads,
        "num_layers": a.double_blocks,
        "num_single_layers": a.single_blocks,
        "timestep_guidance_channels": a.timestep_channels,
    }
    read["text_encoder"] |= {
        "head_dim": a.text_head_width,
        "hidden_size": a.text_hidden,
        "intermediate_size": a.text_feed_forward,
        "layer_types": ["full_attention"] * a.text_layers,
        "max_window_layers": a.text_layers,
        "num_attention_heads": a.text_heads,
        "num_hidden_layers": a.text_layers,
        "num_key_value_heads": a.text_kv_heads,
        "tie_word_embeddings": a.tied,
        "vocab_size": a.vocabulary,
        "dtype": "bfloat16",
    }
    if a.vae_width == 128:  # klein's VAE is what diffusers makes of no config at all
        read["vae"] = {name: read["vae"][name] for name in ("_class_name", "_diffusers_version")}
    return read


def prepare(spec: ModelSpec, folder: Path) -> dict[str, Any]:
    """Writes all of a model's folder but its weights and model_index.json; returns its parts on the meta device."""
    import torch
    from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel
    from transformers import Qwen3Config, Qwen3ForCausalLM

    for part in ("tokenizer", "scheduler"):
        shutil.copytree(MICRO_PATH / part, folder / part, dirs_exist_ok=True)
    makers: dict[str, Any] = {
        "transformer": Flux2Transformer2DModel.from_config,
        "text_encoder": lambda config: Qwen3ForCausalLM(Qwen3Config.from_dict(config)),
        "vae": AutoencoderKLFlux2.from_config,
    }
    modules = {}
    for part, config in configs(spec.architecture).items():
        (folder / part).mkdir(parents=True, exist_ok=True)
        (folder / part / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
        with torch.device("meta"):
            modules[part] = makers[part](config)
    return modules


def write_index(spec: ModelSpec, folder: Path) -> None:
    """Writes model_index.json, which makes a folder a model."""
    index = json.loads((MICRO_PATH / "model_index.json").read_text(encoding="utf-8"))
    index |= {"_class_name": spec.pipeline_class, "is_distilled": spec.distilled}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")


def write_outline(spec: ModelSpec, folder: Path) -> Path:
    """Writes the folder with the headers of its weights' files and, in place of the weights, holes that take no disk.
    A reader gets zeros, or random values inside `random_weights`."""
    for part, module in prepare(spec, folder).items():
        for file, weights in split(module, folder / part).items():
            end, head = 0, {}
            for key, tensor in weights.items():
                kind, size = ("BF16", 2) if tensor.is_floating_point() else ("I64", 8)
                begin, end = end, end + tensor.numel() * size
                head[key] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [begin, end]}
            text = json.dumps({"__metadata__": {"format": "pt"}, **head}).encode()
            with (folder / part / file).open("wb") as stream:
                stream.write(struct.pack("<Q", len(text)) + text)  # safetensors' header
                stream.truncate(8 + len(text) + end)
    write_index(spec, folder)
    return folder


@contextmanager
def random_weights(where: str) -> Iterator[None]:
    """While it is open, weights are not read from a model's files: random ones of the same shapes are made on
    `where`, 35 GB in a second on a GPU, and are where they are wanted."""
    import torch

    from imagegen.model import assembly

    def make(stored: Stored, device: str) -> torch.Tensor:
        like = torch.empty(stored.shape, dtype=assembly.DTYPES[stored.dtype], device="meta")
        return _random("", like, where).to(device)

    original, assembly.read_tensor = assembly.read_tensor, make
    try:
        yield
    finally:
        assembly.read_tensor = original


def write_model(spec: ModelSpec, folder: Path, device: str = "cpu") -> Path:
    """Writes the folder, in bf16, unless it is there whole, and returns it.

    Args:
        device: where the random numbers are drawn.

    Raises:
        ConfigurationError: the disk has no room for it.
    """
    from safetensors.torch import save_file

    if (folder / "model_index.json").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    needed, free = part_bytes(spec, "bf16", "bf16", trimmed=False).total, shutil.disk_usage(folder).free
    if needed * 1.01 > free:
        raise ConfigurationError(
            f"random weights of {spec.name} need {gib(needed)} of disk, and {folder} has {gib(free)} free"
        )
    for part, module in prepare(spec, folder).items():
        for file, weights in split(module, folder / part).items():
            drawn = {key: _random(key, tensor, device).cpu() for key, tensor in weights.items()}
            save_file(drawn, folder / part / file, {"format": "pt"})
    write_index(spec, folder)
    return folder


def split(module: Any, folder: Path, most: float | None = None) -> dict[str, dict[str, Any]]:
    """Which of a part's weights go into which file of at most `most` bytes (4 GB); an index where there are several.

    A part's folder is named as the part is.
    """
    tied = set(getattr(module, "_tied_weights_keys", None) or ()) if _is_tied(module) else set()
    weights = [(key, tensor) for key, tensor in module.state_dict().items() if key not in tied]
    shards, name = list(_shards(weights, most or _SHARD)), _NAMES[folder.name]
    files = {
        f"{name}.safetensors" if len(shards) == 1 else f"{name}-{number:05}-of-{len(shards):05}.safetensors": dict(
            shard
        )
        for number, shard in enumerate(shards, 1)
    }
    if len(shards) > 1:
        weight_map = {key: file for file, shard in files.items() for key in shard}
        index = {"metadata": {"total_size": sum(t.numel() * 2 for _, t in weights)}, "weight_map": weight_map}
        (folder / f"{name}.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return files


def _is_tied(module: Any) -> bool:
    return bool(getattr(module.config, "tie_word_embeddings", False))


def _shards(weights: list[tuple[str, Any]], most: float) -> Iterator[list[tuple[str, Any]]]:
    shard: list[tuple[str, Any]] = []
    filled = 0
    for key, tensor in weights:
        size = tensor.numel() * 2
        if shard and filled + size > most:
            yield shard
            shard, filled = [], 0
        shard.append((key, tensor))
        filled += size
    yield shard


def _random(key: str, like: torch.Tensor, device: str) -> torch.Tensor:
    """Values of a trained model's size: norms near one, the rest small, so that nothing overflows on its way."""
    import torch

    if not like.is_floating_point():
        return torch.zeros(like.shape, dtype=like.dtype)
    if like.ndim <= 1:
        value = 0.0 if key.endswith(("bias", "running_mean")) else 1.0
        return torch.full(like.shape, value, dtype=torch.bfloat16)
    return torch.empty(like.shape, dtype=torch.bfloat16, device=device).normal_(0, like[0].numel() ** -0.5)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="klein-9b, klein-4b, micro ...")
    parser.add_argument("folder", type=Path, help="where the model is written")
    parser.add_argument("--device", default="cpu", help="where the random numbers are drawn; a GPU is much faster")
    args = parser.parse_args()
    print(write_model(get_model(args.model), args.folder, args.device))
    return 0


if __name__ == "__main__":
    sys.exit(main())
