"""Attacks servers of its own as docs/benchmarks.md has it, and says of each attack whether its target was met.

    python -m benchmarks.attack                        all of them, about six minutes (`make attack`)
    python -m benchmarks.attack images stores          some kinds
    python -m benchmarks.attack --short connections    each for a moment

Prints a Markdown table; the status is 1 where a target was missed. Everything stays on loopback. What others notice is
measured on this machine's own cores, which the attackers use too. Linux alone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

if not __package__:  # started by its path, which makes this folder the place of imports
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks import attack_callers, attack_connections, attack_images, attack_memory, attack_stores, attacked
from benchmarks.attacked import Row, server


def connections(short: bool) -> Iterator[Row]:
    """Held connections, floods, forms and JSON."""
    with server() as victim:
        yield from attack_connections.rows(victim, short)


def images(short: bool) -> Iterator[Row]:
    """Images that are slow to decode, and the end of a server that decodes them."""
    with server() as victim:
        yield from attack_images.rows(victim, short)
        yield attack_images.end(victim)


def callers(short: bool) -> Iterator[Row]:
    """One caller with everything it may have, and a foreign web page."""
    with server() as victim:
        yield from attack_callers.shares(victim, short)
    with server(keys=False, PRELOAD_MODELS="0") as victim:
        yield from attack_callers.foreign_page(victim)


KINDS: dict[str, Callable[[bool], Iterator[Row]]] = {
    "connections": connections,
    "images": images,
    "callers": callers,
    "stores": attack_stores.rows,
    "memory": attack_memory.rows,
}


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"some of {', '.join(KINDS)}; default: all")
    parser.add_argument("--short", action="store_true", help="fewer of each kind, and shorter")
    parser.add_argument(
        "--patience", type=float, default=1, help="multiplies the seconds of targets; for a busy machine"
    )
    args = parser.parse_args()
    if unknown := set(args.kinds) - set(KINDS):
        parser.error(f"{', '.join(unknown)}: allowed are {', '.join(KINDS)}")
    attacked.patience = args.patience
    print("| attack | what came | target | met |\n|---|---|---|---|")
    met = True
    for kind in args.kinds or KINDS:
        for row in KINDS[kind](args.short):
            print(f"| {row.attack} | {row.seen} | {row.target} | {'yes' if row.met else '**no**'} |", flush=True)
            met &= row.met
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
