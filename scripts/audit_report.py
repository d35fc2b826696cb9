"""Reads pip-audit's JSON from stdin: says what is vulnerable, and what could not be checked.

    pip-audit -r constraints.txt --no-deps --disable-pip -f json | python scripts/audit_report.py

An index that does not know a version (a mirror, a local build) is no reason to stop, and none to say that all is well.
Exit status: 1 where a version is vulnerable, 2 where nothing could be checked.
"""

from __future__ import annotations

import argparse
import json
import sys


def report(text: str) -> tuple[int, list[str]]:
    """The exit status, and the lines to show, for what pip-audit wrote."""
    try:
        packages = json.loads(text)["dependencies"]
    except (ValueError, KeyError):
        return 2, ["pip-audit gave no report: nothing was checked"]
    bad = [
        f"{package['name']} {package['version']}: {found['id']}, fixed in {', '.join(found['fix_versions']) or 'none'}"
        for package in packages
        for found in package.get("vulns", [])
    ]
    unchecked = [f"not checked: {one['name']} ({one['skip_reason']})" for one in packages if "skip_reason" in one]
    checked = len(packages) - len(unchecked)
    lines = [*bad, *unchecked, f"{checked} of {len(packages)} packages checked, {len(bad)} known vulnerabilities"]
    return (1 if bad else 0 if checked else 2), lines


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    status, lines = report(sys.stdin.read())
    print("\n".join(lines))
    sys.exit(status)
