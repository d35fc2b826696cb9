"""Debian's nginx before a server, with its defaults: the server block of docs/clients.md."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from tests.docs.pages import section
from tests.support import until


@contextlib.contextmanager
def nginx(folder: Path, backend: str, setting: str = "") -> Iterator[str]:
    """Gives its base URL. `setting` is put into its location."""
    page = section("docs/clients.md", "Behind a proxy")
    (block,) = re.findall(r"^```nginx\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    block = block.replace("listen 8080", f"listen 127.0.0.1:{port}").replace("http://localhost:7000", backend)
    block = block.replace("location / {", f"location / {{\n    {setting}")
    folder.mkdir(exist_ok=True)
    (folder / "nginx.conf").write_text(
        f"daemon off;\npid {folder}/pid;\nerror_log {folder}/error.log;\nevents {{}}\nhttp {{\naccess_log off;\n"
        f"client_body_temp_path {folder}/body;\nproxy_temp_path {folder}/proxy;\n{block}}}\n"
    )
    process = subprocess.Popen(["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf")])
    try:

        def answers() -> bool:
            assert process.poll() is None, (folder / "error.log").read_text()
            with contextlib.suppress(httpx.TransportError):
                return bool(httpx.get(f"http://127.0.0.1:{port}/health"))
            return False

        until(answers, every=0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(300)


def lines(url: str, path: str, fields: dict[str, object]) -> Iterator[tuple[float, str]]:
    """The time (of time.monotonic()) and the text of each line of a stream that is not empty."""
    headers = {"Accept": "text/event-stream"}
    with httpx.stream("POST", f"{url}{path}", json=fields, headers=headers, timeout=300) as answer:
        assert answer.status_code == 200, answer.read()
        for line in answer.iter_lines():
            if line:
                yield time.monotonic(), line
