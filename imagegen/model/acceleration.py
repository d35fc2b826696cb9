"""What makes a loaded diffusers pipeline faster: compiled blocks and their cache, a kernel for attention by GPU, a VAE
that uses all of it, the small decoder, and the way without a cache of references' keys and values beside the one with.

Each can be switched by itself, so that a benchmark can show what it is worth. None changes more of an image than the
last bits of the arithmetic, the small decoder and the quantised `sage` excepted; what is not available is a warning in
the log, and the image is generated without.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from imagegen.compat import torch as compat
from imagegen.errors import ConfigurationError

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

#: Kernels for attention. Those of diffusers that are fetched from a hub and run are left out on purpose.
Attention = Literal["native", "cudnn", "flash", "flash3", "sage"]
#: Each one's name in diffusers (`AttentionBackendName`), and the package that it needs beside torch.
_BACKENDS: dict[Attention, tuple[str, str | None]] = {
    "native": ("native", None),
    "cudnn": ("_native_cudnn", None),
    "flash": ("flash", "flash_attn"),
    "flash3": ("_flash_3", "flash_attn_interface"),
    "sage": ("sage", "sageattention"),
}


def is_installed(package: str) -> bool:
    """Whether a package can be imported; it is not imported for that."""
    return importlib.util.find_spec(package) is not None


def choose_attention(
    capability: tuple[int, int] | None, installed: Callable[[str], bool] = is_installed
) -> tuple[Attention, str]:
    """The kernel for attention on a GPU, and why.

    Never `sage`: it computes in 8 bits, and the images would be others.

    Args:
        capability: of the GPU, such as (8, 9); None: there is no CUDA GPU.
        installed: tells whether a package is there.
    """
    if capability is None:
        return "native", "there is no CUDA GPU"
    name = f"{capability[0]}.{capability[1]}"
    if capability[0] == 9 and installed("flash_attn_interface"):
        return "flash3", f"compute capability {name} and FlashAttention 3 is installed"
    if capability[0] in (9, 10):
        return "cudnn", f"compute capability {name}: cuDNN has kernels for it, torch's own are made for 8.x"
    return "native", f"compute capability {name}: torch's own FlashAttention 2 is made for it"


def use_attention(pipe: Any, attention: Attention, device: str, capability: tuple[int, int] | None = None) -> None:
    """Lets the transformer use a kernel; where it does not run here, the GPU's best of torch's own, with a warning."""
    second = choose_attention(capability, lambda package: False)[0]
    backend = "native"
    for kernel, otherwise in ((attention, second), (second, "native")):
        backend, package = _BACKENDS[kernel]
        missing = package is not None and not is_installed(package)
        fault = f"{package} is not installed" if missing else _try_attention(backend, device)
        if fault is None:
            break
        log.warning("attention by %s does not run here (%s); %s is used", kernel, fault, otherwise)
        backend = "native"
        if kernel == second:
            break
    # diffusers says at each call that this is experimental, as a warning; its version is pinned here.
    noisy = logging.getLogger("diffusers.models.modeling_utils")
    was, noisy.disabled = noisy.disabled, True
    try:
        pipe.transformer.set_attention_backend(backend)
    finally:
        noisy.disabled = was


def _try_attention(backend: str, device: str) -> str | None:
    """What keeps a kernel from running on a device, None where nothing does; it is run, since a GPU, its driver and a
    package must agree. (B, tokens, heads, klein's 128)."""
    import torch
    from diffusers.models.attention_dispatch import dispatch_attention_fn

    try:
        query = torch.zeros(1, 64, 1, 128, dtype=torch.bfloat16, device=device)
        dispatch_attention_fn(query, query, query, backend=backend).sum().item()
    except Exception as error:  # noqa: BLE001 - each kernel has its own kinds
        return type(error).__name__
    return None


def speed_up_vae(vae: Any, device: str) -> None:
    """Lets the VAE use all of a GPU, and keeps its images as cuDNN's convolutions want them; a CPU's stays as it is."""
    import torch

    if torch.device(device).type != "cuda":
        return

    from imagegen.model.group_norm import spread_group_norms

    spread_group_norms(vae)
    vae.to(memory_format=torch.channels_last)


def compile_blocks(pipe: Any) -> None:
    """Compiles the transformer's blocks when they first run: one graph for all of a kind, for all sizes."""
    # An image of as many tokens as a layer is wide would make them one symbol, and the next size a second graph.
    compat.treat_equal_sizes_as_different()
    pipe.transformer.compile_repeated_blocks(fullgraph=True, dynamic=True)


def can_compile(attention: Attention | None) -> bool:
    """Whether blocks with this kernel for attention are one graph: sage is no operation that the compiler knows."""
    return attention != "sage"


def run_eagerly(pipe: Any) -> None:
    """Takes back `compile_blocks`."""
    compat.forget_compiled(pipe.transformer)


def load_decoder(path: Path, dtype: torch.dtype) -> Any:
    """Loads a VAE with another decoder (FLUX.2-small-decoder: 28 M parameters for 50 M, 1.4 times as fast and the same
    encoder), of a folder with `config.json` and `diffusion_pytorch_model.safetensors`.

    Raises:
        ConfigurationError: there is none, or it lacks weights; diffusers would use random ones.
    """
    from diffusers import AutoencoderKLFlux2

    try:
        vae, report = AutoencoderKLFlux2.from_pretrained(
            path, dtype=dtype, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except Exception as error:  # diffusers and safetensors raise many kinds for a broken folder
        raise ConfigurationError(f"IMAGEGEN_DECODER: {path} holds no VAE ({type(error).__name__})") from error
    if missing := report["missing_keys"]:
        raise ConfigurationError(f"IMAGEGEN_DECODER: {path} lacks {len(missing)} weights, {sorted(missing)[0]} first")
    return vae


def plain_pipeline(pipe: Any) -> Any:
    """The pipeline that knows no cache of keys and values, of the same parts; mostly `pipe` itself.

    klein-9b-kv's processors of attention do what the others do where nothing is cached.
    """
    from diffusers import Flux2KleinKVPipeline, Flux2KleinPipeline

    from imagegen.model.prepared import prepared_class

    if not isinstance(pipe, Flux2KleinKVPipeline):
        return pipe
    plain = prepared_class(Flux2KleinPipeline)(**pipe.components, is_distilled=True)
    plain.fetched = pipe.fetched
    return plain
