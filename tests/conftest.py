"""The real micro model on the CPU, loaded once for all tests; settings that see nothing of the developer's machine."""

from __future__ import annotations

import functools
import gc
import logging
import os
import ssl
import sys
import threading

import httpx
import pytest

from imagegen.engine.service import Service
from imagegen.inputs import decoders
from imagegen.model.config import FluxConfig
from imagegen.model.pipeline import FluxPipeline
from imagegen.models import MICRO_PATH, get_model
from imagegen.settings import get_settings
from tests.server.conftest import serving
from tests.support import settings, until  # noqa: F401
from tests.support.images import from_base64, scene, to_base64, to_bytes  # noqa: F401

# One process after the other uses both cores; spinning threads of two would stand in each other's way.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.update(IMAGEGEN_MODEL="micro", IMAGEGEN_DEVICE="cpu")

# A call of httpx without a client reads all certificate authorities, for 25 ms, and the tests' servers have none.
_CONTEXT = ssl.create_default_context()
for _name in ("get", "post", "put", "delete", "head", "options", "request", "stream"):
    setattr(httpx, _name, functools.partial(getattr(httpx, _name), verify=_CONTEXT, timeout=60))


# A decoder that the machine lets wait is not slow: no reference is refused for that, but where a test sets a limit.
decoders.SECONDS = decoders._CONTROL_SECONDS = 300.0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The modules that take longest come first: one that came last would leave the other process idle."""
    items.sort(key=lambda item: not item.nodeid.startswith(("tests/e2e/", "tests/docs/", "tests/model/")))


# What is imported stays to the end, some 800,000 objects. Each collection of garbage, of which `FluxPipeline.unload`
# makes one, would look at all of them, for half a second.
gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="module", autouse=True)
def _no_garbage():
    """What outlives a module stays to the end too."""
    yield
    gc.collect()
    gc.freeze()


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


def _rounding() -> dict[str, object]:
    """What the last bits of an image depend on in this process, as far as it is loaded."""
    torch, attention = (sys.modules.get(name) for name in ("torch", "diffusers.models.attention_dispatch"))
    found = {}
    if hasattr(torch, "get_num_threads"):  # else another thread is just importing it
        found["torch.get_num_threads()"] = torch.get_num_threads()
    if hasattr(attention, "attention_backend"):
        found["diffusers' active attention backend"] = attention._AttentionBackendRegistry.get_active_backend()[0]
    return found


@pytest.fixture(scope="session")
def ready():
    """(base URL, service) of a server that has loaded its model; no test may leave it otherwise."""
    with serving(max_body_mb=3) as (url, service):
        service.start().result()
        yield url, service


@pytest.fixture(scope="session")
def client(ready):
    with httpx.Client(base_url=ready[0], timeout=60) as open_client:
        yield open_client


@pytest.fixture(autouse=True)
def _process_as_it_was(request):
    """What a test leaves in the process ends with it: the settings, and what `logs.configure` sets.

    A handler that stays would write to a stream that pytest closes. What would round the images of later tests
    otherwise is a failure of the test that changed it.
    """
    rounding = _rounding()
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
    after = _rounding()
    changed = [f"{name} was {value} and is {after[name]}" for name, value in rounding.items() if after[name] != value]
    assert not changed, f"{request.node.nodeid} left the process changed: {'; '.join(changed)}"
