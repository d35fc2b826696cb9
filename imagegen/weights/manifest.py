"""What was baked into a model's folder, so that it can be known again: its files, their sizes and their hashes.

    python -m imagegen.weights.manifest FOLDER...      reads every byte and compares the hashes

At start the sizes are compared: that finds what was cut off and costs nothing. To read 20 GB for their hashes would
cost each cold start seconds of a GPU; they were checked when the image was pulled.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

#: The file's name, beside model_index.json.
NAME = "manifest.json"


def write(folder: Path, model: str, repository: str, commit: str, precision: str) -> None:
    """Hashes what is in `folder` and writes its manifest.

    Args:
        model: the name in the registry.
        repository, commit: what it was made of.
        precision: of the transformer's weights.
    """
    files = {
        name: {"size": (folder / name).stat().st_size, "sha256": sha256(folder / name)}
        for name in sorted(_names(folder))
    }
    content = {"model": model, "repository": repository, "commit": commit, "precision": precision, "files": files}
    unfinished = folder / f"{NAME}.part"
    unfinished.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    unfinished.replace(folder / NAME)


def find_fault(folder: Path, model: str | None = None) -> str | None:
    """What in `folder` is not as its manifest says, by names and sizes; None where nothing is, or there is none.

    Args:
        model: the name of the model that is wanted; None: any.
    """
    content = read(folder)
    if content is None:
        return None
    if model is not None and content["model"] != model:
        return f"it was baked as {content['model']}"
    return next(_faults(folder, content, lambda path, entry: None), None)


def verify(folder: Path) -> list[str]:
    """Every file that is not as the manifest says, by its hash.

    Raises:
        OSError, ValueError: there is no manifest, or it is broken.
    """
    content = read(folder)
    if content is None:
        raise FileNotFoundError(f"{folder} has no {NAME}")
    return list(_faults(folder, content, lambda path, entry: _hash_fault(path, entry["sha256"])))


def read(folder: Path) -> dict[str, Any] | None:
    """A folder's manifest, None where it has none."""
    try:
        content: dict[str, Any] = json.loads((folder / NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return content


def sha256(path: Path) -> str:
    """A file's SHA-256 in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _names(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*"):
        if path.is_file() and path.name != NAME:
            yield path.relative_to(folder).as_posix()


def _faults(folder: Path, content: dict[str, Any], more: Callable[[Path, dict[str, Any]], str | None]) -> Iterator[str]:
    for name, entry in content["files"].items():
        path = folder / name
        if not path.is_file():
            yield f"{name} is missing"
        elif (size := path.stat().st_size) != entry["size"]:
            yield f"{name} has {size} bytes of {entry['size']}"
        elif (fault := more(path, entry)) is not None:
            yield f"{name} {fault}"


def _hash_fault(path: Path, expected: str) -> str | None:
    return None if sha256(path) == expected else "has another hash"


def main() -> int:
    """Compares each folder with its manifest; the exit status is 1 where one differs or cannot be read."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="a model's snapshot with a manifest")
    faults = 0
    for folder in parser.parse_args().folders:
        try:
            found = verify(folder)
        except (OSError, ValueError) as error:
            found = [f"the manifest cannot be read ({type(error).__name__})"]
        for fault in found:
            print(f"{folder}: {fault}", file=sys.stderr)
            faults += 1
    return min(faults, 1)


if __name__ == "__main__":
    sys.exit(main())
