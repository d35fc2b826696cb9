"""`python -m imagegen`: the command line (`imagegen --help`); without arguments, the container's entry.

The container's entry processes jobs from RunPod's queue where there is one, and else serves HTTP on PORT
(IMAGEGEN_SERVE forces either).
"""

from __future__ import annotations

import sys

from imagegen.cli.main import entry
from imagegen.errors import ConfigurationError


def main() -> int:
    """Runs a command; returns the exit status."""
    if len(sys.argv) == 1:
        from imagegen.settings import get_settings  # half a second that `--help` does not need

        try:
            sys.argv.append("worker" if get_settings().serves_queue else "serve")
        except ConfigurationError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    elif "--plan" in sys.argv:  # its name before there were commands
        sys.argv = [sys.argv[0], "plan", *(word for word in sys.argv[1:] if word != "--plan")]
    return entry(program="python -m imagegen")


if __name__ == "__main__":
    sys.exit(main())
