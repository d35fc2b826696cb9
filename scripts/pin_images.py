"""Writes the digests of base images into the Dockerfiles, so that a tag that moves changes nothing.

    python scripts/pin_images.py            asks the registry of each image, and writes the digest that its tag has now
    python scripts/pin_images.py --check    asks nothing; an error where an image has no digest

An image is named by `# syntax=`, or by an ARG whose name ends in IMAGE, and is Docker Hub's. The project's own
(image-gen) is built here, and has no digest.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from urllib.parse import urlencode
from urllib.request import Request, urlopen

ROOT = Path(__file__).resolve().parent.parent
FILES = ("Dockerfile", "deploy/kuberay/Dockerfile", "deploy/vast/Dockerfile")
IMAGE = re.compile(
    r"^(?P<before># syntax=|ARG \w*IMAGE=)(?P<name>[a-z0-9./_-]+):(?P<tag>[\w.-]+)"
    r"(?:@(?P<digest>sha256:[0-9a-f]{64}))?$",
    re.MULTILINE,
)
#: What a registry may answer with; an index is for several platforms.
TYPES = "application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.list.v2+json"


def resolve(name: str, tag: str, registry: str = "https://registry-1.docker.io") -> str:
    """The digest that a tag has now.

    Raises:
        OSError: the registry cannot be asked, or does not know the image.
        ValueError: it answers with no digest.
    """
    repository = name if "/" in name else f"library/{name}"
    headers = {"Accept": TYPES}
    if registry == "https://registry-1.docker.io":
        asked = urlencode({"service": "registry.docker.io", "scope": f"repository:{repository}:pull"})
        with urlopen(f"https://auth.docker.io/token?{asked}", timeout=30) as answer:
            headers["Authorization"] = f"Bearer {json.load(answer)['token']}"
    request = Request(f"{registry}/v2/{repository}/manifests/{tag}", headers=headers, method="HEAD")
    with urlopen(request, timeout=30) as answer:
        digest = str(answer.headers.get("Docker-Content-Digest"))
    if not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
        raise ValueError(f"{name}:{tag}: the registry gave no digest")
    return digest


def pin(text: str, registry: str = "https://registry-1.docker.io") -> str:
    """A Dockerfile with the digest of each of its images."""

    def pinned(match: re.Match[str]) -> str:
        if match["name"] == "image-gen":
            return match[0]
        return f"{match['before']}{match['name']}:{match['tag']}@{resolve(match['name'], match['tag'], registry)}"

    return IMAGE.sub(pinned, text)


def without_digest(text: str) -> list[str]:
    """The images of a Dockerfile that are named by their tag alone."""
    found = IMAGE.finditer(text)
    return [f"{one['name']}:{one['tag']}" for one in found if one["name"] != "image-gen" and not one["digest"]]


def main() -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="ask nothing; fail where a digest is missing")
    arguments = parser.parse_args()
    missing = []
    for name in FILES:
        path = ROOT / name
        text = path.read_text(encoding="utf-8")
        if arguments.check:
            missing += [
                f"{name}: {image} has no digest; run `make digests` and commit it" for image in without_digest(text)
            ]
            continue
        try:
            path.write_text(pin(text), encoding="utf-8")
        except (OSError, ValueError) as error:
            print(f"error: {name}: {error}", file=sys.stderr)
            return 1
    for line in missing:
        print(f"error: {line}", file=sys.stderr)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
