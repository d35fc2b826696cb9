"""Compiled code that outlives the process: one file for each torch, Triton, diffusers, GPU and model, in a folder that
an image or a volume carries. A file is code and is trusted like the image: only the folder of the settings is looked
into, and nothing is downloaded into it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from imagegen.compat import diffusers as compat
from imagegen.models import ModelSpec
from imagegen.weights.files import write_whole

log = logging.getLogger(__name__)

_SUFFIX = ".compiled"


class CompileCache:
    """The compiled code of one pipeline on this machine.

    Args:
        folder: where the files lie; made where it is missing.
        key: what compiled code depends on, by name (`compile_key`).
    """

    def __init__(self, folder: Path, key: dict[str, str]) -> None:
        self._key = key
        name = "_".join(re.sub(r"[^\w.+-]+", "-", value) for value in key.values())
        self.file = folder / f"{name}{_SUFFIX}"

    def load(self) -> bool:
        """Hands torch the compiled code of the file; says so, once, where there is none that is of use."""
        import torch

        try:
            content = self.file.read_bytes()
        except FileNotFoundError:
            others = len(list(self.file.parent.glob(f"*{_SUFFIX}")))
            if others:
                log.warning("none of the %d compile caches of %s is for %s", others, self.file.parent, self.file.stem)
            return False
        except OSError as error:
            log.warning("the compile cache %s cannot be read (%s)", self.file, type(error).__name__)
            return False
        head, _, artifacts = content.partition(b"\n")
        if head != self._head(artifacts) or torch.compiler.load_cache_artifacts(artifacts) is None:
            log.warning("the compile cache %s is broken or for another machine; it is ignored", self.file)
            return False
        return True

    def save(self) -> None:
        """Writes what this process compiled, whole or not at all; a folder that cannot be written to is a warning."""
        import torch

        if (saved := torch.compiler.save_cache_artifacts()) is None:
            log.warning("nothing was compiled: no compile cache is written")
            return
        content = self._head(saved[0]) + b"\n" + saved[0]
        try:
            write_whole(content, self.file)
        except OSError as error:
            log.warning("the compile cache %s cannot be written (%s)", self.file, type(error).__name__)
            return
        log.info("the compile cache %s is written, %.1f MB", self.file, len(content) / 1e6)

    def _head(self, artifacts: bytes) -> bytes:
        return json.dumps({**self._key, "sha256": hashlib.sha256(artifacts).hexdigest()}).encode()


def compile_key(pipe: Any, spec: ModelSpec, lora_rank: int = 0) -> dict[str, str]:
    """What the compiled code of a pipeline depends on: versions, GPU, model, the kind of its weights, attention, and
    the rank of the buffers for LoRA adapters, with which each block has two graphs."""
    import diffusers
    import torch

    device = compat.execution_device(pipe)
    block = pipe.transformer.transformer_blocks[0]
    weight = block.attn.to_q.weight
    if device.type == "cuda":
        gpu = torch.cuda.get_device_name(device)
    else:
        gpu = f"{platform.machine()}-{torch.backends.cpu.get_cpu_capability()}"
    return {
        "torch": torch.__version__,
        "triton": f"triton{_version('triton')}",
        "diffusers": f"diffusers{diffusers.__version__}",
        "gpu": gpu,
        "model": spec.name,
        "weights": f"{type(weight.data).__name__}-{str(weight.dtype).removeprefix('torch.')}",
        "attention": compat.attention_backend(pipe.transformer),
        "loras": f"loras-to-rank-{lora_rank}" if lora_rank else "no-loras",
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "-none"
