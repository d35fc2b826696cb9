"""The callers' keys: those of IMAGEGEN_API_KEY, and those of the file IMAGEGEN_API_KEYS, which is read again when it
changes.

The file is TOML, with a table for each key:

    [alice]
    sha256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
    requests_per_minute = 60
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import time
import tomllib
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from imagegen.errors import ConfigurationError
from imagegen.settings import Settings

log = logging.getLogger(__name__)

#: Seconds between two looks at the file.
_LOOK = 1.0


class Key(BaseModel):
    """What one caller may have; None: no limit of its own."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    requests_per_minute: Annotated[int, Field(ge=1)] | None = None
    jobs_waiting: Annotated[int, Field(ge=1)] | None = None
    megapixels_per_day: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    priority: Annotated[int, Field(ge=-100, le=100)] = 0


class Keys:
    """The keys by their names.

    Raises:
        ConfigurationError: the file cannot be read, or is wrong.
    """

    def __init__(self, settings: Settings) -> None:
        self._own = {name: Key(sha256=_digest(key)) for name, key in settings.api_keys.items()}
        self._path = settings.api_keys_file
        self._file: dict[str, Key] = {}
        self._version: tuple[int, int, int] | None = None
        self._looked = 0.0
        if self._path is not None:
            self._version = _version(self._path)
            self._file = _read(self._path, self._own)

    def __bool__(self) -> bool:
        """Whether a key is needed."""
        return bool(self._own) or self._path is not None

    def name_of(self, given: str) -> str | None:
        """The name of a key that was sent; None where there is no such key. Each is compared in constant time."""
        self._reload()
        digest = _digest(given)
        found = [name for name, key in self._all() if hmac.compare_digest(key.sha256, digest)]
        return found[0] if found else None

    def get(self, name: str) -> Key | None:
        """A key by its name; None for a caller without one."""
        return self._own.get(name) or self._file.get(name)

    def _all(self) -> list[tuple[str, Key]]:
        return [*self._own.items(), *self._file.items()]

    def _reload(self) -> None:
        """Reads the file again where it has changed; one that is wrong changes nothing, and the log says so."""
        now = time.monotonic()
        if self._path is None or now - self._looked < _LOOK:
            return
        self._looked = now
        try:
            if (version := _version(self._path)) != self._version:
                self._version = version
                self._file = _read(self._path, self._own)
                log.info("%d keys were read again", len(self._file))
        except ConfigurationError as error:
            log.error("the keys stay as they were: %s", error)


def _digest(key: str) -> str:
    """SHA-256 in hexadecimal digits. Headers are bytes that were read as latin-1."""
    return hashlib.sha256(key.encode("latin-1", "replace")).hexdigest()


def _version(path: Path) -> tuple[int, int, int]:
    try:
        found = path.stat()
    except OSError as error:
        raise ConfigurationError(f"IMAGEGEN_API_KEYS: {path} cannot be read ({error.strerror})") from None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _read(path: Path, own: dict[str, Key]) -> dict[str, Key]:
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"IMAGEGEN_API_KEYS: {path} cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise ConfigurationError(f"IMAGEGEN_API_KEYS: {path} is not TOML: {error}") from None
    keys = {}
    for name, table in tables.items():
        if not re.fullmatch(r"[\w.@-]{1,40}", name, re.ASCII):
            raise ConfigurationError(
                f"IMAGEGEN_API_KEYS: {name[:60]!r} is no name; it is 1 to 40 letters, digits, '.', '@', '_' and '-'"
            )
        if name in own:
            raise ConfigurationError(f"IMAGEGEN_API_KEYS: {name} is a key of IMAGEGEN_API_KEY too")
        try:
            keys[name] = Key.model_validate(table)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            field = ".".join(map(str, first["loc"])) or "the table"
            raise ConfigurationError(f"IMAGEGEN_API_KEYS: {name}: {field}: {first['msg']}") from None
    if len({key.sha256 for key in [*own.values(), *keys.values()]}) < len(own) + len(keys):
        raise ConfigurationError("IMAGEGEN_API_KEYS: two names have the same key")
    return keys
