"""A model's repository on the hub: which of its files are data, and each of them whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import time
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import ClassVar

from imagegen.errors import ConfigurationError
from imagegen.models import ModelSpec
from imagegen.weights import manifest
from imagegen.weights.sources import DATA_ENDINGS

_ATTEMPTS = 4
#: What may hold code: pickled weights, and code itself.
_CODE_ENDINGS = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".py")


class BakeError(ConfigurationError):
    """Nothing usable was baked; `status` is what the process ends with."""

    status: ClassVar[int]


class TokenFault(BakeError):
    """There is no token, or the hub does not know it."""

    status = 3


class LicenceFault(BakeError):
    """The token's account has not accepted the model's licence."""

    status = 4


class DiskFull(BakeError):
    """There is no room for the next file and what becomes of it."""

    status = 5


class BrokenModel(BakeError):
    """A file is not what the hub says it is, or the model is not one that may be baked."""

    status = 6


class Unreachable(BakeError):
    """The hub does not answer, or not with what was asked for."""

    status = 7


@dataclass(frozen=True)
class HubFile:
    """A file as the hub lists it: bytes, and the SHA-256 of a large one or git's SHA-1 of a small one."""

    size: int
    sha256: str | None
    blob_id: str


@dataclass(frozen=True)
class Hub:
    """A repository of the hub at one commit."""

    spec: ModelSpec
    repository: str
    token: str | None
    commit: str
    files: dict[str, HubFile]

    @classmethod
    def open(cls, spec: ModelSpec, token: str | None, revision: str | None) -> Hub:
        """Lists the model's repository at `revision`, its main branch where that is None.

        Raises:
            BakeError: the hub refuses, or does not answer.
        """
        from huggingface_hub import HfApi

        if spec.repository is None:
            raise BrokenModel(f"{spec.name} is part of the code and needs no baking")
        if spec.gated and not token:
            raise TokenFault(
                f"{spec.name} is a gated model: accept its licence ({spec.licence}) at {spec.page} and give a token of "
                "your account, as the build's secret hf_token or in HUGGING_FACE_TOKEN"
            )
        try:
            info = HfApi(token=token or False).model_info(spec.repository, revision=revision, files_metadata=True)
        except Exception as error:
            raise _translate(error, spec) from error
        files = {
            file.rfilename: HubFile(file.size or 0, file.lfs.sha256 if file.lfs else None, file.blob_id or "")
            for file in info.siblings or []
        }
        return cls(spec, spec.repository, token, str(info.sha), files)

    def data_files(self) -> list[str]:
        """The files that are read as data: JSON, text and safetensors, one folder down; and the licence, which goes
        where the weights go.

        Raises:
            BrokenModel: a part has weights in another format alone, which would be code.
        """
        left_out = []
        for name in self.files:
            path = PurePosixPath(name)
            if path.suffix in _CODE_ENDINGS:
                if path.suffix != ".py" and not any(
                    other.startswith(f"{path.parent}/") and other.endswith(".safetensors") for other in self.files
                ):
                    raise BrokenModel(f"{name} may hold code and is refused; the part has no safetensors")
                left_out.append(name)
        if left_out:
            say(f"left out, since they may hold code: {', '.join(left_out)}")
        return [
            name
            for name in self.files
            if name in ("model_index.json", "LICENSE.md")
            or (name.count("/") == 1 and PurePosixPath(name).suffix in DATA_ENDINGS)
        ]

    def fetch(self, name: str, folder: Path) -> Path:
        """Brings a file into `folder` and compares it with the hub's hash.

        Raises:
            BakeError: it cannot be downloaded, or it is another file; the partial file is deleted.
        """
        from huggingface_hub import hf_hub_download

        if name not in self.files:
            raise BrokenModel(f"{name} is named by the model and not in {self.repository}")
        for attempt in range(_ATTEMPTS):
            try:
                path = Path(
                    hf_hub_download(
                        self.repository, name, revision=self.commit, local_dir=folder, token=self.token or False
                    )
                )
                break
            except Exception as error:
                fault = _translate(error, self.spec)
                if not isinstance(fault, Unreachable) or attempt == _ATTEMPTS - 1:
                    raise fault from error
                say(f"{name}: {fault}; again in {2**attempt} s")
                time.sleep(2**attempt)
        if not _is_whole(path, self.files[name]):
            path.unlink()
            raise BrokenModel(f"{name} came with another hash than {self.repository} gives for it; start again")
        return path


def _is_whole(path: Path, expected: HubFile) -> bool:
    if path.stat().st_size != expected.size:
        return False
    if expected.sha256 is not None:
        return manifest.sha256(path) == expected.sha256
    content = path.read_bytes()  # as git hashes a blob
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest() == expected.blob_id


def _translate(error: Exception, spec: ModelSpec) -> BakeError:
    """The error for what the hub's client raised; it lets those of several HTTP libraries through."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return disk_full()
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401:
        return TokenFault(f"{spec.name}: the hub refuses the token, or wants one; {spec.page} is where it is for")
    if status == 403 or isinstance(error, GatedRepoError):
        return LicenceFault(
            f"{spec.name}: the token's account may not read {spec.repository}: accept the licence ({spec.licence}) at "
            f"{spec.page}; a fine-grained token must also be allowed to read gated repositories"
        )
    if isinstance(error, RepositoryNotFoundError | RevisionNotFoundError):
        return BrokenModel(f"{spec.name}: {spec.repository} is not there, or not at this commit")
    return Unreachable(f"{spec.name}: the hub did not answer as it should ({type(error).__name__})")


def disk_full(needed: float = 0, free: float = 0) -> DiskFull:
    """The error, in bytes; without them, for a disk that has nothing left."""
    wanted = f"{needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free" if needed else "nothing is left of it"
    return DiskFull(f"the disk is too small: {wanted}; what was baked so far stays")


def say(text: str) -> None:
    """A line of the build's log."""
    print(text, flush=True)
