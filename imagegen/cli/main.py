"""One command for everything that image-gen does.

Exit status: 0 done; 1 failed, with one line on stderr that says why; 2 the command line is wrong; 130 interrupted by
Ctrl-C. `bake` also ends with 3 no token, 4 licence not accepted, 5 disk too small, 6 a file or the model is broken,
7 the hub does not answer. Settings come from the environment and from .env (see .env.example).
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from imagegen import __version__
from imagegen.cli import CommandError
from imagegen.errors import ConfigurationError, ImageGenError

#: Each command, the module with its `add_arguments` and `run`, and its line of the help. A module is imported when its
#: command is chosen, so that `imagegen --help` imports none.
COMMANDS: dict[str, tuple[str, str]] = {
    "generate": ("imagegen.cli.generate", "generate images from a prompt"),
    "edit": ("imagegen.cli.edit", "edit one to four reference images"),
    "serve": ("imagegen.cli.serve", "serve HTTP: the API, OpenAI's API and a page for the browser"),
    "worker": ("imagegen.cli.worker", "process jobs from RunPod's queue"),
    "plan": ("imagegen.cli.plan", "show how a model fits a GPU's memory; nothing is loaded"),
    "loras": ("imagegen.cli.loras", "list the LoRA adapters that jobs may name, or check files"),
    "bake": ("imagegen.builder.bake", "download a model's weights, quantized, into the Hugging Face cache"),
    "bench": ("imagegen.cli.bench", "measure seconds for each image, here or at a server"),
    "doctor": ("imagegen.cli.doctor", "check driver, GPU, disk, weights, token and settings"),
    "inspect": ("imagegen.cli.inspect", "print the provenance record of image files"),
    "health": ("imagegen.cli.health", "ask the HTTP server on this machine whether it can take a job"),
}


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with a command line in one line."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        """Ends the process with status 2."""
        self.exit(2, f"error: {message}{self._nearest(message)}; see `{self.prog} --help`\n")

    def _nearest(self, message: str) -> str:
        unknown = message.removeprefix("unrecognized arguments: ").split()[0]
        near = difflib.get_close_matches(unknown, self._option_string_actions, 1)
        return f" (did you mean {near[0]}?)" if unknown.startswith("-") and near else ""

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Like `parse_args`, but an unknown argument is an error of the command that it was given to."""
        found, unknown = self.parse_known_args(arguments)
        if unknown:
            getattr(found, "parser", self).error(f"unrecognized arguments: {' '.join(unknown)}")
        return found


def build_parser(chosen: str | None, program: str = "imagegen") -> _Parser:
    """The parser of all commands.

    Args:
        chosen: the only command whose options are needed, "" for none; None: all, as a shell's completion wants them.
    """
    import shtab

    parser = _Parser(prog=program, description=__doc__)
    parser.add_argument("--version", action="version", version=f"imagegen {__version__}")
    shtab.add_argument_to(parser, ["--print-completion"], help="print the completion script of a shell")
    commands = parser.add_subparsers(
        title="commands", metavar="COMMAND", required=True, help="`imagegen COMMAND --help` says more of each"
    )
    for name, (module, line) in COMMANDS.items():
        command = commands.add_parser(name, help=line)
        if chosen in (None, name):
            _fill(command, module)
    return parser


def _fill(parser: argparse.ArgumentParser, module: str) -> None:
    imported = importlib.import_module(module)
    parser.description = imported.__doc__
    imported.add_arguments(parser)
    parser.set_defaults(run=imported.run, parser=parser)


def main(arguments: Sequence[str], command: str | None = None, program: str = "imagegen") -> int:
    """Runs one command and returns its exit status.

    Args:
        command: the only one that there is, whose name is then not among the arguments.
        program: what the user calls it.
    """
    if command is not None:
        parser = _Parser(prog=program)
        _fill(parser, COMMANDS[command][0])
    else:
        first = arguments[0] if arguments else ""
        parser = build_parser(None if first == "--print-completion" else first, program)
    args = parser.parse(arguments)
    try:
        status: int = args.run(args)
        return status
    except ImageGenError as error:
        return _failed(f"{error.code}: {error.message}")
    except (CommandError, ConfigurationError) as error:
        return _failed(str(error), getattr(error, "status", 1))
    except BrokenPipeError:  # `imagegen inspect *.png | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if os.environ.get("LOG_LEVEL") == "DEBUG":
            raise
        return _failed(f"something failed inside ({type(error).__name__}); LOG_LEVEL=DEBUG shows where")


def _failed(message: str, status: int = 1) -> int:
    print(f"error: {' '.join(message.splitlines())}", file=sys.stderr)
    return status


def entry(command: str | None = None, program: str = "imagegen") -> int:
    """The process: like `main`, with its arguments. Ctrl-C ends it at once, also while a thread loads a model."""
    signal.signal(signal.SIGINT, _interrupted)
    return main(sys.argv[1:], command, program)


def _interrupted(*_: object) -> NoReturn:
    """Ends without waiting for threads: one may be downloading twenty gigabytes."""
    os.write(2, b"\ninterrupted\n")
    os._exit(130)
