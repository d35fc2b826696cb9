"""The script for the first minutes on a GPU, rehearsed with micro on the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow  # the whole benchmark, with micro
@pytest.mark.parametrize(("part", "least"), [("1", 11), ("2", 9)])
def test_each_part_yields_its_rows(tmp_path, part, least):
    environment = {**os.environ, "PYTHON": sys.executable, "OUTPUT": str(tmp_path), "MODEL": "micro", "DEVICE": "cpu"}
    environment["WHEELS"] = str(tmp_path / "none")  # what lies in build/ is for the other machine's Python
    done = subprocess.run(
        ["scripts/gpu_first_run.sh", part], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / f"benchmark_gpu_{part}.json").read_text())["rows"]
    assert len(rows) >= least
    assert not [row for row in rows if "broken off" in row["note"]]
    assert (tmp_path / f"benchmark_gpu_{part}.md").read_text().count("\n") > least
