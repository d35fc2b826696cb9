"""Checks what a worker needs on this machine, and says of each fault what to do about it. Loads no model.

The exit status is 1 where something is wrong. Checked are settings, driver and GPU, whether the model fits, weights,
disk and token, the port, and the object store.
"""

from __future__ import annotations

import argparse
import platform
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from imagegen import __version__, logs
from imagegen.cli import CommandError
from imagegen.cli.jobs import user_settings
from imagegen.cli.serve import listen
from imagegen.errors import ConfigurationError
from imagegen.settings import Settings

if TYPE_CHECKING:
    from imagegen.models import ModelSpec

#: Yields what is right; raises ConfigurationError or CommandError for what is wrong.
_Check = Callable[[Settings, "ModelSpec | None"], Iterator[str]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--model", help="the model that is to run; default: IMAGEGEN_MODEL, else by the GPU")


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit status."""
    faults = 0
    print(f"ok     imagegen {__version__}, Python {platform.python_version()}, {platform.platform(terse=True)}")
    try:
        settings = user_settings(args.model)
    except ConfigurationError as error:
        print(f"WRONG  settings: {error}")
        return 1
    logs.configure(settings.model_copy(update={"log_level": "ERROR"}))
    print("ok     settings: each variable is known and holds what it may")
    spec = None
    with suppress(ConfigurationError):  # the GPU's line says why
        spec = _choose(settings)
    for name, check in CHECKS.items():
        try:
            for line in check(settings, spec):
                print(f"ok     {name}: {line}")
        except (ConfigurationError, CommandError) as error:
            print(f"WRONG  {name}: {error}")
            faults += 1
    return int(faults > 0)


def _choose(settings: Settings) -> ModelSpec:
    from imagegen.model.loading import choose_model

    return choose_model(settings)


def _gpu(settings: Settings, spec: ModelSpec | None) -> Iterator[str]:
    import torch

    from imagegen.memory.plan import gib, read_gpu
    from imagegen.model import driver

    yield f"torch {torch.__version__}"
    if not torch.cuda.is_available():
        fault = driver.find_fault(torch.version.cuda) or "torch finds no GPU"
        if spec is None:
            _choose(settings)
        yield f"none ({fault}); {spec.name if spec else 'the model'} runs on the CPU"
        return
    gpu = read_gpu(settings.device or "cuda")
    free = gib(gpu.bytes) if gpu else "0 GiB"
    major, minor = torch.cuda.get_device_capability()
    yield f"{torch.cuda.get_device_name()}, compute capability {major}.{minor}, {free} available"


def _memory(settings: Settings, spec: ModelSpec | None) -> Iterator[str]:
    from imagegen.memory.plan import read_gpu
    from imagegen.model import loading
    from imagegen.model.acceleration import is_installed
    from imagegen.weights.sources import find_weights

    if spec is not None:
        gpu = read_gpu(settings.device or loading.default_device())
        yield str(loading.plan(spec, settings, find_weights(spec, settings), gpu, is_installed("bitsandbytes")))


def _weights(settings: Settings, spec: ModelSpec | None) -> Iterator[str]:
    from imagegen.memory.footprint import part_bytes
    from imagegen.weights.sources import find_weights

    if spec is None:
        return
    path = find_weights(spec, settings)
    if path is not None:
        yield f"{spec.name} is at {path}"
        return
    needed = part_bytes(spec, "bf16", "bf16", trimmed=False).total  # as published
    cache = settings.hf_home.expanduser()
    free = shutil.disk_usage(next(folder for folder in (cache, *cache.parents) if folder.exists())).free
    if free < needed:
        raise CommandError(
            f"{spec.name} must be downloaded, about {needed / 1e9:.0f} GB, and the disk of HF_HOME ({cache}) has "
            f"{free / 1e9:.0f} GB free; make room, or set HF_HOME to a larger disk"
        )
    if spec.gated and settings.hugging_face_token is None:
        raise CommandError(
            f"{spec.name} must be downloaded and is gated: accept its licence ({spec.licence}) at {spec.page}, then "
            "set HUGGING_FACE_TOKEN to a token of your account"
        )
    yield f"{spec.name} is downloaded at the first start, about {needed / 1e9:.0f} GB; {_hub(settings, spec)}"


def _hub(settings: Settings, spec: ModelSpec) -> str:
    """Asks the hub whether the token may read the model.

    Raises:
        ConfigurationError: it may not, or the hub does not answer.
    """
    from imagegen.builder.hub import Hub

    token = settings.hugging_face_token
    hub = Hub.open(spec, token.get_secret_value() if token else None, spec.revision)
    return f"the hub lets this machine read {hub.repository}"


def _port(settings: Settings, spec: ModelSpec | None) -> Iterator[str]:
    if settings.serves_queue:
        yield "none is needed: this is a worker of RunPod's queue"
        return
    for port in settings.ports:
        listen(settings.listen_host, port).close()
        yield f"{port} of {settings.listen_host} is free"


def _outputs(settings: Settings, spec: ModelSpec | None) -> Iterator[str]:
    from imagegen.outputs.object_store import ObjectStore
    from imagegen.outputs.signing import load_signer

    store = ObjectStore.from_settings(settings)
    yield "an object store is configured" if store else 'no object store: `delivery: "url"` is refused'
    yield "images are signed (C2PA)" if load_signer(settings) else "images are not signed (C2PA)"
    folder = Path(settings.output_dir)
    existing = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    if not existing.is_dir():
        raise CommandError(f"IMAGEGEN_OUTPUT_DIR: {existing} is a file; set it to a folder")


CHECKS: dict[str, _Check] = {
    "GPU": _gpu,
    "memory": _memory,
    "weights": _weights,
    "port": _port,
    "outputs": _outputs,
}
