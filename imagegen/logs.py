"""What the worker says of its work: one line a job, as JSON under RunPod, with the request's id; never its words.

Prompts, images, tokens, keys and signed URLs stay out in three ways. Our own lines are written without them. Of
libraries only warnings are let through (httpx, urllib3, botocore and PIL log URLs, headers and metadata below
that; RunPod's SDK tells every output). And what is let through loses the worker's secrets, the queries of URLs,
anything as long as an image in base64, and the messages of exceptions, which repeat what a caller sent.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

from pydantic import SecretStr

from imagegen.settings import Settings

log = logging.getLogger("imagegen")

#: What is known of the request that this context works for; `requestId` is RunPod's name for its id.
_request: ContextVar[dict[str, Any] | None] = ContextVar("request", default=None)

_OURS = ("imagegen", "handler")
#: Their lines at INFO say that a server or a worker starts and ends.
_KNOWN = ("uvicorn", "runpod")
#: Libraries that write to stderr by themselves once they are imported.
_LOUD = ("diffusers", "transformers", "huggingface_hub", "uvicorn", "uvicorn.access", "uvicorn.error")
#: They warn while they are imported: of kernels for other GPUs, of what they will deprecate in each other.
_NERVOUS = ("torchao", "diffusers.quantizers.torchao", "torch.utils._pytree")
_HIDDEN = "***"
#: Credentials before a host, a query (with or without its URL), and what is as long as an image or a token.
_PATTERNS = (
    (re.compile(r"//[^/\s@'\"]+@"), f"//{_HIDDEN}@"),
    (re.compile(r"\?[^\s'\"<>?]*=[^\s'\"<>]*"), f"?{_HIDDEN}"),
    (re.compile(r"[A-Za-z0-9+/_-]{200,}={0,2}"), _HIDDEN),
)


def configure(settings: Settings) -> None:
    """Sets up the logging of this process, on stderr. For a process of ours; not for a program that imports us."""
    level = logging.getLevelNamesMapping()[settings.log_level]
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter(settings))
    handler.addFilter(LevelFilter(level))
    logging.basicConfig(level=max(level, logging.WARNING), handlers=[handler], force=True)
    for name in _OURS:
        logging.getLogger(name).setLevel(level)
    for name in _KNOWN:
        logging.getLogger(name).setLevel(max(level, logging.INFO))
    for name in _NERVOUS:
        logging.getLogger(name).setLevel(max(level, logging.ERROR))
    logging.captureWarnings(True)
    adopt()
    sys.excepthook = _on_crash
    threading.excepthook = lambda crash: _on_crash(crash.exc_type, crash.exc_value, crash.exc_traceback)


def adopt() -> None:
    """Sends the lines of libraries that have a handler of their own through ours; call it after importing them.

    Does nothing in a program that only imports us, and has its own way with logs.
    """
    if not any(isinstance(handler.formatter, _Formatter) for handler in logging.root.handlers):
        return
    for name in _LOUD:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True


@contextmanager
def request(identity: str, **facts: object) -> Iterator[None]:
    """Logs one line when the request ends, with all that was noted meanwhile; every line until then has its id.

    At INFO for a job and for what was refused; at DEBUG for the rest, which is mostly asked by machines.
    """
    known: dict[str, Any] = {"requestId": identity[:100], **facts}
    token, begun = _request.set(known), time.monotonic()
    try:
        yield
    finally:
        _request.reset(token)
        known["seconds"] = round(time.monotonic() - begun, 4)
        worth = "mode" in known or known.get("outcome", "ok") != "ok"
        log.log(logging.INFO if worth else logging.DEBUG, "request", extra={"facts": known})


def note(**facts: object) -> None:
    """Adds to the line of the request that is being worked for, if there is one. Never prompts, images or keys."""
    known = _request.get()
    if known is not None:
        known.update(facts)


def noted(*names: str) -> dict[str, Any]:
    """What was noted under these names, of those that were."""
    known = _request.get() or {}
    return {name: known[name] for name in names if name in known}


def places(error: BaseException) -> str:
    """The classes and frames of an error and its causes, the first first; without messages."""
    chain: list[str] = []
    cause: BaseException | None = error
    while cause is not None and len(chain) < 5:
        chain.append(f"{''.join(traceback.format_tb(cause.__traceback__))}{type(cause).__qualname__}")
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return "\nwhich led to\n".join(reversed(chain))


class LevelFilter(logging.Filter):
    """Lets a record through by whose it is, whatever level its logger was given by its owner or the environment."""

    def __init__(self, level: int) -> None:
        super().__init__()
        self._level = level

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name == "uvicorn.access":
            return False  # each HTTP request has a line of ours, without its query
        owner = record.name.partition(".")[0]
        floor = logging.NOTSET if owner in _OURS else logging.INFO if owner in _KNOWN else logging.WARNING
        return record.levelno >= max(floor, self._level)


class _Formatter(logging.Formatter):
    """A record as a line of JSON, or as text for a person."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self._json = settings.log_format == "json" or (settings.log_format == "auto" and settings.runpod_id is not None)
        values = (value.get_secret_value() for _, value in settings if isinstance(value, SecretStr))
        self._secrets = sorted(
            {value for value in (*values, *settings.api_keys.values()) if value}, key=len, reverse=True
        )

    def format(self, record: logging.LogRecord) -> str:
        facts = dict(getattr(record, "facts", {}))
        facts = {name: self._hide(value) if isinstance(value, str) else value for name, value in facts.items()}
        if (known := _request.get()) is not None:
            facts.setdefault("requestId", known["requestId"])
        message = self._hide(_message(record))
        if record.exc_info and record.exc_info[1] is not None:
            message += f"\n{self._hide(places(record.exc_info[1]))}"
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        if self._json:
            line = {"time": moment, "level": record.levelname, "logger": record.name, "message": message}
            return json.dumps({**line, **facts}, default=str)
        return " ".join([f"{moment} {record.levelname} {record.name}: {message}", *_pairs(facts)])

    def _hide(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, _HIDDEN)
        for pattern, instead in _PATTERNS:
            text = pattern.sub(instead, text)
        return text


def _message(record: logging.LogRecord) -> str:
    """What a record says. asyncio's and Python's own warnings go on with the repr of objects, messages and all."""
    try:
        text = record.getMessage()
    except Exception:  # noqa: BLE001 - whatever somebody's % does not like; logging would print the arguments
        return f"a message that cannot be formatted ({record.pathname}:{record.lineno})"
    return text.partition("\n")[0] if record.name in ("asyncio", "py.warnings") else text


def _pairs(facts: Mapping[str, Any]) -> list[str]:
    return [f"{name}={json.dumps(value, default=str)}" for name, value in facts.items()]


def _on_crash(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    if error is None or issubclass(kind, KeyboardInterrupt | SystemExit):
        return
    log.critical("%s ended by an error", threading.current_thread().name, exc_info=(kind, error, trace))
