"""What baking a model takes: time, memory, and disk beside the result.

    python -m benchmarks.bake klein-9b FOLDER [--precision fp8]

FOLDER holds the model, or one of its size with random weights. It is served by a stand-in of the hub on loopback to
`imagegen.builder.bake` as an image's build runs it, and is USED UP: each weight file is deleted when the next one is
asked for, so that a disk of little more than the model's size will do. The stand-in is the tests': `make check`
installs what it needs."""

from __future__ import annotations

import argparse
import hashlib
import mmap
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

if not __package__:  # started by its path, which makes this folder the place of imports
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from tests.support.hub import Hub, serve

_ROOT = Path(__file__).resolve().parent.parent


class UsedUpFiles(dict[str, bytes | memoryview]):
    """The files of a folder by name, read from the disk when they are asked for; the last weight file asked for is
    the one that is still there."""

    def __init__(self, folder: Path) -> None:
        paths = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.stat().st_size)
        self._paths = {path.relative_to(folder).as_posix(): path for path in paths}
        self._last: str | None = None
        super().__init__(dict.fromkeys(self._paths, memoryview(b"")))

    def __getitem__(self, name: str) -> memoryview:
        if name.endswith(".safetensors") and name != self._last:
            if self._last is not None:
                self._paths[self._last].unlink()
            self._last = name
        return self.read(name)

    def read(self, name: str) -> memoryview:
        """A file's bytes, as long as somebody holds them."""
        with self._paths[name].open("rb") as stream:
            return memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)


class FolderHub(Hub):
    """A hub whose hashes are known before the clock starts."""

    def __init__(self, files: UsedUpFiles) -> None:
        super().__init__({})
        self.files = files
        self._known = {name: self._hashed(files.read(name)) for name in files}

    def entry(self, name: str) -> dict[str, object]:
        return dict(self._known[name])

    @staticmethod
    def _hashed(data: memoryview) -> dict[str, object]:
        sha1 = hashlib.sha1(b"blob %d\0" % len(data), usedforsecurity=False)
        sha1.update(data if len(data) < 1_000_000 else b"")
        lfs = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
        return {"size": len(data), "oid": sha1.hexdigest(), **({"lfs": lfs} if len(data) >= 1_000_000 else {})}


def disk(*folders: Path) -> int:
    """Bytes that the files of some folders take."""
    total = 0
    for folder in folders:
        for path in folder.rglob("*"):
            try:
                total += path.stat().st_blocks * 512 if path.is_file() else 0
            except FileNotFoundError:
                continue  # it was just deleted
    return total


def main() -> int:
    """Bakes, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="klein-9b, klein-4b ...")
    parser.add_argument("folder", type=Path, help="with its weights; used up")
    parser.add_argument("--precision", default="fp8", help="of the transformer; default: fp8")
    parser.add_argument("--into", type=Path, default=Path("build/bake"), help="where the result goes")
    args = parser.parse_args()
    hub = FolderHub(UsedUpFiles(args.folder))
    source = sum(int(str(hub.entry(name)["size"])) for name in hub.files)
    args.into.mkdir(parents=True, exist_ok=True)
    peak, done = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.2):
            peak = max(peak, disk(args.into))

    watcher = threading.Thread(target=watch)
    watcher.start()
    begun = time.monotonic()
    with serve(hub) as url:
        command = [sys.executable, "-m", "imagegen.builder.bake", args.model, "--precision", args.precision]
        environment = {**os.environ, "HF_ENDPOINT": url, "HF_TOKEN": "any", "HF_HOME": str(args.into / "client")}
        status = subprocess.run([*command, "--into", str(args.into)], cwd=_ROOT, env=environment).returncode
    seconds = time.monotonic() - begun
    done.set()
    watcher.join()
    result = disk(args.into / "hub")
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    print(f"| bake of {args.model} in {args.precision} | measured |\n|---|---|")
    print(f"| from, to | {source / 1e9:.1f} GB, {result / 1e9:.1f} GB |")
    print(f"| seconds | {seconds:.0f} |")
    print(f"| peak memory | {memory / 1e9:.1f} GB |")
    print(f"| peak disk beside the result | {(peak - result) / 1e9:.1f} GB |")
    return status


if __name__ == "__main__":
    sys.exit(main())
