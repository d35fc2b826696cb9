"""The Modal app, built offline by the real package, and its class called on this machine with micro."""

import asyncio
import logging

import pytest
from starlette.testclient import TestClient

from imagegen.runpod import handler
from imagegen.settings import variable_names
from tests.support.images import from_base64

pytestmark = pytest.mark.slow  # `make slow` installs modal
JOB = {"prompt": "a red circle on a blue background", "seed": 42}


@pytest.fixture
def _own_process(monkeypatch):
    """A container's process is its own: what it sets up here is taken back."""
    monkeypatch.setattr(logging.root, "handlers", logging.root.handlers[:])
    monkeypatch.setattr(logging.root, "level", logging.root.level)
    handler.service.cache_clear()
    yield
    handler.service.cache_clear()


def test_what_is_deployed():
    from deploy import modal_app

    container = modal_app.ImageGen._get_class_service_function()._spec_  # type: ignore[attr-defined]
    assert container.gpus == modal_app.GPU
    # The snapshot of a container has no token for the weights in it, and no other process.
    for function, secret in ((container, "image-gen"), (modal_app.download._spec_, "image-gen-download")):
        assert set(function.volumes) == {"/cache"}
        assert [str(one) for one in function.secrets] == [f"modal.Secret.from_name('{secret}')"]
    assert modal_app.download._spec_.gpus is None
    # What the image sets is what the service reads.
    assert {"IMAGEGEN_MODEL", "HF_HOME", "IMAGEGEN_LOG_FORMAT"} <= set(variable_names())


@pytest.mark.usefixtures("_own_process")
@pytest.mark.filterwarnings("ignore:The ImageGen")
def test_a_container_answers_at_both_endpoints():
    from deploy.modal_app import ImageGen

    container = ImageGen()
    app = container.web.local()  # runs what @modal.enter marks, as Modal does before the first call
    output = asyncio.run(container.run.local({"id": "one", "input": JOB}))
    assert from_base64(output["images"][0]).size == (128, 128)
    wrong = asyncio.run(container.run.local({"id": "two", "input": {"prompt": "x", "width": 1000, "height": 512}}))
    assert (wrong["code"], wrong["field"]) == ("invalid_input", "width")
    with TestClient(app, base_url="http://localhost") as client:
        assert client.get("/health").json()["status"] == "ready"
        assert client.get("/", headers={"Accept": "text/html"}).status_code == 200
        assert client.post("/generate", json=JOB).json()["images"] == output["images"]
