"""Fuzzes the way of a reference's bytes with atheris, which looks for inputs that take new ways in Pillow's Python:
    python -m benchmarks.fuzz_references --seconds 300

Whatever comes must be an image or one of the contract's errors; anything else ends the run with the input written to a
file. `make fuzz` installs atheris, which has wheels for Linux and Python 3.11 to 3.13 alone.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path

if not __package__:  # started by its path, which makes this folder the place of imports
    sys.path[0] = str(Path(__file__).resolve().parents[1])

#: Of an input; the seeds have less than ten.
_MAX_KB = 64


def main() -> int:
    """The command line. atheris ends the process itself when its time is over."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=300, metavar="N", help="how long; default: 300")
    args = parser.parse_args()

    import atheris  # what is fuzzed is imported through it

    with atheris.instrument_imports(include=["PIL", "imagegen"]):
        from imagegen.errors import BadReference, PayloadTooLarge
        from imagegen.inputs import decoding

    # Here all is in one process that no limit ends, so that no image may be large.
    decoding.MAX_PIXELS = decoding.MAX_JPEG_PIXELS = 1_000_000
    from tests.support.hostile import GOOD

    outcomes: Counter[str] = Counter()

    def one(data: bytes) -> None:
        try:
            decoding.load_reference(data, "images[0]", _MAX_KB * 1000)
            outcomes["loaded"] += 1
        except (BadReference, PayloadTooLarge) as error:
            outcomes[error.message.removeprefix("images[0]: ")[:40]] += 1
        if outcomes.total() % 10_000 == 0:
            print(outcomes.total(), dict(outcomes.most_common(6)), flush=True)

    with tempfile.TemporaryDirectory() as folder:
        for number, data in enumerate(GOOD.values()):
            (Path(folder) / f"{number}").write_bytes(data)
        options = [f"-max_total_time={args.seconds}", f"-max_len={_MAX_KB * 1000}", "-rss_limit_mb=4096", "-timeout=20"]
        atheris.Setup([sys.argv[0], *options, folder], one)
        atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
