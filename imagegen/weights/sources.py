"""Where the weights of a model are: on this machine, or on the hub, from which they are downloaded."""

from __future__ import annotations

import json
import logging
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from imagegen.errors import ConfigurationError, Unavailable
from imagegen.models import MICRO_PATH, ModelSpec
from imagegen.settings import Settings
from imagegen.weights import manifest
from imagegen.weights.files import header

log = logging.getLogger(__name__)

#: A VAE with the encoder of FLUX.2's own and a smaller decoder, 28 M parameters for 50 M; Apache-2.0, not gated.
SMALL_DECODER = "black-forest-labs/FLUX.2-small-decoder"
#: What of it is read: it holds the same weights in other layouts too.
_DECODER_FILES = ("config.json", "diffusion_pytorch_model.safetensors")
_RUNPOD_VOLUME = Path("/runpod-volume")
_ROOT = Path("/")
#: The endings of what is read of a model: data, and nothing that could hold code.
DATA_ENDINGS = (".json", ".safetensors", ".txt", ".jinja")
#: The parts of a pipeline that have weights.
_WEIGHTED = ("transformer", "text_encoder", "vae")


def find_weights(spec: ModelSpec, settings: Settings, volume: Path = _RUNPOD_VOLUME) -> Path | None:
    """The folder with the model's weights on this machine, None if they must be downloaded; the log says which.

    Looked for in this order: IMAGEGEN_MODEL_PATH, the repository itself (micro), the cache of HF_HOME (where the image
    bakes them), RunPod's cached models, a cache on RunPod's volume.

    Raises:
        ConfigurationError: IMAGEGEN_MODEL_PATH, or the repository, holds no whole diffusers model.
    """
    if settings.model_path is not None:
        return _model_folder(settings.model_path, "IMAGEGEN_MODEL_PATH", spec)
    if spec.repository is None:
        return _model_folder(MICRO_PATH, "the embedded model", spec)

    def fault_of(folder: Path) -> str | None:
        return manifest.find_fault(folder, spec.name) or find_fault(folder)

    return find_in_caches(spec.repository, spec.revision, settings, fault_of, volume)


def find_decoder(settings: Settings, volume: Path = _RUNPOD_VOLUME) -> Path | None:
    """The folder with the VAE that IMAGEGEN_DECODER names: itself, or for "small" the one where FLUX.2-small-decoder
    lies on this machine, looked for in the caches of `find_weights`; None if it must be downloaded.

    Raises:
        ConfigurationError: the folder that is named holds no whole VAE.
    """
    if settings.decoder == "small":
        return find_in_caches(SMALL_DECODER, None, settings, _find_decoder_fault, volume)
    folder = Path(settings.decoder or "")
    if (fault := _find_decoder_fault(folder)) is not None:
        raise ConfigurationError(f"IMAGEGEN_DECODER: it is 'small' or a folder with a diffusers VAE: {fault}")
    return folder


def find_in_caches(
    repository: str,
    revision: str | None,
    settings: Settings,
    fault_of: Callable[[Path], str | None],
    volume: Path = _RUNPOD_VOLUME,
) -> Path | None:
    """A repository's folder at a commit, or its main branch, in the caches of this machine; None where it is in none.

    Args:
        fault_of: what is wrong with a folder, None where nothing is; such a one is passed over.
    """
    caches = {
        "the cache of HF_HOME": settings.hf_home.expanduser() / "hub",
        "RunPod's cached models": volume / "huggingface-cache" / "hub",
        "the volume's hub": volume / "hub",
        "the volume": volume,
    }
    for name, cache in caches.items():
        snapshot = _snapshot(cache, repository, revision)
        if snapshot is None:
            continue
        if (fault := fault_of(snapshot)) is not None:
            log.warning("the weights in %s are passed over: %s", name, fault)
            continue
        log.info("the weights come from %s: %s", name, snapshot)
        return snapshot
    return None


