"""Makes a model's folder smaller, on a CPU and a file at a time: trimmed to what an image needs, and in fp8 or int8.

    python -m imagegen.builder.quantize SOURCE TARGET --precision fp8 [--delete-source]

The result is a diffusers folder that `from_pretrained` opens without the original. A file that was written whole is
not made again, so that an interrupted run goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from imagegen.compat import torchao
from imagegen.errors import ConfigurationError
from imagegen.model import quantization
from imagegen.weights import files as weight_files

if TYPE_CHECKING:
    import torch

Precision = Literal["bf16", "fp8", "int8"]

#: The parts with weights, and what each calls the file of its weights; in this order they are made.
_PARTS = {
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
    "transformer": "diffusion_pytorch_model.safetensors",
}
_COPIED = (".json", ".jinja", ".md", ".txt")
#: diffusers is told which modules it finds as they were; a name stands for all that contain it.
_NOT_CONVERTED = [
    "x_embedder",
    "context_embedder",
    "time_guidance_embed",
    "double_stream_modulation_img",
    "double_stream_modulation_txt",
    "single_stream_modulation",
    "norm_out",
    "proj_out",
]


class Quantizer:
    """One model, from `source` to `target`.

    Args:
        source: a diffusers folder. Its configs and `*.index.json` must be there, its weights not before `add` asks.
        target: the folder that is made, or gone on with.
        precision: of the transformer's blocks. "bf16" trims alone, which changes no image.
        text_encoder: of the text encoder's layers.
        per_tensor: a pattern of fp8 layers' full names that get one scale for a whole tensor instead of one a row.

    Raises:
        ConfigurationError: the source is no diffusers folder, or the target holds something else.
    """

    def __init__(
        self,
        source: Path,
        target: Path,
        precision: Precision,
        text_encoder: Precision = "bf16",
        per_tensor: str | None = None,
    ) -> None:
        self._source, self._target = source, target
        wanted = {"transformer": precision, "text_encoder": text_encoder}
        self._recipes = {p: quantization.recipe(p, how, per_tensor) for p, how in wanted.items() if how != "bf16"}
        try:
            self._indexes = {part: _index(source / part) for part in _PARTS}
            self._layers: int = _read(source / "text_encoder" / "config.json")["num_hidden_layers"]
            configs = {part: self._config(part) for part in _PARTS}
        except (OSError, ValueError, KeyError) as error:
            raise ConfigurationError(f"{source} is no diffusers folder of FLUX.2 [klein] ({error})") from error
        self._copy_small_files()
        for part, config in configs.items():
            path = target / part / "config.json"
            if path.exists() and _read(path) != config:
                raise ConfigurationError(f"{target} holds another model or precision: {part}/config.json differs")
            _write(path, config)

    def shards(self) -> list[str]:
        """The weight files of the source that are needed, as paths relative to it, in the order to make them."""
        return [f"{part}/{file}" for part in _PARTS for file in sorted(self._files(part))]

    def add(self, shard: str) -> None:
        """Writes what is kept of a weight file, unless that is there already. Needs memory for the result of the one
        file and four copies of its largest tensor."""
        result = self._target / shard
        if result.exists():
            return
        part = shard.split("/")[0]
        source, unfinished = self._source / shard, result.with_suffix(".part")
        names = _names(source)
        kept = [name for name in names if weight_files.needed(part, name, self._layers)]
        if part not in self._recipes and len(kept) == len(names):
            shutil.copyfile(source, unfinished)
        else:
            from safetensors.torch import save_file

            tensors, metadata = self._convert(part, source, kept)
            save_file(tensors, unfinished, metadata=metadata)
        os.replace(unfinished, result)

    def finish(self) -> None:
        """Writes the indexes and, last, what makes the folder a model.

        Raises:
            ConfigurationError: a file has not been added.
        """
        missing = [shard for shard in self.shards() if not (self._target / shard).exists()]
        if missing:
            raise ConfigurationError(f"{self._target} lacks {', '.join(missing)}")
        for part, index in self._indexes.items():
            if index is None:
                continue
            files = sorted(self._files(part))
            weight_map = {name: file for file in files for name in _names(self._target / part / file)}
            size = sum((self._target / part / file).stat().st_size for file in files)
            content = {"metadata": {"total_size": size}, "weight_map": weight_map}
            _write(self._target / part / f"{_PARTS[part]}.index.json", content)
        _write(self._target / "model_index.json", _read(self._source / "model_index.json"))

    def _files(self, part: str) -> dict[str, list[str]]:
        """The files of a part and the needed tensors of each; an empty list for a part in one file, which says itself
        what it holds."""
        index = self._indexes[part]
        if index is None:
            return {_PARTS[part]: []}
        files: dict[str, list[str]] = {}
        for name, file in index.items():
            if weight_files.needed(part, name, self._layers):
                files.setdefault(file, []).append(name)
        return files

    def _convert(self, part: str, source: Path, kept: list[str]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        """The tensors that are kept of a file, and torchao's record of those that it quantised.

        The loaders put the records of all files together, and of the lists of names the last one stays: each file has
        that of the whole part.
        """
        recipe = self._recipes.get(part)
        tensors: dict[str, torch.Tensor] = {}
        records: dict[str, str] = {}
        for name in kept:
            tensor = _tensor(source, name)
            config = quantization.layer_config(recipe, name.removesuffix(".weight")) if recipe else None
            if config is not None:
                tensor = quantization.quantize(tensor, config)
            flat, record = torchao.flatten(name, tensor)
            tensors.update(flat)
            records.update(record)
        whole = [name for names in self._files(part).values() for name in names] or kept
        return tensors, {**records, "tensor_names": json.dumps(whole)} if recipe else {"format": "pt"}

    def _config(self, part: str) -> dict[str, Any]:
        """The config of a part as the target has it."""
        config: dict[str, Any] = _read(self._source / part / "config.json")
        if part == "text_encoder":
            # One layer more than is kept, for whoever loads it with transformers alone: the state after the last layer
            # of a model is read through its norm, and the 27th was not the last. The head, never read, takes no room.
            config["num_hidden_layers"] = min(self._layers, weight_files.TEXT_ENCODER_LAYERS + 1)
            if "layer_types" in config:
                config["layer_types"] = config["layer_types"][: config["num_hidden_layers"]]
            config["tie_word_embeddings"] = True
        if (recipe := self._recipes.get(part)) is not None:
            from diffusers import TorchAoConfig

            skipped = _NOT_CONVERTED if part == "transformer" else None
            config["quantization_config"] = TorchAoConfig(recipe, modules_to_not_convert=skipped).to_dict()
        return config

    def _copy_small_files(self) -> None:
        """Copies what is neither a weight, an index, nor one of the configs that are written."""
        written = {"model_index.json", *(f"{part}/config.json" for part in _PARTS)}
        for path in (*self._source.glob("*"), *self._source.glob("*/*")):
            name = path.relative_to(self._source).as_posix()
            if path.suffix in _COPIED and not name.endswith(".index.json") and name not in written and path.is_file():
                (self._target / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, self._target / name)


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _write(path: Path, content: object) -> None:
    """Writes JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(unfinished, path)


