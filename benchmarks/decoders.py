"""What decoding costs, in processes of its own:

    python -m benchmarks.decoders           start, round trip and memory of the processes
    python -m benchmarks.decoders --memory  time and memory of large images, against the estimate

Prints Markdown for docs/benchmarks.md. Linux alone: memory is read from /proc.
"""

from __future__ import annotations

import argparse
import mmap
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
from PIL import Image

if not __package__:  # started by its path, which makes this folder the place of imports
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.attacked import Peak, children, memory
from benchmarks.measure import table
from imagegen.inputs.decoders import Decoders, shared_memory
from tests.support.hostile import PICTURE
from tests.support.images import to_bytes

ROOT = Path(__file__).resolve().parent.parent
_LIMIT = 10**9


def processor_of(pid: int) -> float:
    """Seconds of the processor that a process and its children that have ended took."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def decoders() -> list[list[str]]:
    """Rows: what the processes cost."""
    rows = []
    made = Decoders()
    before, begun = memory(os.getpid()), time.monotonic()
    made.start()
    rows.append(["start, for the thread that loads the model", f"{(time.monotonic() - begun) * 1000:.0f} ms"])
    good = to_bytes(PICTURE)

    def load(data: bytes) -> float:
        begun = time.monotonic()
        made.submit(data, "image", _LIMIT).result()
        return (time.monotonic() - begun) * 1000

    load(good)
    rows.append(["start until the first reference is decoded", f"{(time.monotonic() - begun) * 1000:.0f} ms"])
    server = children(os.getpid())[0]
    rows.append(["start, time of the processor", f"{processor_of(server) * 1000:.0f} ms"])
    rows.append(["memory of the process, idle", f"{psutil.Process(server).memory_info().rss / 1e6:.0f} MB"])
    rows.append(["memory of this process and that one, more", f"{memory(os.getpid()) - before:.0f} MB"])
    from imagegen.inputs.decoding import load_reference

    megapixel = to_bytes(Image.effect_noise((1024, 1024), 50).convert("RGB"), "JPEG", quality=90)

    def cost(data: bytes, process: bool) -> float:
        """Milliseconds of the processor for a reference, of this process and of the decoders', mean of 100."""
        begun = time.process_time() + processor_of(server)
        for _ in range(100):
            if process:
                load(data)
            else:
                load_reference(data, "image", _LIMIT)
        return (time.process_time() + processor_of(server) - begun) * 10

    for name, data in (("128x128 as PNG", good), ("1024x1024 as JPEG", megapixel)):
        inside, outside = cost(data, process=False), cost(data, process=True)
        rows.append([f"{name}: decoded in this process", f"{inside:.1f} ms of the processor"])
        rows.append([f"{name}: in a process of its own", f"{outside:.1f} ms, {outside - inside:.1f} more"])
    rows.append(["pixels of a megapixel from shared memory to an image", f"{pixels_back():.1f} ms of the processor"])
    photograph = to_bytes(Image.linear_gradient("L").resize((12000, 9000)).convert("RGB"), "JPEG", quality=90)
    with Peak(os.getpid()) as peak, ThreadPoolExecutor(4) as threads:
        seconds = max(threads.map(load, [photograph] * 4)) / 1000
    rows.append(["4 JPEGs of 108 megapixels at once", f"{seconds:.1f} s, {peak.grown:+.0f} MB"])
    made.close()
    return rows


def pixels_back() -> float:
    """Milliseconds of the processor for a megapixel that another process wrote to shared memory, until it is an image
    here; mean of 50."""
    times = []
    pixels = bytes(range(256)) * 3 * 4096
    for _ in range(50):
        with shared_memory(b"") as memory:
            if os.fork() == 0:
                mmap.mmap(memory, 0)[: len(pixels)] = pixels
                os._exit(0)
            os.wait()
            begun = time.process_time()
            Image.frombytes("RGB", (1024, 1024), os.pread(memory, len(pixels), 0))
            times.append((time.process_time() - begun) * 1000)
    return sum(times) / len(times)


def large() -> list[list[str]]:
    """Rows: large images, each decoded in a process of its own without a limit."""
    side, photograph, huge = (7000, 7000), (12000, 9000), (16320, 12240)
    cases: list[tuple[str, str, tuple[int, int], dict[str, Any]]] = [
        ("PNG", "RGB", side, {"compress_level": 1}),
        ("PNG", "RGBA", side, {"compress_level": 1}),
        ("WEBP", "RGB", side, {"quality": 50, "method": 0}),
        ("WEBP", "RGBA", side, {"quality": 50, "method": 0}),
        ("AVIF", "RGB", side, {"quality": 50, "speed": 10}),
        ("AVIF", "RGBA", side, {"quality": 50, "speed": 10}),
        ("JPEG", "CMYK", side, {"progressive": True, "subsampling": 0}),
        ("JPEG", "RGB", photograph, {}),
        ("JPEG", "RGB", photograph, {"progressive": True}),
        ("JPEG", "RGB", huge, {}),
    ]
    rows = []
    for file_format, mode, size, options in cases:
        small = Image.effect_noise((size[0] // 8, size[1] // 8), 60)
        bands = len(Image.new(mode, (1, 1)).getbands())
        image = Image.merge(mode, [small] * bands).resize(size, Image.Resampling.NEAREST)
        data = to_bytes(image, file_format, **options)
        del image
        done = subprocess.run([sys.executable, "-c", _ALONE], input=data, capture_output=True, check=True, cwd=ROOT)
        seconds, grown, estimate = done.stdout.decode().split()
        kind = f"{file_format} {mode}{', progressive' if 'progressive' in options else ''}"
        rows.append([kind, f"{size[0]}x{size[1]}", f"{len(data) / 1e6:.1f}", seconds, grown, estimate])
    return rows


_ALONE = """
import re, sys, time
from imagegen.inputs.decoding import load_reference
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1e3
data, estimate, before = sys.stdin.buffer.read(), [], peak()
load_reference(data, "image", 10**9, estimate.append)
print(f"{time.process_time():.2f} {peak() - before:.0f} {estimate[0] / 1e6:.0f}")
"""


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", action="store_true", help="time and memory of large images")
    if parser.parse_args().memory:
        print(table(["format", "pixels", "file, MB", "processor, s", "memory, MB", "estimate, MB"], large()))
    else:
        print(table(["what", "measured"], decoders()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
