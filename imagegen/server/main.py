"""The HTTP door: the native API, OpenAI's images API (openai.py), and a page to play with.

    uvicorn imagegen.server.main:app --host 0.0.0.0 --port 7000

A route translates its protocol and nothing else; the road is `imagegen.engine.service`.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from collections.abc import AsyncIterator
from concurrent.futures import Future
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, get_args

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse
from starlette.exceptions import HTTPException

from imagegen import __version__, logs
from imagegen.contract import requests
from imagegen.contract.schemas import (
    AspectRatio,
    EditRequest,
    EditResponse,
    ErrorResponse,
    GenerateRequest,
    GenerateResponse,
    HealthResponse,
    OutputFormat,
)
from imagegen.engine.event_queue import event_fields
from imagegen.engine.service import Service
from imagegen.errors import ConfigurationError, ImageGenError, InvalidInput, NotFound, NotReady
from imagegen.models import MODELS, MULTIPLE
from imagegen.server import http, streams
from imagegen.server.openai import router as openai_router
from imagegen.settings import Settings, get_settings

log = logging.getLogger(__name__)

_PAGE = Path(__file__).parent / "playground" / "index.html"
_CAN_SERVE = ("idle", "ready", "busy")
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse, "description": text}
    for status, text in {
        401: "No API key, or a wrong one.",
        413: "The body, a reference or the answer is too large.",
        415: "The body is neither JSON nor a form.",
        422: "A field is missing, unknown or out of its bounds; the error names it.",
        429: "The queue is full; Retry-After says when to try again.",
        499: "The job was cancelled.",
        502: "The object store could not be reached, or refused the pictures.",
        500: "A bug; the message holds an id that the log has too.",
        503: "The model is loading or could not be loaded, or the card failed.",
        504: "The job's timeout ran out.",
        507: "The picture does not fit the card.",
    }.items()
}


def _body(schema: type[GenerateRequest] | type[EditRequest]) -> dict[str, Any]:
    """The request body for OpenAPI: the same fields as JSON and as a form with files."""
    fields = schema.model_json_schema()
    form = json.loads(json.dumps(fields))
    form["additionalProperties"] = True  # `image` and `image[]` are names for `images`
    if schema is EditRequest:
        # `image` is an alias, so that neither name alone is required.
        fields["properties"]["image"] = {"type": "string", "description": "One reference, instead of `images`."}
        fields["required"] = form["required"] = ["prompt"]
        form["properties"]["images"] = {"type": "array", "items": {"type": "string", "format": "binary"}}
    content = {"application/json": {"schema": fields}, "multipart/form-data": {"schema": form}}
    return {"requestBody": {"required": True, "content": content}}


_PICTURES: dict[str, Any] = {
    f"image/{name}": {"schema": {"type": "string", "format": "binary"}} for name in get_args(OutputFormat)
}


def create_app(settings: Settings | None = None, service: Service | None = None) -> FastAPI:
    """The application; its service, one of its own where none is given, is `app.state.service`."""
    settings = settings or get_settings()
    service = service or Service(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        if settings.preload_models:
            service.start().add_done_callback(_log_failure)
        else:
            with suppress(ConfigurationError):  # the first job will say so
                await asyncio.to_thread(service.choose)
        yield
        await asyncio.to_thread(service.close)

    app = FastAPI(title="image-gen", version=__version__, description=__doc__, lifespan=lifespan)
    app.state.service = service
    app.state.jobs = {}
    app.add_middleware(http.Guard, settings=settings, metrics=service.metrics)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=[origin.strip() for origin in settings.cors_origins.split(",")],
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "X-API-Key"],
            expose_headers=["X-Request-ID", "X-Seed", "X-Model", "X-Warnings", "Retry-After"],
        )

    @app.exception_handler(ImageGenError)
    async def contract_error(request: Request, error: ImageGenError) -> Response:
        return http.error_response(error, request.url.path)

    @app.exception_handler(HTTPException)
    async def framework_error(request: Request, error: HTTPException) -> Response:
        answer = http.error_response(http.framework_error(error, request.url.path), request.url.path)
        answer.headers.update(error.headers or {})
        return answer

    @app.exception_handler(RequestValidationError)
    async def query_error(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"][1:]) or "request"
        return http.error_response(InvalidInput(f"{name}: {first['msg']}", name), request.url.path)

    _add_routes(app, service)
    app.include_router(openai_router)
    return app


def _log_failure(loading: Future[Any]) -> None:
    """Says why the model could not be loaded; until a job asks for it, /health alone would know."""
    error = None if loading.cancelled() else loading.exception()
    if error is not None:
        why = str(error) if isinstance(error, ConfigurationError) else logs.places(error)
        log.error("the model could not be loaded: %s", why)


def _add_routes(app: FastAPI, service: Service) -> None:
    @app.get(
        "/",
        summary="The page for a browser, a card as JSON for others",
        responses={200: {"content": {"text/html": {"schema": {"type": "string"}}}}},
    )
    async def root(request: Request) -> Response:
        if "text/html" in request.headers.get("accept", ""):
            return FileResponse(_PAGE, headers={"Content-Security-Policy": _POLICY, "Cache-Control": "no-cache"})
        state = service.health()
        card = {"name": "image-gen", "version": __version__, "model": state.model, "status": state.status}
        return JSONResponse({**card, "docs": "/docs", "routes": ["/generate", "/edit", "/v1/images/generations"]})

    @app.get("/health", response_model=HealthResponse, responses={503: {"model": HealthResponse}})
    async def health() -> Response:
        """200 where a job could be taken: idle, ready or busy; 503 otherwise."""
        state = service.health()
        return Response(
            state.model_dump_json(), 200 if state.status in _CAN_SERVE else 503, media_type="application/json"
        )

    @app.get(
        "/ping", response_class=Response, responses={204: {"description": "Loading."}, 503: {"description": "Broken."}}
    )
    async def ping() -> Response:
        """For RunPod's load balancer: 204 while loading, 200 ready, 503 broken."""
        status = service.health().status
        return Response(status_code=200 if status in _CAN_SERVE else 204 if status in ("starting", "loading") else 503)

    @app.get("/capabilities", responses={401: _ERRORS[401], 503: _ERRORS[503]})
    async def capabilities() -> dict[str, Any]:
        """What a client may ask of this server: limits, defaults, sizes, formats, models."""
        spec = service.spec
        if spec is None:
            raise NotReady("the model is not chosen yet", retry_after=2)
        return {
            "model": spec.name,
            "licence": spec.licence,
            "models": list(MODELS),
            "defaults": {"num_inference_steps": spec.num_inference_steps, "guidance_scale": spec.guidance_scale},
            "sizes": {"default": spec.size, "min": spec.min_size, "max": spec.max_size, "multiple": MULTIPLE},
            "aspect_ratios": get_args(AspectRatio),
            "output_formats": get_args(OutputFormat),
            "limits": {
                "prompt": service.settings.max_prompt,
                "images": min(spec.max_references, service.settings.max_references),
                "num_images": service.settings.max_images,
                "reference_mb": service.settings.max_reference_mb,
                "body_mb": service.settings.max_body_mb,
                "queue": service.settings.max_queue,
                "timeout": service.settings.timeout,
                "num_inference_steps": service.settings.max_steps,
                "megapixel_steps": service.settings.max_megapixel_steps,
            },
        }

    @app.get("/metrics", response_class=PlainTextResponse, responses={401: _ERRORS[401]})
    async def metrics() -> Response:
        """Figures for Prometheus."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.post(
        "/generate",
        response_model=GenerateResponse,
        responses={**_ERRORS, 200: {"content": {**_PICTURES, "text/event-stream": {"schema": {"type": "string"}}}}},
        openapi_extra=_body(GenerateRequest),
    )
    async def generate(request: Request, previews: bool = _PREVIEWS) -> Response:
        """Text to image. `Accept: image/png` answers with the picture itself, `text/event-stream` with progress."""
        return await _answer(request, await http.read_job(request, GenerateRequest), previews)

    @app.post(
        "/edit",
        response_model=EditResponse,
        responses={**_ERRORS, 200: {"content": {**_PICTURES, "text/event-stream": {"schema": {"type": "string"}}}}},
        openapi_extra=_body(EditRequest),
    )
    async def edit(request: Request, previews: bool = _PREVIEWS) -> Response:
        """One to four references and what to make of them; as JSON, or as a form with files."""
        return await _answer(request, await http.read_job(request, EditRequest), previews)

    @app.delete("/jobs/{job_id}", responses={401: _ERRORS[401], 404: {"model": ErrorResponse}, 422: _ERRORS[422]})
    async def cancel(job_id: str) -> dict[str, str]:
        """Cancels a job that waits or runs; the GPU is free after the step that it is in."""
        task = app.state.jobs.get(job_id)
        if task is None:
            raise NotFound("there is no such job, or it is done")
        task.cancel()
        return {"id": job_id, "status": "cancelled"}


#: Previews of each picture in the native stream.
_PREVIEWS_SENT = 8
_PREVIEWS = Query(False, description="In an event stream, show the picture at each step.")
#: The page asks nothing of anyone but this server.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


async def _answer(request: Request, job: requests.Request, previews: bool) -> Response:
    """Runs a job and answers in the form that the client accepts."""
    accept = _accepted(request.headers.get("accept", ""))
    if accept == "events":
        return await _stream(request, job, _PREVIEWS_SENT * previews)
    if accept != "json":
        job = _as_picture(job, accept)
    task = streams.start(request, job)
    answer = await streams.result_or_disconnect(request, task)
    if accept != "json":
        warnings = "; ".join(answer.warnings).encode("ascii", "replace").decode()
        headers = {"X-Seed": str(answer.seeds[0]), "X-Model": answer.model, "X-Warnings": warnings[:1000]}
        return Response(base64.b64decode(answer.images[0]), media_type=f"image/{answer.output_format}", headers=headers)
    return Response(answer.model_dump_json(), media_type="application/json")


def _accepted(accept: str) -> str:
    """The first of the accepted types that can be made: "json", "events", a format of pictures, or "*" for any.

    Raises:
        InvalidInput: pictures alone are accepted, and none of a format that is made here.
    """
    kinds = [kind.partition(";")[0].strip().lower() for kind in accept.split(",")]
    for kind in kinds:
        name = kind.removeprefix("image/")
        if kind in ("", "*/*", "application/*", "application/json"):
            return "json"
        if kind == "text/event-stream":
            return "events"
        if name != kind and name in (*get_args(OutputFormat), "*"):
            return name
    if kinds[0].startswith("image/"):
        formats = ", ".join(get_args(OutputFormat))
        raise InvalidInput(f"Accept: {kinds[0][:40]} is not made here; allowed are {formats}", "Accept")
    return "json"


def _as_picture(job: requests.Request, wanted: str) -> requests.Request:
    """The job with the format that the client accepts."""
    if job.num_images != 1:
        raise InvalidInput(f"num_images: {job.num_images} pictures do not go into one image; accept JSON", "num_images")
    if job.delivery == "url":
        raise InvalidInput("delivery: 'url' has no picture to answer with; accept JSON", "delivery")
    return job if wanted == "*" else job.model_copy(update={"output_format": wanted})


async def _stream(request: Request, job: requests.Request, previews: int) -> Response:
    """The job's events: queued, references, step, and at the end done or error."""
    task, events = await streams.follow(request, job, previews)

    async def body() -> AsyncIterator[str]:
        async for event in events:
            name, fields = await event_fields(event, request.state.request_id)
            yield streams.server_sent(name, json.dumps(fields))
        answer = await streams.result_or_error(task)
        if isinstance(answer, ImageGenError):
            yield streams.server_sent("error", json.dumps(answer.body()))
        else:
            yield streams.server_sent("done", answer.model_dump_json())

    return streams.EventStream(body(), task)


def __getattr__(name: str) -> Any:
    """`app`, made when a server asks for it, so that importing this module reads no settings."""
    if name == "app":
        settings = get_settings()
        logs.configure(settings)
        return create_app(settings)
    raise AttributeError(name)
