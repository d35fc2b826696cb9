"""The attacks of `make attack`, shorter: each ended, without its limit, in a server that answers nobody else."""

import subprocess
import sys

import pytest

from benchmarks.attack import KINDS
from tests.support import ROOT

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("kind", KINDS)
def test_others_are_served_during(kind):
    command = [sys.executable, "-m", "benchmarks.attack", "--short", "--patience", "10", kind]
    attacked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    print(attacked.stdout)
    assert attacked.returncode == 0, attacked.stdout + attacked.stderr
    assert attacked.stdout.count("| yes |") >= 2
