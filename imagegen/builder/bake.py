"""Brings a model's weights into a Hugging Face cache, checked, trimmed and quantised, file by file.

    python -m imagegen.builder.bake klein-9b --precision fp8 [--revision COMMIT] [--into HF_HOME] [--work FOLDER]

A weight file is fetched, compared with the hub's hash, made smaller by `imagegen.builder.quantize` and deleted before
the next one comes: beside the result the disk holds one file of the original. Whatever was done stays done: a run that
broke off goes on at its file, a connection within the file. The snapshot is a real one for whoever looks into the
cache, and its manifest (`imagegen.weights.manifest`) says what it was made of.

Exit status: 0 done, 2 wrong arguments, 3 no token or a wrong one, 4 licence not accepted, 5 disk full, 6 a file or a
model that is not what it must be, 7 the hub does not answer.
"""

from __future__ import annotations

import argparse
import errno
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from imagegen.builder.hub import BakeError, BrokenModel, Hub, disk_full, say
from imagegen.errors import ConfigurationError
from imagegen.models import ModelSpec, get_model
from imagegen.settings import get_settings
from imagegen.weights import manifest
from imagegen.weights.sources import cache_folder, find_fault

if TYPE_CHECKING:
    from imagegen.builder.quantize import Quantizer

Precision = Literal["bf16", "fp8", "int8"]

#: What of a file's bytes is left of it, at most: 8-bit weights, with scales and what stays bf16; 27 of 36 layers.
_LEFT = {
    "transformer": {"fp8": 0.55, "int8": 0.55, "bf16": 1.0},
    "text_encoder": dict.fromkeys(get_args(Precision), 0.8),
}
#: The worker that reads them is another user, and safetensors writes for its own alone.
_MODE = 0o644


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
    if known is not None and revision in (None, known):
        snapshot = cache / "snapshots" / known
        if (record := manifest.read(snapshot)) is not None:
            if record["precision"] != precision:
                raise BrokenModel(f"{snapshot} is baked in {record['precision']} already; delete it first")
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
            (snapshot / shard).chmod(_MODE)  # now: in a later layer of an image it would be the whole file again
            path.unlink()
            say(f"{shard}: {hub.files[shard].size / 1e9:.2f} GB became {(snapshot / shard).stat().st_size / 1e9:.2f}")
        if files is not None and len(missing) > files:
            return snapshot

        # 4. What makes it a model, and the record of it
        quantizer.finish()
        if (fault := find_fault(snapshot)) is not None:
            raise BrokenModel(f"{spec.name}: {fault}")
        manifest.write(snapshot, spec.name, hub.repository, hub.commit, precision)
        for small in (path for path in snapshot.rglob("*.*") if path.suffix != ".safetensors"):
            small.chmod(_MODE)
        shutil.rmtree(source)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise disk_full() from error
        raise
    size = sum(file["size"] for file in (manifest.read(snapshot) or {})["files"].values())
    say(f"{spec.name} of {hub.repository}@{hub.commit} is baked in {precision}: {size / 1e9:.1f} GB")
    return snapshot


def _quantizer(source: Path, target: Path, precision: Precision) -> Quantizer:
    from imagegen.builder.quantize import Quantizer

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
            raise disk_full(needed, free)


def _token(path: Path | None) -> str | None:
    """The token: of the build's secret where there is one, else of the environment."""
    if path is not None and path.exists():
        return path.read_text().strip() or None
    secret = get_settings().hugging_face_token
    return secret.get_secret_value() if secret else None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("model", help="a model of the registry; micro and none need no baking")
    parser.add_argument("--precision", choices=get_args(Precision), default="fp8", help="of the transformer")
    parser.add_argument("--revision", help="a commit of the model's repository; default: its main branch, recorded")
    parser.add_argument("--into", type=Path, metavar="DIR", help="default: HF_HOME")
    parser.add_argument("--work", type=Path, metavar="DIR", help="for files on their way; default: beside the result")
    parser.add_argument("--token-file", type=Path, metavar="FILE", help="default: HUGGING_FACE_TOKEN")
    parser.add_argument("--files", type=int, metavar="N", help="end after N weight files; the next run goes on")
    parser.add_argument(
        "--optional", action="store_true", help="bake nothing where the model wants a token and there is none"
    )


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit status.

    Raises:
        ConfigurationError: a setting or the model's name is wrong; BakeError: nothing usable was baked.
    """
    token = _token(args.token_file)
    into = args.into or get_settings().hf_home.expanduser()
    spec = get_model("micro" if args.model == "none" else args.model)
    if spec.repository is None:
        say(f"{args.model}: nothing is baked")
        return 0
    if args.optional and spec.gated and token is None:
        say(
            f"NO WEIGHTS ARE BAKED: {spec.name} is gated and there is no secret hf_token. The worker will download "
            "them at each start with its own HUGGING_FACE_TOKEN."
        )
        return 0
    bake(spec, args.precision, into, args.work or into / "bake", token, args.revision, args.files)
    return 0


def main() -> int:
    """The command line of the image's build, which has this package's few files alone; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m imagegen.builder.bake",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser)
    try:
        return run(parser.parse_args())
    except ConfigurationError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.status if isinstance(error, BakeError) else 2


if __name__ == "__main__":
    sys.exit(main())