def _index(folder: Path) -> dict[str, str] | None:
    """The file of each tensor of a part; None where all are in one."""
    index = next(folder.glob("*.safetensors.index.json"), None)
    return _read(index)["weight_map"] if index else None


def _names(file: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as tensors:
        return list(tensors.keys())


def _tensor(file: Path, name: str) -> torch.Tensor:
    """One tensor, copied: the pages of the file that it was read from are let go with the file."""
    from safetensors import safe_open

    with safe_open(file, framework="pt") as tensors:
        tensor: torch.Tensor = tensors.get_tensor(name)
        return tensor.clone()


def main() -> int:
    """Makes the folder, file by file."""
    parser = argparse.ArgumentParser(prog="python -m imagegen.builder.quantize", description=__doc__)
    parser.add_argument("source", type=Path, help="a diffusers folder")
    parser.add_argument("target", type=Path, help="where the result is written")
    parser.add_argument("--precision", choices=get_args(Precision), default="fp8", help="of the transformer")
    parser.add_argument("--text-encoder", choices=get_args(Precision), default="bf16", help="its precision")
    parser.add_argument("--per-tensor", metavar="PATTERN", help="fp8 layers that get one scale instead of one a row")
    parser.add_argument("--delete-source", action="store_true", help="delete each file of the source once it was used")
    args = parser.parse_args()
    quantizer = Quantizer(args.source, args.target, args.precision, args.text_encoder, args.per_tensor)
    for shard in quantizer.shards():
        quantizer.add(shard)
        print(f"{shard}: {(args.target / shard).stat().st_size / 1e9:.2f} GB", flush=True)
        if args.delete_source:
            (args.source / shard).resolve().unlink(missing_ok=True)  # in a hub's cache it is a link
            (args.source / shard).unlink(missing_ok=True)
    quantizer.finish()
    return 0


if __name__ == "__main__":
    sys.exit(main())
