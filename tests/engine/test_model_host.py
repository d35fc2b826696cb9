"""The life of the model in a service: it loads, fails, is tried again, dies with its GPU; health says which."""

import threading
from pathlib import Path

import pytest
import torch

from imagegen.engine.service import Service
from imagegen.errors import (
    GpuFailed,
    LoadFailed,
)
from tests.support import settings, until
from tests.support.jobs import run


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"model": "klein-9c"}, "klein-9c"), ({"model": "klein-9b"}, "HUGGING_FACE_TOKEN")],
)
def test_a_model_that_cannot_be_loaded_answers_load_failed_and_says_why(tmp_path, changes, says):
    broken = Service(settings(hf_home=tmp_path, **changes))
    with pytest.raises(LoadFailed, match=says):
        run(broken)
    assert broken.health().status == "failed"
    assert says in broken.health().message
    broken.close()


def test_health_follows_the_model():
    assert Service(settings(preload_models=False)).health().status == "idle"
    fresh = Service(settings())
    assert fresh.health().status == "starting"
    assert fresh.health().model == "micro"
    loading = fresh.start()
    assert fresh.health().status == "loading"
    assert fresh.health().stage
    loading.result()
    ready = fresh.health()
    assert (ready.status, ready.model, ready.device) == ("ready", "micro", "cpu")
    threads = threading.active_count()
    fresh.close()
    until(lambda: threading.active_count() < threads)


def test_a_dead_gpu_ends_the_service_and_health_says_so(monkeypatch):
    dying = Service(settings())

    def fail(*_, **__):
        raise torch.AcceleratorError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(dying.start().result()._pipe.transformer, "forward", fail)
    assert dying.health().status == "ready"
    for _ in range(2):
        with pytest.raises(GpuFailed):
            run(dying)
    assert dying.health().status == "failed"
    dying.close()


def test_a_load_that_failed_is_tried_again_with_the_next_job(monkeypatch):
    trying = Service(settings())
    monkeypatch.setattr("imagegen.model.loading.find_weights", lambda *_: Path("/nowhere"))
    with pytest.raises(LoadFailed, match="micro: its weights cannot be loaded"):
        run(trying)
    monkeypatch.undo()
    monkeypatch.setattr("imagegen.engine.model_host._RETRY_SECONDS", 3600)
    with pytest.raises(LoadFailed):  # not at once: each job would begin a download
        run(trying)
    monkeypatch.setattr("imagegen.engine.model_host._RETRY_SECONDS", 0)
    assert run(trying).images
    trying.close()


def test_a_real_model_without_a_gpu_fails_loudly(tmp_path):
    service = Service(settings(model="klein-9b", device=None, hf_home=tmp_path))
    with pytest.raises(LoadFailed, match="klein-9b needs a CUDA GPU and none can be used"):
        run(service)
    service.close()
