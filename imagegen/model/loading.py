"""Which model this process serves, and how it comes to be in memory."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from imagegen.contract.start_times import StartTimes
from imagegen.errors import ConfigurationError
from imagegen.memory.plan import Gpu, MemoryPlan, read_gpu
from imagegen.memory.planner import choose, stored_precisions
from imagegen.model import driver
from imagegen.model.acceleration import Attention, can_compile, choose_attention, is_installed
from imagegen.model.config import FluxConfig
from imagegen.model.pipeline import FluxPipeline
from imagegen.model.warm_up import warm_up
from imagegen.models import ModelSpec, get_model
from imagegen.settings import Settings
from imagegen.weights.files import prefetch
from imagegen.weights.sources import download_decoder, download_weights, find_decoder, find_weights

log = logging.getLogger(__name__)


def choose_model(settings: Settings) -> ModelSpec:
    """The model that the settings name; else klein-9b where there is a GPU, and micro, said aloud, without one.

    Raises:
        ConfigurationError: there is no such model, or it needs a GPU and there is none: a container with a broken GPU
            fails instead of generating for an hour on its CPU.
    """
    micro = get_model("micro")
    spec = get_model(settings.model) if settings.model else None
    if spec is micro or settings.device not in (None, "cpu") or (spec and settings.device):
        return spec or get_model("klein-9b")
    if settings.device is None and default_device() == "cuda":
        return spec or get_model("klein-9b")
    why = _why_no_gpu()
    if spec is not None:
        raise ConfigurationError(
            f"{spec.name} needs a CUDA GPU and none can be used{why}; IMAGEGEN_MODEL=micro runs without one, "
            "IMAGEGEN_DEVICE=cpu insists"
        )
    log.warning(
        "no CUDA GPU was found%s: serving micro, a miniature that generates colored shapes; IMAGEGEN_MODEL chooses", why
    )
    return micro


def _why_no_gpu() -> str:
    import torch

    fault = driver.find_fault(torch.version.cuda)
    return f" ({fault})" if fault else ""


def default_device() -> str:
    """A CUDA GPU where there is one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def read_ahead(settings: Settings) -> Path | None:
    """Begins to pull the weights of the model that the settings name into the page cache, so that they are read while
    torch and diffusers are imported; returns their folder, None where it is not known or not there yet.

    Raises:
        ConfigurationError: there is no such model, or its folder holds none.
    """
    path = find_weights(get_model(settings.model), settings) if settings.model else None
    if path is not None:
        prefetch(path)
    return path


def plan(
    spec: ModelSpec, settings: Settings, path: Path | None, gpu: Gpu | None, nf4: bool = True, compiled: bool = True
) -> MemoryPlan:
    """Where each part of a model will live, and in which precision.

    Args:
        path: the folder with its weights, which may be quantised already; None: they are not here.
        gpu: None: a CPU.
        nf4: whether what nf4 needs is installed.
        compiled: whether blocks can be compiled.

    Raises:
        ConfigurationError: what the settings ask for does not fit the GPU.
    """
    return choose(
        spec,
        gpu,
        references=min(spec.max_references, settings.max_references),
        precision=settings.precision,
        offload=settings.offload,
        stored=stored_precisions(path) if path else (None, None),
        nf4=nf4,
        compiled=compiled and settings.compile != "off",
        lora_rank=settings.lora_buffers,
    )


