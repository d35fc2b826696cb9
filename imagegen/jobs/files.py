"""The bytes of the jobs: references that wait, and images that are done. As files in the folder, else in memory."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Protocol

from imagegen.errors import ConfigurationError, Expired
from imagegen.jobs import database


class Files(Protocol):
    """Bytes by name. A name begins with the id of its job."""

    def write(self, name: str, data: bytes) -> None:
        """Keeps bytes, whole or not at all.

        Raises:
            StoreFailed: the disk is full, or broken.
        """

    def read(self, name: str) -> bytes:
        """The bytes.

        Raises:
            Expired: they are not there.
            StoreFailed: they cannot be read.
        """

    def open(self, name: str) -> BinaryIO:
        """The bytes as a file; raises what `read` does."""

    def delete(self, names: Iterable[str]) -> None:
        """Forgets names; those that are not there are passed over."""

    def inputs(self, age: float = 0.0) -> list[str]:
        """The names of the references that have been kept for `age` seconds."""

    def images(self, job: str) -> list[str]:
        """The names of the images of a job, parts of files too."""


class MemoryFiles:
    """Bytes that end with the process."""

    def __init__(self) -> None:
        self._kept: dict[str, bytes] = {}

    def write(self, name: str, data: bytes) -> None:
        """Keeps bytes."""
        self._kept[name] = data

    def read(self, name: str) -> bytes:
        """The bytes.

        Raises:
            Expired: they are not there.
        """
        try:
            return self._kept[name]
        except KeyError:
            raise Expired("the image is not kept any more") from None

    def open(self, name: str) -> BinaryIO:
        """The bytes as a file; no copy of them."""
        return io.BytesIO(self.read(name))

    def delete(self, names: Iterable[str]) -> None:
        """Forgets names."""
        for name in names:
            self._kept.pop(name, None)

    def inputs(self, age: float = 0.0) -> list[str]:
        """None has outlived a process."""
        return []

    def images(self, job: str) -> list[str]:
        """The names of the images of a job."""
        return [name for name in list(self._kept) if name.startswith(f"{job}.") and not is_input(name)]


class FolderFiles:
    """Files below a folder: references in `inputs`, images in one of 256 folders in `images`, by their jobs' ids.

    Raises:
        ConfigurationError: it cannot be written to.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            for name in ("inputs", "images"):
                (folder / name).mkdir(mode=0o700, parents=True, exist_ok=True)
            probe = folder / "inputs" / ".probe"
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise ConfigurationError(f"IMAGEGEN_JOBS_DIR: cannot be written to ({error.strerror})") from None

    def write(self, name: str, data: bytes) -> None:
        """Writes a file, whole or not at all, and waits for the disk.

        Raises:
            StoreFailed: the disk is full, or broken.
        """
        path = self._path(name)
        part = path.with_name(path.name + ".part")
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
            _sync(path.parent)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise database.failed(error) from error

    def read(self, name: str) -> bytes:
        """The bytes of a file.

        Raises:
            Expired: it is not there.
            StoreFailed: it cannot be read.
        """
        with self.open(name) as file:
            try:
                return file.read()
            except OSError as error:
                raise database.failed(error) from error

    def open(self, name: str) -> BinaryIO:
        """The file; raises what `read` does."""
        try:
            return self._path(name).open("rb")
        except FileNotFoundError:
            raise Expired("the image is not kept any more") from None
        except OSError as error:
            raise database.failed(error) from error

    def delete(self, names: Iterable[str]) -> None:
        """Deletes files; those that are not there are passed over.

        Raises:
            StoreFailed: one cannot be deleted.
        """
        try:
            for name in names:
                self._path(name).unlink(missing_ok=True)
        except OSError as error:
            raise database.failed(error) from error

    def inputs(self, age: float = 0.0) -> list[str]:
        """The names of the references that have been kept for `age` seconds, parts of files too."""
        oldest = time.time() - age
        names = []
        for path in (self._folder / "inputs").iterdir():
            with suppress(FileNotFoundError):  # another server has just deleted it
                if path.stat().st_mtime <= oldest:
                    names.append(path.name)
        return names

    def images(self, job: str) -> list[str]:
        """The names of the images of a job, parts of files too."""
        return [path.name for path in (self._folder / "images" / job[:2]).glob(f"{job}.*")]

    def _path(self, name: str) -> Path:
        if is_input(name):
            return self._folder / "inputs" / name
        return self._folder / "images" / name[:2] / name


def input_name(job: str, field: str) -> str:
    """The name of a reference: a job's id, and its field, such as "images.0"."""
    return f"{job}.in.{field}"


def image_name(job: str, number: int, extension: str) -> str:
    """The name of an image of a job."""
    return f"{job}.{number}.{extension}"


def is_input(name: str) -> bool:
    """Whether it is a reference's name."""
    return ".in." in name


def _sync(folder: Path) -> None:
    """Waits until the disk knows what is in a folder."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
