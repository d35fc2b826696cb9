"""The real micro model on the CPU, loaded once for all tests; settings that see nothing of the developer's machine."""

from __future__ import annotations

import base64
import io
import logging
import os
import sys
import threading
import time

import pytest
from PIL import Image

from imagegen.builder.micro.scenes import COLOURS, Scene, Shape
from imagegen.engine.service import Service
from imagegen.model.config import FluxConfig
from imagegen.model.pipeline import FluxPipeline
from imagegen.models import MICRO_PATH, get_model
from imagegen.settings import Settings, get_settings

# One process after the other uses both cores; spinning threads of two would stand in each other's way.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.update(IMAGEGEN_MODEL="micro", IMAGEGEN_DEVICE="cpu")


def settings(**changes) -> Settings:
    """Settings for micro on the CPU, with `changes`; no .env is read."""
    return Settings(_env_file=None, **{"model": "micro", "device": "cpu", **changes})


def scene(kind: str, colour: str, background: str, x: float = 0.5, radius: float = 0.28) -> Image.Image:
    """A reference as a user would send it: hard colours, one shape."""
    shape = Shape(kind, colour, COLOURS[colour], x, 0.5, radius)
    return Scene(background, COLOURS[background], (shape,)).draw(128, 128)


def to_bytes(picture: Image.Image, file_format: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, file_format, **options)
    return file.getvalue()


def to_base64(picture: Image.Image | bytes, file_format: str = "PNG", **options) -> str:
    data = picture if isinstance(picture, bytes) else to_bytes(picture, file_format, **options)
    return base64.b64encode(data).decode()


def from_base64(text: str) -> Image.Image:
    picture = Image.open(io.BytesIO(base64.b64decode(text, validate=True)))
    picture.load()
    return picture


def until(condition, timeout=300, every=0.005):
    """Waits until a condition holds, and returns what it gave; long enough for a machine that does much else."""
    end = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < end, "it did not come about"
        time.sleep(every)
    return value


@pytest.fixture(scope="session")
def config() -> FluxConfig:
    return FluxConfig(get_model("micro"), MICRO_PATH, device="cpu")


@pytest.fixture(scope="session")
def pipeline(config):
    with FluxPipeline(config) as loaded:
        yield loaded


@pytest.fixture(scope="session")
def service():
    running = Service(settings())
    running.start().result()
    yield running
    running.close()


@pytest.fixture(autouse=True)
def _process_as_it_was():
    """What a test leaves in the process ends with it: the settings, and what `logs.configure` sets.

    A handler that stays would write to a stream that pytest closes.
    """
    handlers, hooks = logging.root.handlers.copy(), (sys.excepthook, threading.excepthook)
    levels = {logger: logger.level for logger in (logging.root, logging.getLogger("imagegen"))}
    yield
    get_settings.cache_clear()
    sys.excepthook, threading.excepthook = hooks
    logging.captureWarnings(False)
    for logger, level in levels.items():
        logger.setLevel(level)
    for handler in logging.root.handlers.copy():
        if handler not in handlers:
            logging.root.removeHandler(handler)
