"""Edits one to four reference images by a prompt, in this process or at a server.

    imagegen edit in.png "make the background green" -o out.png
    imagegen edit photo.jpg "make the cup green" --mask mask.png -o edited.png
    imagegen edit shape.png scene.png "the shape of image 1 on the background of image 2" --url http://localhost:7000

A reference is a PNG, JPEG, WebP or AVIF file, or an http(s) URL. Without --output the images are written to
IMAGEGEN_OUTPUT_DIR (outputs). Their paths and seeds are printed.
"""

from __future__ import annotations

import argparse
import base64
from pathlib import Path

from imagegen.cli import CommandError
from imagegen.cli.jobs import add_options, run_job


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="a file or an http(s) URL, one to four of them")
    parser.add_argument("prompt", help="what to change")
    parser.add_argument("--mask", metavar="IMAGE", help="edit the first image where this one is white or transparent")
    parser.add_argument("--preserve", action="store_true", help="keep what the edit has not changed, pixel by pixel")
    parser.add_argument("--strength", type=float, metavar="X", help="0 to 1: how much may change; default: 1")
    add_options(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit status."""
    images = [_reference(image) for image in args.images]
    fields = {"mode": "edit", "prompt": args.prompt, "images": images}
    if args.mask is not None:
        fields["mask"] = _reference(args.mask)
    if args.preserve:
        fields["preserve"] = "auto"
    if args.strength is not None:
        fields["strength"] = args.strength
    return run_job(args, fields)


def _reference(source: str) -> str:
    """A reference as the contract takes it: a URL as it is, a file in base64.

    Raises:
        CommandError: the file cannot be read.
    """
    if source.startswith(("http://", "https://")):
        return source
    try:
        return base64.b64encode(Path(source).read_bytes()).decode("ascii")
    except OSError as error:
        raise CommandError(f"{source}: the image cannot be read ({type(error).__name__})") from None
