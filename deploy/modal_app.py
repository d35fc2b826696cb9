"""image-gen on Modal: the HTTP server at a URL of its own, and `run`, which takes the jobs of RunPod's queue.

    pip install modal && modal setup
    modal secret create image-gen-download HUGGING_FACE_TOKEN=...
    modal secret create image-gen IMAGEGEN_API_KEY=...
    modal run deploy/modal_app.py::download
    modal deploy deploy/modal_app.py

Everything that the service can be told is the environment below. Docs: docs/modal.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import modal
from fastapi import FastAPI

MODEL = "klein-9b"
#: bf16 has 27.9 GiB of weights and a peak of 31.8 with four references: an L40S has 48 GB.
GPU = "L40S"
#: Containers that run at once, and seconds without a job after which one goes.
MOST_CONTAINERS, IDLE_SECONDS = 4, 60

_ROOT = Path(__file__).resolve().parent.parent
_CACHE = "/cache"

image = (
    modal.Image.debian_slim(python_version="3.11")
    .add_local_file(_ROOT / "constraints.txt", "/constraints.txt", copy=True)
    .pip_install_from_pyproject(str(_ROOT / "pyproject.toml"), extra_options="--constraint /constraints.txt")
    .env({"IMAGEGEN_MODEL": MODEL, "HF_HOME": f"{_CACHE}/huggingface", "IMAGEGEN_LOG_FORMAT": "json"})
    # Whole folders: add_local_python_source would leave the page out.
    .add_local_dir(_ROOT / "imagegen", "/root/imagegen", ignore=["**/__pycache__"])
)
weights = modal.Volume.from_name("image-gen-weights", create_if_missing=True)
app = modal.App(
    "image-gen",
    image=image,
    volumes={_CACHE: weights},
)


@app.function(timeout=3600, secrets=[modal.Secret.from_name("image-gen-download")])
def download() -> None:
    """Brings the weights into the volume, on a machine without a GPU. Containers have no token: it would be in the
    snapshot."""
    from imagegen.models import get_model
    from imagegen.settings import get_settings
    from imagegen.weights.sources import download_weights, find_weights

    settings = get_settings()
    spec = get_model(settings.model or MODEL)
    path = find_weights(spec, settings) or download_weights(spec, settings, progress=True)
    print(f"{spec.name} is at {path}")
    weights.commit()


@app.cls(
    gpu=GPU,
    secrets=[modal.Secret.from_name("image-gen")],
    max_containers=MOST_CONTAINERS,
    scaledown_window=IDLE_SECONDS,
    startup_timeout=1800,
    timeout=3600,  # the longest that a job's own `timeout` may be
    enable_memory_snapshot=True,
    experimental_options={"enable_gpu_snapshot": True},
)
@modal.concurrent(max_inputs=8, target_inputs=2)  # one on the GPU, the next at hand; more only until a container comes
class ImageGen:
    """A container: a model on a GPU, and its two endpoints."""

    @modal.enter(snap=True)
    def load(self) -> None:
        """Kept in the snapshot: the imports and the loaded, warmed-up model, on the GPU."""
        from imagegen import logs
        from imagegen.runpod import handler
        from imagegen.settings import get_settings

        logs.configure(get_settings())
        handler.service().start().result()
        handler.service().freeze()

    @modal.enter(snap=False)
    def go_on(self) -> None:
        """In each container, also in those that begin at the snapshot. The key is read here: it may have changed."""
        from imagegen import logs
        from imagegen.runpod import handler
        from imagegen.server.main import create_app
        from imagegen.settings import get_settings

        get_settings.cache_clear()
        settings = get_settings()
        logs.configure(settings)
        handler.service().thaw()
        self._app, self._answer = create_app(settings, handler.service()), handler.handler

    @modal.asgi_app()
    def web(self) -> FastAPI:
        """The HTTP server, the same as `imagegen.server.main:app`."""
        return self._app

    @modal.method()
    async def run(self, job: dict[str, Any]) -> Any:
        """A job as RunPod's: {"id": ..., "input": {...}}; its output, or its error.

        modal.Cls.from_name("image-gen", "ImageGen")().run.remote({"input": {"prompt": "a red circle"}})
        """
        return await self._answer(job)