def _model_folder(path: Path, name: str, spec: ModelSpec) -> Path:
    if (fault := manifest.find_fault(path, spec.name) or find_fault(path)) is not None:
        raise ConfigurationError(f"{name}: the folder holds no whole diffusers model: {fault}")
    log.info("the weights come from %s: %s", name, path)
    return path


def cache_folder(cache: Path, repository: str) -> Path:
    """A repository's folder in a Hugging Face cache."""
    return cache / f"models--{repository.replace('/', '--')}"


def _snapshot(cache: Path, repository: str, revision: str | None) -> Path | None:
    """The snapshot of a repository in a Hugging Face cache: the pinned commit, else what `refs/main` names.

    Read by hand rather than with huggingface_hub: RunPod writes the same layout, and a read-only disk must do.
    """
    folder = cache_folder(cache, repository)
    try:
        commit = revision or (folder / "refs" / "main").read_text().strip()
    except OSError:
        return None
    snapshot = folder / "snapshots" / commit
    return snapshot if snapshot.is_dir() else None


def find_fault(folder: Path) -> str | None:
    """What keeps a folder from being a whole diffusers model, None where nothing does: an interrupted download leaves
    one that names what it does not hold, or files that are shorter than their own headers say."""
    try:
        parts = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
        for name, kind in parts.items():
            if not isinstance(kind, list) or kind[0] is None:
                continue
            files = set((folder / name).glob("*.safetensors"))
            for index in (folder / name).glob("*.safetensors.index.json"):
                files |= {folder / name / shard for shard in json.loads(index.read_text())["weight_map"].values()}
            if not (folder / name).is_dir() or (name in _WEIGHTED and not files):
                return f"{name} is missing"
            for file in sorted(files):
                if not file.is_file():
                    return f"{name}/{file.name} is missing"
                if (size := file.stat().st_size) != (expected := _expected_size(file)):
                    return f"{name}/{file.name} has {size} bytes of {expected}"
    except (OSError, ValueError, KeyError, AttributeError, TypeError, struct.error) as error:
        return f"model_index.json or what it names cannot be read ({type(error).__name__})"
    return None


def _find_decoder_fault(folder: Path) -> str | None:
    """What keeps a folder from being a whole diffusers VAE, None where nothing does."""
    try:
        json.loads((folder / _DECODER_FILES[0]).read_text(encoding="utf-8"))
        file = folder / _DECODER_FILES[1]
        if (size := file.stat().st_size) != (expected := _expected_size(file)):
            return f"{file.name} has {size} bytes of {expected}"
    except (OSError, ValueError, KeyError, AttributeError, TypeError, struct.error) as error:
        return f"{' or '.join(_DECODER_FILES)} cannot be read ({type(error).__name__})"
    return None


def _expected_size(file: Path) -> int:
    """Bytes that a safetensors file must have by its header."""
    tensors, start = header(file)
    return int(start + max(tensor["data_offsets"][1] for name, tensor in tensors.items() if name != "__metadata__"))


def download_weights(
    spec: ModelSpec, settings: Settings, progress: bool = False, note: Callable[[str], None] | None = None
) -> Path:
    """Downloads the model into the cache of HF_HOME and returns its folder.

    Args:
        progress: show a bar on stderr.
        note: told how far it is, in GB.

    Raises:
        ConfigurationError: the model is gated and there is no token, the disk is too small, or the download failed.
    """
    if spec.repository is None:
        raise ConfigurationError(f"{spec.name} is part of the repository and cannot be downloaded; run `make micro`")
    token = settings.hugging_face_token
    if spec.gated and token is None:
        raise ConfigurationError(
            f"{spec.name} is a gated model and no weights were found on this machine: accept its licence "
            f"({spec.licence}) at {spec.page}, then set HUGGING_FACE_TOKEN to a token of your "
            "account. IMAGEGEN_MODEL=micro needs none."
        )
    # The repositories also hold the whole model as one file, in other layouts.
    patterns = ["model_index.json", *(f"*/*{ending}" for ending in DATA_ENDINGS)]
    return _download(spec.name, spec.repository, spec.revision, patterns, settings, progress, note)


