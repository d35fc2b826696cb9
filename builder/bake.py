"""Brings a model's weights into a Hugging Face cache, checked, trimmed and quantised, file by file.

    python -m builder.bake klein-9b --precision fp8 [--revision COMMIT] [--into HF_HOME] [--work FOLDER]

A weight file is fetched, compared with the hub's hash, made smaller by `builder.quantize` and deleted before the next
one comes: beside the result the disk holds one file of the original. Whatever was done stays done: a run that broke
off goes on at its file, a connection within the file. The snapshot is a real one for whoever looks into the cache, and
its manifest (`imagegen.manifest`) says what it was made of.

Exit status: 0 done, 2 wrong arguments, 3 no token or a wrong one, 4 licence not accepted, 5 disk full, 6 a file or a
model that is not what it must be, 7 the hub does not answer.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

from imagegen import manifest
from imagegen.errors import ConfigurationError
from imagegen.models import DATA_ENDINGS, ModelSpec, cache_folder, find_fault, get_model
from imagegen.settings import get_settings

if TYPE_CHECKING:
    from builder.quantize import Quantizer

Precision = Literal["bf16", "fp8", "int8"]

_ATTEMPTS = 4
#: What of a file's bytes is left of it, at most: 8-bit weights, with scales and what stays bf16; 27 of 36 layers.
_LEFT = {
    "transformer": {"fp8": 0.55, "int8": 0.55, "bf16": 1.0},
    "text_encoder": dict.fromkeys(get_args(Precision), 0.8),
}


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
            if path.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".py"):
                if path.suffix != ".py" and not any(
                    other.startswith(f"{path.parent}/") and other.endswith(".safetensors") for other in self.files
                ):
                    raise BrokenModel(f"{name} may hold code and is refused; the part has no safetensors")
                left_out.append(name)
        if left_out:
            _say(f"left out, since they may hold code: {', '.join(left_out)}")
        return [
            name
            for name in self.files
            if name in ("model_index.json", "LICENSE.md")
            or (name.count("/") == 1 and PurePosixPath(name).suffix in DATA_ENDINGS)
        ]

    def fetch(self, name: str, folder: Path) -> Path:
        """Brings a file into `folder` and compares it with the hub's hash.

        Raises:
            BakeError: it cannot be had, or it is another file; what came of it is deleted.
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
                _say(f"{name}: {fault}; again in {2**attempt} s")
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
        return _disk_full(0, 0)
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


def bake(
    spec: ModelSpec,
    precision: Precision,
    into: Path,
    work: Path,
    token: str | None,
    revision: str | None = None,
    files: int | None = None,
) -> Path:
    """Bakes a model, or goes on where an earlier run ended.

    Args:
        into: an HF_HOME.
        work: for files on their way; empty again when all is done.
        revision: a commit, a branch or a tag; None: what the spec pins, else the main branch when the first run began.
        files: weight files to add before it ends unfinished; None: all.

    Returns:
        The snapshot's folder, whole if it has a manifest.

    Raises:
        BakeError: it cannot be done; what was done stays.
    """
    # 1. The commit; a later run must not find that the branch has moved
    cache = cache_folder(into / "hub", str(spec.repository))
    ref = cache / "refs" / "main"
    known = ref.read_text().strip() if ref.exists() else None
    if known is not None and (snapshot := cache / "snapshots" / known).joinpath(manifest.NAME).exists():
        return snapshot
    hub = Hub.open(spec, token, revision or spec.revision or known)
    snapshot, source = cache / "snapshots" / hub.commit, work / f"{spec.name}-{hub.commit}"
    try:
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(hub.commit)

        # 2. All that is not weights
        for name in hub.data_files():
            if not name.endswith(".safetensors"):
                hub.fetch(name, source)
        quantizer = _quantizer(source, snapshot, precision)

        # 3. The weights, each made small and deleted before the next
        missing = [shard for shard in quantizer.shards() if not (snapshot / shard).exists()]
        _check_disk(hub, missing, precision, snapshot, source)
        for shard in missing[:files]:
            path = hub.fetch(shard, source)
            quantizer.add(shard)
            path.unlink()
            _say(f"{shard}: {hub.files[shard].size / 1e9:.2f} GB became {(snapshot / shard).stat().st_size / 1e9:.2f}")
        if files is not None and len(missing) > files:
            return snapshot

        # 4. What makes it a model, and the record of it
        quantizer.finish()
        if (fault := find_fault(snapshot)) is not None:
            raise BrokenModel(f"{spec.name}: {fault}")
        manifest.write(snapshot, spec.name, hub.repository, hub.commit, precision)
        shutil.rmtree(source)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise _disk_full(0, shutil.disk_usage(into).free) from error
        raise
    size = sum(file["size"] for file in (manifest.read(snapshot) or {})["files"].values())
    _say(f"{spec.name} of {hub.repository}@{hub.commit} is baked in {precision}: {size / 1e9:.1f} GB")
    return snapshot


