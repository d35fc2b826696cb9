"""The worker for RunPod, which starts a file of this name: `imagegen worker`, without an installation.

python handler.py                                    process jobs from RunPod's queue; elsewhere run test_input.json
python handler.py --test_input                       run test_input.json and write its images to outputs/
python handler.py --test_input '{"input": {...}}'    run this job
python handler.py --test_input FILE.json             run the job in this file
python handler.py --rp_serve_api [--rp_api_port N]   serve RunPod's API on this machine (port 8000)
"""

from __future__ import annotations

import sys

from imagegen.runpod.handler import handler as handler  # what `import handler` is for


def main() -> int:
    """The command line; returns the exit status."""
    from imagegen.cli.main import entry

    return entry("worker", program="python handler.py")


if __name__ == "__main__":
    sys.exit(main())
