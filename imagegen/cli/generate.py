"""Generates images from a prompt, in this process or at a server.

    imagegen generate "a red circle on a blue background" -o circle.png
    imagegen generate "a red circle" --url http://localhost:7000

Without --output the images are written to IMAGEGEN_OUTPUT_DIR (outputs). Their paths and seeds are printed.
"""

from __future__ import annotations

import argparse

from imagegen.cli.jobs import add_options, run_job


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("prompt", help="what to generate")
    add_options(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit status."""
    return run_job(args, {"mode": "generate", "prompt": args.prompt})
