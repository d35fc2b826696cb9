"""Each benchmark still runs: its smallest case, in a process of its own. What it measures is not judged."""

import os
import subprocess
import sys

import pytest

from tests.support import ROOT

#: The smallest case of a benchmark; FOLDER is an empty one. Each prints what it measured.
SMALLEST = {
    "bake": "micro FOLDER/model --into FOLDER/baked",
    "caches": "--pairs 1",
    "editing": "--only strength --count 1",
    "editing_ways": "--count 1",
    "fleet": "--most 10000",
    "host_time": "--images 1",
    "jobs": "--only kills --jobs 4 --kills 1",
    "lora": "--only memory swap",
    "micro": "--each 1 --sheet FOLDER/sheet.png",
    "random_model": "micro FOLDER/model",
    "server": "--pairs 1",
    "start": "--cold 1 --warm 1 --size 128",
    "telemetry": "--pairs 1 --side 64",
    "worker": "--simulate 0.05 --jobs 4",
}
#: Run elsewhere, or not here.
ELSEWHERE = {
    "attack": "tests/e2e/test_attack.py",
    "attack_stores": "a kind of benchmarks.attack",
    "decoders": "minutes; its parts are those of tests/e2e/test_hostile.py",
    "fleet_waits": "minutes; it is benchmarks.fleet beside the worker of benchmarks.worker",
    "fuzz_references": "needs atheris: make fuzz",
    "gpu": "tests/benchmarks/test_gpu.py",
    "precision": "tests/benchmarks/test_precision.py",
    "proxy": "needs nginx, and minutes",
    "quantize": "klein-9b's size, 30 GB of disk; with micro: tests/builder/test_quantize.py",
    "ray_replicas": "tests/e2e/test_ray.py",
    "readme_picture": "writes docs/micro.png",
    "worker_under_test": "the process that benchmarks.worker starts",
}


def test_every_benchmark_is_run_or_has_a_reason():
    programs = {path.stem for path in (ROOT / "benchmarks").glob("*.py") if '"__main__":' in path.read_text("utf-8")}
    assert programs == SMALLEST.keys() | ELSEWHERE.keys()
    assert not SMALLEST.keys() & ELSEWHERE.keys()
    for where in ELSEWHERE.values():
        assert not where.startswith("tests/") or (ROOT / where).exists(), where


@pytest.mark.slow  # half a minute each
@pytest.mark.parametrize("name", SMALLEST)
def test_its_smallest_case_runs(name, tmp_path):
    def run(benchmark):
        arguments = SMALLEST[benchmark].replace("FOLDER", str(tmp_path)).split()
        command = [sys.executable, "-m", f"benchmarks.{benchmark}", *arguments]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500)

    if name == "bake":  # it uses up a model
        assert run("random_model").returncode == 0
    done = run(name)
    # 1 says that a limit was passed, which a busy machine may do.
    assert done.returncode in (0, 1), done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    assert done.stdout.strip(), done.stderr[-3000:]
