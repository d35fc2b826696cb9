"""The page for a browser: static files, which are open to everyone; what it asks of the API needs the key."""

from __future__ import annotations

from os import PathLike, stat_result
from pathlib import Path

from fastapi import Response
from fastapi.responses import FileResponse
from starlette.middleware.gzip import GZipMiddleware
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Scope

_FOLDER = Path(__file__).parent / "studio"
#: Where the page's files are, beside the page itself.
FILES_PATH = "/studio"
#: The page may load nothing from another server, and run and style nothing but its own files.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)


def page() -> Response:
    """The page itself."""
    headers = {"Content-Security-Policy": _POLICY, "Cache-Control": "no-cache", "Referrer-Policy": "no-referrer"}
    return FileResponse(_FOLDER / "index.html", headers=headers)


def page_files() -> ASGIApp:
    """The page's modules and styles, compressed for browsers that take that: all of them do."""
    return GZipMiddleware(_PageFiles())


class _PageFiles(StaticFiles):
    """A browser asks whether files have changed, so that it never mixes two versions."""

    def __init__(self) -> None:
        super().__init__(directory=_FOLDER)

    def file_response(
        self, full_path: str | PathLike[str], stat_result: stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        """One file, or 304 where the browser has it."""
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers["Cache-Control"] = "no-cache"
        return response
