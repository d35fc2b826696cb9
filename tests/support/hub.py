"""A stand-in for the Hugging Face hub on loopback, for the real `huggingface_hub` client (HF_ENDPOINT)."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
#: What is a large file here, with a SHA-256 of its own.
LARGE = 10_000
#: Bytes that the client writes at once; 10 MB in earnest.
CHUNK = 65_536


class Hub:
    """The files of every repository, and the days on which it is not itself.

    `tokens` holds the status that a token is answered with: 200, 403 where its account did not accept the licence; one
    that is not in it is unknown. None: nobody needs one.
    """

    def __init__(self, files: Mapping[str, bytes | memoryview]) -> None:
        self.files = dict(files)
        self.commit = COMMIT
        self.url = ""  # where it is served
        self.tokens: dict[str, int] | None = None
        #: What is sent instead of a file, while the listing stays as it is.
        self.sent: dict[str, bytes] = {}
        #: Bytes of a file after which the connection is cut, once.
        self.cuts: dict[str, int] = {}
        #: The files that are never answered.
        self.hangs_up_on: set[str] = set()
        #: Files that come half, and the other half when the event is set.
        self.halves: dict[str, threading.Event] = {}
        #: (file, Range) of each GET.
        self.gets: list[tuple[str, str | None]] = []

    def entry(self, name: str) -> dict[str, Any]:
        data = self.files[name]
        entry = {"size": len(data), "oid": hashlib.sha1(b"blob %d\0" % len(data) + bytes(data)).hexdigest()}
        if len(data) >= LARGE:
            entry["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
        return entry

    def info(self, revision: str | None) -> dict[str, Any]:
        siblings = []
        for name in self.files:
            entry = self.entry(name)
            siblings.append({"rfilename": name, "blobId": entry.pop("oid"), **entry})
        return {
            "_id": "1",
            "id": "a/b",
            "modelId": "a/b",
            "sha": _commit(revision) or self.commit,
            "private": False,
            "siblings": siblings,
        }

    def tree(self) -> list[dict[str, Any]]:
        entries = []
        for name in self.files:
            entry = self.entry(name)
            if "lfs" in entry:
                entry["lfs"]["oid"] = entry["lfs"].pop("sha256")
            entries.append({"type": "file", "path": name, **entry})
        return entries


def _commit(revision: str | None) -> str | None:
    return revision if revision and re.fullmatch("[0-9a-f]{40}", revision) else None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if match := re.match(r"/api/models/[^/]+/[^/]+(?:/revision/([^/]+))?$", path):
            return self._json(self.hub.info(match[1]))
        if re.match(r"/api/models/[^/]+/[^/]+/tree/", path):
            return self._json(self.hub.tree())
        match = re.match(r"/[^/]+/[^/]+/resolve/([^/]+)/(.+)", path)
        if match is None or match[2] not in self.hub.files:
            return self._refuse(404, "EntryNotFound")
        if (status := self._status()) != 200:
            return self._refuse(status, "GatedRepo")
        return self._file(match[2], _commit(match[1]) or self.hub.commit)

    def _status(self) -> int:
        if self.hub.tokens is None:
            return 200
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        return self.hub.tokens.get(token, 401)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _json(self, content: object) -> None:
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _file(self, name: str, commit: str) -> None:
        entry, data = self.hub.entry(name), self.hub.sent.get(name, self.hub.files[name])
        asked = self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").partition("-")[0]) if asked else 0
        if self.command == "GET":
            self.hub.gets.append((name, asked))
            if name in self.hub.hangs_up_on:
                return self._hang_up()
        self.send_response(206 if asked else 200)
        self.send_header("X-Repo-Commit", commit)
        self.send_header("ETag", f'"{entry["lfs"]["sha256"] if "lfs" in entry else entry["oid"]}"')
        self.send_header("Content-Length", str(len(data) - start))
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        if (rest := self.hub.halves.get(name)) is not None:
            self.wfile.write(data[start : len(data) // 2])
            start = len(data) // 2
            rest.wait(300)
        end = self.hub.cuts.pop(name, None)
        self.wfile.write(memoryview(data)[start:end])
        if end is not None:
            self._hang_up()

    def _hang_up(self) -> None:
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True


@contextmanager
def serve(hub: Hub) -> Iterator[str]:
    """The hub's address, while the block runs."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def client_of(url: str) -> Iterator[None]:
    """The client of this process asks `url`, as HF_ENDPOINT would have made it from the start."""
    from huggingface_hub import constants

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", url)
        patch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", CHUNK)  # what is lost of a file where it breaks off
        patch.setattr(constants, "HF_HUB_OFFLINE", False)  # a service that found its weights has set it
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
        yield
