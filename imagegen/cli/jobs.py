"""What generate, edit and bench share: a job's options, running it here or at a server, and writing its images."""

from __future__ import annotations

import argparse
import asyncio
import base64
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from imagegen import logs
from imagegen.cli import CommandError
from imagegen.settings import Settings, get_settings

if TYPE_CHECKING:
    from imagegen.engine.service import Service

#: The contract's formats by the endings of file names.
FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
_ENDINGS = {"png": "png", "jpeg": "jpg", "webp": "webp"}


class Runner(Protocol):
    """Whatever runs a job: this process, or a server."""

    def run(self, fields: dict[str, Any]) -> dict[str, Any]:
        """The contract's output for the contract's fields.

        Raises:
            ImageGenError: the contract's.
            CommandError: no answer came.
        """


class Local:
    """Runs jobs in this process; the model is loaded with the first."""

    def __init__(self, settings: Settings) -> None:
        from imagegen.engine.service import Service

        self.service: Service = Service(settings, progress=sys.stderr.isatty())

    def run(self, fields: dict[str, Any]) -> dict[str, Any]:
        """One job's output."""
        from imagegen.contract.requests import parse_job

        return asyncio.run(self.service.run(parse_job(fields))).model_dump()


def runner(args: argparse.Namespace) -> Runner:
    """What the command line asks for: the server at `--url`, else this process.

    Raises:
        ConfigurationError: a setting is wrong.
    """
    settings = user_settings(args.model)
    logs.configure(settings)
    if args.url is None:
        return Local(settings)
    from imagegen.cli.remote import Remote

    key = next(iter(settings.api_keys.values()), None)
    return Remote(args.url, args.api_key or key)


def user_settings(model: str | None) -> Settings:
    """The settings of a command for a person: quieter than a worker's where LOG_LEVEL is not set.

    Raises:
        ConfigurationError: a setting is wrong.
    """
    settings = get_settings()
    changes: dict[str, Any] = {} if model is None else {"model": model}
    if "log_level" not in settings.model_fields_set:
        changes["log_level"] = "WARNING"
    return settings.model_copy(update=changes)


def add_place(parser: argparse.ArgumentParser) -> None:
    """Adds where a job runs."""
    parser.add_argument("--model", help="the model to load; default: IMAGEGEN_MODEL, else by the GPU")
    parser.add_argument("--url", help="send the job to the server at this URL instead, such as http://localhost:7000")
    parser.add_argument("--api-key", metavar="KEY", help="the server's key; default: IMAGEGEN_API_KEY")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds a job's options; what is left out has the worker's default."""
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="a .png, .jpg or .webp file, or a folder")
    parser.add_argument("--seed", type=int, help="the same seed gives the same image; default: random, and printed")
    parser.add_argument("--width", type=int, metavar="PIXELS", help="a multiple of 16, together with --height")
    parser.add_argument("--height", type=int, metavar="PIXELS", help="a multiple of 16, together with --width")
    parser.add_argument("--aspect-ratio", metavar="W:H", help="a shape such as 16:9, instead of width and height")
    parser.add_argument("--steps", type=int, metavar="N", help="denoising steps; default: the model's own")
    parser.add_argument("--guidance-scale", type=float, metavar="X", help="used by the base models only")
    parser.add_argument("-n", "--num-images", type=int, metavar="N", help="images, with seeds that count up")
    parser.add_argument(
        "--quality", type=int, metavar="N", help="1 to 100, for .jpg and .webp (100: lossless); default: 90"
    )
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="for the job, waiting included")
    parser.add_argument(
        "--lora",
        action="append",
        type=_lora,
        metavar="NAME[:SCALE]",
        help="a LoRA adapter, such as brand-x:0.8; again for several",
    )
    parser.add_argument("--embed-prompt", action="store_true", help="write the prompt into the image's record")
    add_place(parser)


def _lora(text: str) -> dict[str, Any]:
    """An adapter of the command line: a name, or a URL, and behind a colon how strong it is."""
    scale = re.search(r":(-?\d*\.?\d+)$", text)
    name = text[: scale.start()] if scale else text
    return {"url" if "://" in name else "name": name, **({"scale": float(scale[1])} if scale else {})}


def run_job(args: argparse.Namespace, fields: dict[str, Any]) -> int:
    """Runs a job with the options of the command line, writes its images and prints what came; returns 0.

    Raises:
        ImageGenError, ConfigurationError, CommandError: it failed.
    """
    options = {
        "seed": args.seed,
        "width": args.width,
        "height": args.height,
        "aspect_ratio": args.aspect_ratio,
        "num_inference_steps": args.steps,
        "guidance_scale": args.guidance_scale,
        "num_images": args.num_images,
        "output_quality": args.quality,
        "timeout": args.timeout,
        "loras": args.lora,
        "embed_prompt": args.embed_prompt or None,
        "output_format": _format(args.output),
    }
    fields = {**fields, **{name: value for name, value in options.items() if value is not None}}
    where = runner(args)
    check_folder(args.output)
    output = where.run(fields)
    show(output, write_images(output, args.output))
    return 0


def _format(output: Path | None) -> str | None:
    if output is None or output.is_dir() or not output.suffix:
        return None
    if output.suffix.lower() not in FORMATS:
        raise CommandError(f"--output: {output.suffix} files are not made here; allowed are {', '.join(FORMATS)}")
    return FORMATS[output.suffix.lower()]


def check_folder(output: Path | None) -> None:
    """Makes the folder of the images before a GPU works for them."""
    if output is None:
        folder = get_settings().output_dir
    else:
        folder = output.parent if output.suffix and not output.is_dir() else output
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(f"{folder}: images cannot be written there ({type(error).__name__})") from None


def write_images(output: dict[str, Any], target: Path | None) -> Sequence[Path | str]:
    """Writes an output's images and returns their paths, or the URLs where it has those.

    Args:
        target: a file, whose name gets the seed where there are several images; a folder; None: the setting's folder.

    Raises:
        CommandError: they cannot be written.
    """
    if output["urls"]:
        return list(output["urls"])
    paths: list[Path] = []
    for image, seed in zip(output["images"], output["seeds"], strict=True):
        if target is not None and target.suffix and not target.is_dir():
            path = target if len(output["seeds"]) == 1 else target.with_stem(f"{target.stem}-{seed}")
        else:
            name = f"{output['model']}-{seed}.{_ENDINGS[output['output_format']]}"
            path = (get_settings().output_dir if target is None else target) / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(base64.b64decode(image))
        except OSError as error:
            raise CommandError(f"{path}: the image cannot be written ({type(error).__name__})") from None
        paths.append(path)
    return paths


def show(output: dict[str, Any], places: Sequence[Path | str]) -> None:
    """Prints where each image is, the seconds of each stage, and warnings on stderr."""
    for place, seed in zip(places, output["seeds"], strict=True):
        print(f"{place}  {output['width']}x{output['height']}  seed {seed}")
    for lora in output.get("loras", ()):  # a server of an earlier version says nothing of them
        print(f"lora {lora['name']}  scale {lora['scale']:g}")
    stages = "  ".join(f"{stage} {seconds:.2f} s" for stage, seconds in output["timings"].items())
    print(f"{output['model']}  {stages}")
    for warning in output["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)
