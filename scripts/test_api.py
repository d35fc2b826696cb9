"""Exercises a running server: health, generate, edits with 1 to 4 references, an edit inside a mask, a bad
request.

    python -m scripts.test_api [--url http://localhost:7000] [--api-key KEY]

Prints a table, writes the images to outputs/, exits 1 if anything is off. Needs httpx and Pillow only.
"""

from __future__ import annotations

import argparse
import base64
import io
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from PIL import Image, ImageDraw

OUTPUTS = Path("outputs")


class Wrong(Exception):
    """An answer that is not what it should be; the message says how."""


def reference(number: int, side: int = 256) -> str:
    """An image of a shape on a background, as base64."""
    picture = Image.new("RGB", (side, side), ("blue", "white", "green", "yellow")[number])
    box = (side // 4, side // 4, side * 3 // 4, side * 3 // 4)
    pen = ImageDraw.Draw(picture)
    (pen.ellipse if number % 2 == 0 else pen.rectangle)(box, fill=("red", "black", "white", "purple")[number])
    file = io.BytesIO()
    picture.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def check_health(client: httpx.Client) -> str:
    """/health answers 200 with a state."""
    answer = client.get("/health")
    state = answer.json()
    if answer.status_code != 200:
        raise Wrong(f"HTTP {answer.status_code}, {state.get('status')}: {state.get('message') or state.get('stage')}")
    return f"{state['status']}, {state['model']} on {state['device']}"


def check_picture(client: httpx.Client, route: str, job: dict[str, Any], name: str) -> str:
    """A job's answer holds one whole image of the size that it names; it is written to outputs/."""
    answer = client.post(route, json=job)
    if answer.status_code != 200:
        raise Wrong(f"HTTP {answer.status_code}: {answer.text[:200]}")
    body = answer.json()
    picture = Image.open(io.BytesIO(base64.b64decode(body["images"][0])))
    picture.load()
    if picture.size != (body["width"], body["height"]):
        raise Wrong(f"the picture is {picture.size} and the answer says {body['width']}x{body['height']}")
    OUTPUTS.mkdir(exist_ok=True)
    path = OUTPUTS / f"{name}.png"
    picture.save(path)
    return f"{picture.width}x{picture.height}, seed {body['seeds'][0]}, {body['timings']['total']:.2f} s, {path}"


def check_mask(client: httpx.Client) -> str:
    """An edit inside a mask leaves every other pixel as it was."""
    mask, file = Image.new("L", (256, 256)), io.BytesIO()
    ImageDraw.Draw(mask).rectangle((64, 64, 192, 192), fill=255)
    mask.save(file, "PNG")
    photo = reference(0)
    job = {"prompt": "make the circle green", "seed": 42, "images": [photo]}
    answer = client.post("/edit", json={**job, "mask": base64.b64encode(file.getvalue()).decode()})
    if answer.status_code != 200:
        raise Wrong(f"HTTP {answer.status_code}: {answer.text[:200]}")
    before, after = (
        Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB") for text in (photo, answer.json()["images"][0])
    )
    OUTPUTS.mkdir(exist_ok=True)
    path = OUTPUTS / "api-mask.png"
    after.save(path)
    for box in ((0, 0, 256, 48), (0, 208, 256, 256), (0, 48, 48, 208), (208, 48, 256, 208)):
        if before.crop(box).tobytes() != after.crop(box).tobytes():
            raise Wrong(f"pixels outside of the mask differ in {path}")
    return f"{after.width}x{after.height}, every pixel outside of the mask is kept, {path}"


def check_mistake(client: httpx.Client) -> str:
    """A wrong size is the contract's error, and names its field."""
    answer = client.post("/generate", json={"prompt": "x", "width": 1000, "height": 512})
    error = answer.json().get("error", {})
    if answer.status_code != 422 or error.get("field") != "width":
        raise Wrong(f"HTTP {answer.status_code}: {answer.text[:200]}")
    return str(error["message"])


def main() -> int:
    """The command line; exit status 1 if anything is off."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://localhost:7000", help="where the server is")
    parser.add_argument("--api-key", help="its key, if it wants one")
    args = parser.parse_args()
    headers = {"Authorization": f"Bearer {args.api_key}"} if args.api_key else {}
    wrong = 0
    with httpx.Client(base_url=args.url, headers=headers, timeout=600) as client:
        checks: list[tuple[str, Callable[[], str]]] = [("health", partial(check_health, client))]
        job: dict[str, Any] = {"prompt": "a red circle on a blue background", "seed": 42}
        checks.append(("generate", partial(check_picture, client, "/generate", job, "api-generate")))
        for count in range(1, 5):
            edit = {"prompt": "make the background green", "seed": 42, "images": [reference(i) for i in range(count)]}
            name = f"edit with {count}"
            checks.append((name, partial(check_picture, client, "/edit", edit, f"api-edit-{count}")))
        checks.append(("edit in a mask", partial(check_mask, client)))
        checks.append(("a bad request", partial(check_mistake, client)))
        for name, check in checks:
            begun = time.monotonic()
            try:
                verdict, said = "ok", check()
            except (Wrong, httpx.HTTPError, ValueError, KeyError, TypeError, OSError) as error:
                verdict, said, wrong = "WRONG", f"{type(error).__name__}: {error}", wrong + 1
            print(f"{name:14} {verdict:6} {time.monotonic() - begun:6.2f} s  {said}")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
