"""Jobs at a server: the HTTP API's event stream, with a progress bar where a person watches."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import httpx
from tqdm import tqdm

from imagegen.cli import CommandError

#: Seconds for connecting; and without a byte while a job waits and runs, which may take an hour.
_TIMEOUT = httpx.Timeout(10.0, read=3600.0)


class Remote:
    """Runs jobs at the server of `url`.

    Args:
        key: its API key, if it wants one.
    """

    def __init__(self, url: str, key: str | None) -> None:
        if not url.startswith(("http://", "https://")):
            raise CommandError(f"--url: {url[:60]!r} must begin with http:// or https://")
        self._url, self._headers = url.rstrip("/"), {"Accept": "text/event-stream"}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"

    def run(self, fields: dict[str, Any]) -> dict[str, Any]:
        """One job's output.

        Raises:
            CommandError: the server refused the job, the job failed, or no answer came.
        """
        job = dict(fields)
        route = f"{self._url}/{job.pop('mode')}"
        try:
            with httpx.stream("POST", route, json=job, headers=self._headers, timeout=_TIMEOUT) as response:
                if response.status_code != 200:
                    response.read()
                    raise CommandError(_refusal(response))
                return _follow(response.iter_lines())
        except httpx.HTTPError as error:
            raise CommandError(f"{self._url}: no answer came ({type(error).__name__})") from None


def _refusal(response: httpx.Response) -> str:
    try:
        error = response.json()["error"]
        return f"{error['code']}: {error['message']}"
    except (ValueError, KeyError, TypeError):
        return f"{response.url}: HTTP {response.status_code}, and not an answer of image-gen"


def _follow(lines: Iterable[str]) -> dict[str, Any]:
    with tqdm(desc="steps", disable=not sys.stderr.isatty(), leave=False) as bar:
        for name, fields in _events(lines):
            if name == "step":
                bar.total = fields["total"]
                bar.update(fields["step"] - bar.n)
            elif name == "error":
                raise CommandError(f"{fields['code']}: {fields['message']}")
            elif name == "done":
                return fields
    raise CommandError("the server's answer ended before the image came")


def _events(lines: Iterable[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The events of a text/event-stream whose data are objects on one line."""
    name = ""
    for line in lines:
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))