def download_decoder(settings: Settings, progress: bool = False) -> Path:
    """Downloads FLUX.2-small-decoder into the cache of HF_HOME, and returns its folder.

    Raises:
        ConfigurationError: the disk is too small, or the download failed.
    """
    return _download("the small decoder", SMALL_DECODER, None, list(_DECODER_FILES), settings, progress)


def _download(
    name: str,
    repository: str,
    revision: str | None,
    patterns: list[str],
    settings: Settings,
    progress: bool,
    note: Callable[[str], None] | None = None,
) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import ENDPOINT
    from huggingface_hub.errors import DryRunError, GatedRepoError, LocalEntryNotFoundError
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if not progress:
        disable_progress_bars()
    cache, token = settings.hf_home.expanduser() / "hub", settings.hugging_face_token
    arguments: dict[str, Any] = {
        "revision": revision,
        "cache_dir": cache,
        "token": token.get_secret_value() if token else False,
        "allow_patterns": patterns,
    }
    try:
        plan = snapshot_download(repository, dry_run=True, **arguments)
        total = sum(file.file_size or 0 for file in plan)
        needed = sum(file.file_size or 0 for file in plan if file.will_download)
        _check_disk(name, needed, cache, settings.queue_url is not None)
        log.info("%s is downloaded from %s", name, repository)
        if note is not None:
            arguments["tqdm_class"] = _meter(total - needed, total, note)
        return Path(snapshot_download(repository, **arguments))
    except ConfigurationError:
        raise
    except GatedRepoError:
        raise ConfigurationError(
            f"{name}: this HUGGING_FACE_TOKEN may not read {repository}; accept the licence at "
            f"https://huggingface.co/{repository}"
        ) from None
    except (DryRunError, LocalEntryNotFoundError) as error:  # whatever kept its client from the hub
        why = type(error.__cause__ or error).__name__
        raise ConfigurationError(
            f"{name}: the weights are not on this machine and {ENDPOINT} cannot be reached ({why}); check the network, "
            "HF_ENDPOINT and HF_HUB_OFFLINE"
        ) from error
    except Exception as error:  # the hub's client lets errors of several HTTP libraries through
        raise Unavailable(f"{name}: the download of {repository} failed ({type(error).__name__})") from error


def _meter(here: int, total: int, note: Callable[[str], None]) -> type[Any]:
    """A class of bars for `snapshot_download` that tells `note` how much of `total` bytes is here."""
    from huggingface_hub.utils.tqdm import tqdm

    class Meter(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            # Of its three bars, that of the bytes on the disk; the others count files, and bytes on the wire.
            self._counts = kwargs.get("name") == "huggingface_hub.snapshot_download"
            tqdm.__init__(self, *args, **kwargs)

        def update(self, n: float | None = 1) -> bool | None:
            nonlocal here
            if self._counts:
                here += int(n or 0)
                note(f"downloading the weights: {here / 1e9:.1f} of {total / 1e9:.1f} GB")
            shown: bool | None = super().update(n)
            return shown

    return Meter


def _check_disk(name: str, needed: int, cache: Path, on_runpod: bool) -> None:
    """Raises ConfigurationError where the disk has no room for `needed` bytes more.

    On RunPod a tenth of the container's disk has to stay free: after a download that leaves less, its SDK would end the
    worker, which would begin to download again (`_check_disk_space` in runpod 1.12, RUNPOD_MIN_DISK_PERCENT).
    """
    existing = next(folder for folder in (cache, *cache.parents) if folder.exists())
    disk = shutil.disk_usage(existing)
    reserve = disk.total // 10 if on_runpod and existing.stat().st_dev == _ROOT.stat().st_dev else 0
    if disk.free < needed + reserve:
        left = f" beside the {reserve / 1e9:.1f} GB that RunPod wants free" if reserve else ""
        raise ConfigurationError(
            f"{name}: the download needs {needed / 1e9:.1f} GB{left} and the disk of HF_HOME has "
            f"{disk.free / 1e9:.1f} GB free; give the container a larger disk, or set HF_HOME to a volume"
        )
