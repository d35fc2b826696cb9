"""What the server tells about itself: its page, health, capabilities, and metrics for Prometheus."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Annotated, Any, get_args

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse

from imagegen import __version__
from imagegen.contract.fields import AspectRatio, OutputFormat
from imagegen.contract.responses import HealthResponse, PublicHealth
from imagegen.contract.schemas import EditRequest, GenerateRequest
from imagegen.engine.service import Service
from imagegen.errors import NotReady, StoreFailed
from imagegen.inputs.decoding import MAX_PHOTO_PIXELS
from imagegen.models import MODELS, MULTIPLE
from imagegen.server.http import ERRORS
from imagegen.server.page import page
from imagegen.server.stored import jobs_of

router = APIRouter()

_CAN_SERVE = ("idle", "ready", "busy")


async def _service(request: Request) -> Service:  # not sync: FastAPI would ask a thread for it, and /health wait
    service: Service = request.app.state.service
    return service


_Health = HealthResponse | PublicHealth
_Service = Annotated[Service, Depends(_service)]


@router.get(
    "/",
    summary="The page for a browser, JSON for others",
    responses={200: {"content": {"text/html": {"schema": {"type": "string"}}}}},
)
async def root(request: Request, service: _Service) -> Response:
    if "text/html" in request.headers.get("accept", ""):
        return page()
    state = service.health()
    about = {"name": "image-gen", "status": state.status, "docs": "/docs" if service.settings.docs else None}
    if request.state.authorized:
        about |= {"version": __version__, "model": state.model}
    return JSONResponse({**about, "routes": ["/generate", "/edit", "/v1/images/generations"]})


@router.get("/health", response_model=_Health, responses={503: {"model": _Health}})
async def health(request: Request, service: _Service) -> Response:
    """200 if a job could be taken (idle, ready or busy), else 503. Without the key, only the status."""
    state = service.health()
    shown = state if request.state.authorized else PublicHealth(status=state.status, stage=state.stage)
    return Response(shown.model_dump_json(), 200 if state.status in _CAN_SERVE else 503, media_type="application/json")


@router.get(
    "/ping", response_class=Response, responses={204: {"description": "Loading."}, 503: {"description": "Broken."}}
)
async def ping(service: _Service) -> Response:
    """For RunPod's load balancer: 204 while loading, 200 ready, 503 broken."""
    status = service.health().status
    return Response(status_code=200 if status in _CAN_SERVE else 204 if status in ("starting", "loading") else 503)


@router.get("/capabilities", responses={401: ERRORS[401], 503: ERRORS[503]})
async def capabilities(service: _Service) -> dict[str, Any]:
    """The limits, defaults, sizes, formats and model of this server."""
    spec = service.spec
    if spec is None:
        raise NotReady("the model is not chosen yet", retry_after=2)
    return {
        "model": spec.name,
        "licence": spec.licence,
        "models": list(MODELS),
        "defaults": {"num_inference_steps": spec.num_inference_steps, "guidance_scale": spec.guidance_scale},
        "sizes": {
            "default": spec.size,
            "min": spec.min_size,
            "max": spec.max_size,
            "good": spec.good_size or spec.max_size,
            "multiple": MULTIPLE,
        },
        "aspect_ratios": get_args(AspectRatio),
        "output_formats": get_args(OutputFormat),
        "fields": {schema.mode: list(schema.model_fields) for schema in (GenerateRequest, EditRequest)},
        "draws": spec.draws,
        "loras": await asyncio.to_thread(service.loras, spec),
        "limits": {
            "prompt": service.settings.max_prompt,
            "images": min(spec.max_references, service.settings.max_references),
            "num_images": service.settings.max_images,
            "photo_megapixels": MAX_PHOTO_PIXELS / 1e6,
            "reference_mb": service.settings.max_reference_mb,
            "body_mb": service.settings.max_body_mb,
            "queue": service.settings.max_queue,
            "timeout": service.settings.timeout,
            "num_inference_steps": service.settings.max_steps,
            "megapixel_steps": service.settings.max_megapixel_steps,
            "loras": service.settings.max_loras,
        },
        "jobs": {
            "outlive": service.settings.jobs_dir is not None,
            "keep_hours": service.settings.jobs_keep_hours,
            "waiting": service.settings.jobs_max_waiting,
        },
    }


@router.get("/metrics", response_class=PlainTextResponse, responses={401: ERRORS[401]})
async def metrics(request: Request, service: _Service) -> Response:
    """Metrics for Prometheus."""
    with suppress(StoreFailed):
        await jobs_of(request).measure()
    return Response(
        await asyncio.to_thread(service.metrics_text), media_type="text/plain; version=0.0.4; charset=utf-8"
    )
