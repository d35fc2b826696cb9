"""The HTTP server: the native API, OpenAI's images API, and a page for the browser.

    uvicorn imagegen.server.main:app --http imagegen.server.protocol:Protocol --ws none --loop asyncio \\
        --no-proxy-headers --no-access-log --host 127.0.0.1 --port 7000

A route translates its protocol and nothing else; `imagegen.engine.service` runs the job.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from concurrent.futures import Future
from contextlib import asynccontextmanager, suppress
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.routing import Match
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from imagegen import __version__, logs
from imagegen.engine.service import Service
from imagegen.errors import ConfigurationError, ImageGenError, InvalidInput
from imagegen.jobs.jobs import Jobs
from imagegen.server import bfl, document, http, native, openai, status
from imagegen.server import jobs as jobs_routes
from imagegen.server.connection_limits import Limits
from imagegen.server.guard import Guard
from imagegen.server.page import FILES_PATH, page_files
from imagegen.settings import Settings, get_settings

log = logging.getLogger(__name__)

_DESCRIPTION = (
    "Generates and edits images with FLUX.2 [klein]. `/generate` and `/edit` answer with JSON, the image itself or "
    "events of progress; `/v1` is OpenAI's images API."
)


def create_app(settings: Settings | None = None, service: Service | None = None) -> FastAPI:
    """The application; its service, one of its own where none is given, is `app.state.service`."""
    settings = settings or get_settings()
    service = service or Service(settings)
    jobs = Jobs(settings, service)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Limits]]:
        if settings.preload_models:
            service.start().add_done_callback(_log_failure)
        else:
            with suppress(ConfigurationError):  # the first job will say so
                await asyncio.to_thread(service.choose)
        await jobs.start()
        yield {"limits": Limits(settings)}  # the protocol reads it
        await jobs.close()
        await asyncio.to_thread(service.close)

    # /docs with its scripts from this server. Swagger UI would else show the document to swagger.io, to validate it.
    options = {"openapi_url": "/openapi.json", "swagger_ui_parameters": {"validatorUrl": None}}
    app = (FastAPIOffline if settings.docs else FastAPI)(
        title="image-gen",
        version=__version__,
        description=_DESCRIPTION,
        lifespan=lifespan,
        **(options if settings.docs else {"openapi_url": None}),
    )
    app.state.service = service
    app.state.jobs = jobs
    #: Jobs of a connection, and whose they are, by the ids of their requests.
    app.state.running = {}
    app.add_middleware(Guard, settings=settings, metrics=service.metrics, limits=jobs.limits)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=[origin.strip() for origin in settings.cors_origins.split(",")],
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],  # clients send their own beside a key, as OpenAI's does x-stainless-*
            expose_headers=["X-Request-ID", "X-Seed", "X-Model", "X-Warnings", "Retry-After"],
        )

    if settings.proxies:
        app.add_middleware(ProxyHeadersMiddleware, trusted_hosts=settings.proxies)

    @app.exception_handler(ImageGenError)
    async def contract_error(request: Request, error: ImageGenError) -> Response:
        return http.error_response(error, request.url.path)

    @app.exception_handler(HTTPException)
    async def framework_error(request: Request, error: HTTPException) -> Response:
        answer = http.error_response(http.framework_error(error, request.url.path), request.url.path)
        answer.headers.update(error.headers or {})
        if error.status_code == 405:  # Starlette knows the methods of the first route alone
            answer.headers["Allow"] = ", ".join(_methods(app, request))
        return answer

    @app.exception_handler(RequestValidationError)
    async def query_error(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"][1:]) or "request"
        return http.error_response(InvalidInput(f"{name}: {http.what_is_wrong(first)}", name), request.url.path)

    for module in (status, native, jobs_routes, bfl, openai):
        app.include_router(module.router)
    app.mount(FILES_PATH, page_files())
    app.openapi = document.openapi(app, service)  # type: ignore[method-assign]
    return app


def _methods(app: FastAPI, request: Request) -> list[str]:
    """The methods of a path; below a mounted folder, whose files no route of its own has, GET. HEAD is as GET
    (`Guard`)."""
    scopes = {method: {**request.scope, "method": method} for method in ("DELETE", "GET", "POST")}
    found = [name for name in scopes if any(route.matches(scopes[name])[0] == Match.FULL for route in app.routes)]
    found = found or ["GET"]
    return sorted([*found, "HEAD"] if "GET" in found else found)


def _log_failure(loading: Future[Any]) -> None:
    """Says why the model could not be loaded; until a job asks for it, /health alone would know."""
    error = None if loading.cancelled() else loading.exception()
    if error is not None:
        why = str(error) if isinstance(error, ConfigurationError) else logs.places(error)
        log.error("the model could not be loaded: %s", why)


def __getattr__(name: str) -> Any:
    """`app`, made when a server asks for it, so that importing this module reads no settings."""
    if name == "app":
        settings = get_settings()
        logs.configure(settings)
        return create_app(settings)
    raise AttributeError(name)
