"""Whether this host's NVIDIA driver can run the CUDA that torch was built with."""

from __future__ import annotations

import re
from pathlib import Path

#: The first driver for each CUDA, by its first number: NVIDIA's CUDA release notes, "CUDA Minor Version Compatibility".
_FIRST_DRIVER = {11: 450, 12: 525, 13: 580}
_VERSION_FILE = Path("/proc/driver/nvidia/version")


def find_fault(cuda: str | None, version_file: Path = _VERSION_FILE) -> str | None:
    """What keeps torch from using a GPU of this host, and what to do; None where the driver is not the reason.

    Args:
        cuda: what torch was built with, such as "13.0"; None: without.
        version_file: where the kernel says which driver it has; a container with `--gpus` sees it too.
    """
    if cuda is None:
        return "this torch was built without CUDA"
    try:
        text = version_file.read_text()
    except OSError:
        return "no NVIDIA driver is seen: start the container with `--gpus all`, on a host that has one"
    version = re.search(r"Module(?: for \S+)?\s+(\d+)\.(\d+)", text)
    first = _FIRST_DRIVER.get(int(cuda.partition(".")[0]))
    if version is None or first is None or int(version[1]) >= first:
        return None
    return (
        f"the host's driver {version[1]}.{version[2]} is too old: torch was built with CUDA {cuda}, which needs "
        f"{first} or newer; choose another host, or build the image with a TORCH_INDEX for an older CUDA"
    )
