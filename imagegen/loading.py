"""Which model this process serves, and how it comes to be in memory."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from imagegen.errors import ConfigurationError
from imagegen.memory import check_card
from imagegen.models import ModelSpec, download_weights, find_weights, get_model
from imagegen.server.flux_pipeline import FluxConfig, FluxPipeline
from imagegen.settings import Settings

log = logging.getLogger(__name__)


def choose_model(settings: Settings) -> ModelSpec:
    """The model that the settings name; else klein-9b where there is a card, and micro, said aloud, without one.

    Raises:
        ConfigurationError: there is no such model, or it needs a card and there is none: a container with a broken GPU
            fails instead of drawing for an hour on its CPU.
    """
    micro = get_model("micro")
    spec = get_model(settings.model) if settings.model else None
    if spec is micro or settings.device not in (None, "cpu") or (spec and settings.device):
        return spec or get_model("klein-9b")
    if settings.device is None and default_device() == "cuda":
        return spec or get_model("klein-9b")
    if spec is not None:
        raise ConfigurationError(
            f"{spec.name} needs a CUDA card and none can be used; IMAGEGEN_MODEL=micro draws without one, "
            "IMAGEGEN_DEVICE=cpu insists"
        )
    log.warning("no CUDA card was found: serving micro, a miniature that draws coloured shapes; IMAGEGEN_MODEL chooses")
    return micro


def default_device() -> str:
    """A CUDA card where there is one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def load(spec: ModelSpec, settings: Settings, progress: bool, note: Callable[[str], None]) -> FluxPipeline:
    """Finds or downloads the weights of a model and loads them.

    Args:
        progress: show bars on stderr.
        note: told each stage as it begins.

    Raises:
        ConfigurationError: the weights cannot be had or loaded.
    """
    begun = time.monotonic()
    note("looking for the weights")
    path = find_weights(spec, settings)
    if path is None:
        note("downloading the weights")
        path = download_weights(spec, settings, progress)
    device = settings.device or default_device()
    if device.startswith("cuda"):
        note("checking the card")
        check_card(spec, path, device, settings.offload)
    note("loading the weights")
    pipeline = FluxPipeline(FluxConfig(spec, path, device=device, offload=settings.offload, progress=progress))
    try:
        pipeline.load()
    except ConfigurationError as error:
        # No caller's words can be in this one, and the operator needs it.
        log.exception("loading %s from %s failed: %s", spec.name, path, error.__cause__)
        raise
    # deploy/vast/worker.py waits for this line.
    log.info("loaded %s on %s in %.1f s", spec.name, pipeline.device, time.monotonic() - begun)
    return pipeline