def _quantizer(source: Path, target: Path, precision: Precision) -> Quantizer:
    from builder.quantize import Quantizer

    try:
        return Quantizer(source, target, precision)
    except ConfigurationError as error:
        raise BrokenModel(str(error)) from error


def _check_disk(hub: Hub, shards: list[str], precision: Precision, target: Path, source: Path) -> None:
    """Raises DiskFull where what is to come has no room: its result, and the largest file while it is on its way."""
    for folder in (target, source):
        folder.mkdir(parents=True, exist_ok=True)
    sizes = {shard: hub.files[shard].size for shard in shards if shard in hub.files}
    result = sum(size * _LEFT.get(shard.split("/")[0], {}).get(precision, 1.0) for shard, size in sizes.items())
    needs = {target: result, source: max(sizes.values(), default=0)}
    for folder in needs:
        same_disk = [other for other in needs if other.stat().st_dev == folder.stat().st_dev]
        needed, free = sum(needs[other] for other in same_disk), shutil.disk_usage(folder).free
        if needed > free:
            raise _disk_full(needed, free)


def _disk_full(needed: float, free: float) -> DiskFull:
    wanted = f"{needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free" if needed else "nothing is left of it"
    return DiskFull(f"the disk is too small: {wanted}; what was baked so far stays")


def _say(text: str) -> None:
    print(text, flush=True)


def _token(path: Path | None) -> str | None:
    """The token: of the build's secret where there is one, else of the environment."""
    if path is not None and path.exists():
        return path.read_text().strip() or None
    secret = get_settings().hugging_face_token
    return secret.get_secret_value() if secret else None


def main() -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m builder.bake", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a model of the registry; micro and none need no baking")
    parser.add_argument("--precision", choices=get_args(Precision), default="fp8", help="of the transformer")
    parser.add_argument("--revision", help="a commit of the model's repository; default: its main branch, recorded")
    parser.add_argument("--into", type=Path, help="default: HF_HOME")
    parser.add_argument("--work", type=Path, help="for files on their way; default: beside the result")
    parser.add_argument("--token-file", type=Path, help="default: HUGGING_FACE_TOKEN")
    parser.add_argument("--files", type=int, help="end after so many weight files; the next run goes on")
    parser.add_argument(
        "--optional", action="store_true", help="bake nothing where the model wants a token and there is none"
    )
    args = parser.parse_args()
    try:
        token = _token(args.token_file)
        into = args.into or get_settings().hf_home.expanduser()
        spec = get_model("micro" if args.model == "none" else args.model)
        if spec.repository is None:
            return 0
        if args.optional and spec.gated and token is None:
            _say(
                f"NO WEIGHTS ARE BAKED: {spec.name} is gated and there is no secret hf_token. The worker will download "
                "them at each start with its own HUGGING_FACE_TOKEN."
            )
            return 0
        bake(spec, args.precision, into, args.work or into / "bake", token, args.revision, args.files)
    except ConfigurationError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.status if isinstance(error, BakeError) else 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