def load(
    spec: ModelSpec,
    settings: Settings,
    progress: bool,
    note: Callable[[str], None],
    path: Path | None = None,
    times: StartTimes | None = None,
) -> FluxPipeline:
    """Finds or downloads the weights of a model and loads them.

    Args:
        progress: show bars on stderr.
        note: told each stage as it begins.
        path: where the weights are, if they have been found.
        times: of the start until now.

    Raises:
        ConfigurationError: the weights cannot be found, downloaded or loaded, or do not fit the GPU.
    """
    times = times or StartTimes()
    decoder = None
    with times.measure("find"):
        note("looking for the weights")
        path = path or find_weights(spec, settings)
        if settings.decoder is not None:
            decoder = find_decoder(settings) or download_decoder(settings, progress)
        if path is not None:
            # Before its client is imported: no library asks the hub for what lies here.
            os.environ["HF_HUB_OFFLINE"] = "1"
        else:
            note("downloading the weights")
            path = download_weights(spec, settings, progress, note)
    # Blocks of the allocator that grow leave fewer holes between sizes; read when torch first uses the GPU.
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    with times.importing():
        device = settings.device or default_device()
    note("checking the GPU")
    with times.measure("check"):
        gpu = read_gpu(device)
        attention = _attention(settings, device)
        compiled = _can_compile(settings, device, attention)
        chosen = plan(spec, settings, path, gpu, is_installed("bitsandbytes"), compiled)
    log.info("memory: %s", chosen)
    if compiled and chosen.offload == "group" and settings.compile == "on":
        log.warning("IMAGEGEN_COMPILE=on: layers that are fetched as they run cannot be compiled; they are not")
    note("loading the weights")
    config = FluxConfig(
        spec,
        path,
        device=device,
        transformer=chosen.transformer,
        text_encoder=chosen.text_encoder,
        offload=chosen.offload,
        progress=progress,
        plan=chosen,
        attention=attention,
        compile=compiled and chosen.offload != "group",
        decoder=decoder,
        lora_rank=chosen.lora_rank,
        prompt_cache=int(settings.prompt_cache_mb * 1e6),
    )
    pipeline = FluxPipeline(config, times)
    try:
        pipeline.load()
        _warm_up(pipeline, settings.compile_cache, _wanted(settings.warm_up, device), note)
    except Exception as error:
        # No caller's words can be in this one, and the operator needs it.
        log.exception("loading %s from %s failed: %s", spec.name, path, error.__cause__ or error)
        with suppress(Exception):
            pipeline.unload()  # a second try finds the GPU free
        raise
    # deploy/vast/worker.py waits for this line. The seconds are those since the process began, as the stages' are.
    log.info("loaded %s on %s in %.1f s: %s", spec.name, pipeline.device, times.total, times.show())
    return pipeline


def _wanted(setting: str, device: str) -> bool:
    return setting == "on" or (setting == "auto" and device.startswith("cuda"))


def _can_compile(settings: Settings, device: str, attention: Attention | None) -> bool:
    """Whether blocks are compiled, where the plan allows it."""
    if not _wanted(settings.compile, device):
        return False
    if not can_compile(attention):
        log.warning("IMAGEGEN_ATTENTION=%s: blocks with this kernel cannot be compiled; they are not", attention)
        return False
    return True


def _attention(settings: Settings, device: str) -> Attention | None:
    """The kernel for attention that is asked for, else the GPU's; None on a CPU, where there is one alone."""
    if settings.attention != "auto":
        return settings.attention
    if not device.startswith("cuda"):
        return None
    import torch

    attention, reason = choose_attention(torch.cuda.get_device_capability(device))
    log.info("attention by %s: %s", attention, reason)
    return attention


def _warm_up(pipeline: FluxPipeline, folder: Path | None, wanted: bool, note: Callable[[str], None]) -> None:
    """The first images, generated for nobody, where they are wanted. Compiled code is taken from the folder, and what
    they compile is left there."""
    cache = pipeline.compile_cache(folder) if folder and pipeline.config.compile else None
    found = False
    if cache:
        note("reading the compile cache")
        with pipeline.times.measure("compile"):
            found = cache.load()
    if not wanted:
        return
    note("warming up")
    with pipeline.times.measure("warm_up"):  # what is not in the cache is compiled meanwhile
        warm_up(pipeline)
    log.info("warmed up%s", ", with the compile cache" if found else "")
    if cache and not found and pipeline.compiled:
        cache.save()
