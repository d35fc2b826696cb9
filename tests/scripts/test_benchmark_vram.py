"""The estimates of all GPUs, as they were when they were last thought through, and the benchmark's way on a CPU."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks.random_model import write_model
from benchmarks.vram_chart import segments
from imagegen.models import MODELS, get_model
from imagegen.weights.sources import find_fault
from scripts import benchmark_vram
from scripts.benchmark_vram import estimate, show_estimate
from tests.support.images import opened

#: `python -m tests.scripts.test_benchmark_vram` writes it anew.
GOLDEN = Path(__file__).with_name("estimates.json")


def estimates():
    return {name: estimate(get_model(name)) for name in ("klein-9b", "klein-4b")}


def test_the_estimates_are_the_golden_ones():
    assert estimates() == json.loads(GOLDEN.read_text())


def test_the_table_in_the_benchmarks_is_the_estimate():
    assert show_estimate(estimate(get_model("klein-9b"))) in Path("docs/benchmarks.md").read_text()


@pytest.mark.parametrize("name", [name for name in MODELS if name != "micro"])
def test_the_bars_of_the_chart_add_up_to_the_peak_and_fit_the_gpu(name):
    estimated = estimate(get_model(name))
    for row in estimated["gpus"]:
        sizes = [size for _, size in segments(row, estimated["context"])]
        assert min(sizes) >= 0
        assert sum(sizes) == row["plan"]["peak"] < row["gpu"]


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["benchmark_vram", *map(str, arguments)])
    return benchmark_vram.main()


def test_estimate_needs_no_gpu(monkeypatch, tmp_path, capsys):
    assert run(monkeypatch, "--estimate", "--output", tmp_path) == 0
    written = json.loads((tmp_path / "benchmark_vram.json").read_text())
    assert written["estimate"] == estimates()["klein-9b"]
    assert opened(tmp_path / "benchmark_vram.png").size[0] == 1180
    assert "| 24 GB, 8.9 | fp8 | bf16 | embeddings |" in capsys.readouterr().out


def test_a_run_generates_words_and_edits_until_it_is_out_of_memory(monkeypatch, tmp_path, capsys):
    """On the CPU with random weights of micro's shape; the fourth reference is one too many."""
    from imagegen.errors import OutOfMemory
    from imagegen.model.pipeline import FluxPipeline

    edit = FluxPipeline.edit

    def full(self, prompt, images, **options):
        if len(images) > 3:
            raise OutOfMemory("the picture does not fit the GPU's memory")
        return edit(self, prompt, images, **options)

    monkeypatch.setattr(FluxPipeline, "edit", full)
    monkeypatch.setattr(benchmark_vram, "sizes", lambda spec: [(128, 128), (192, 128)])
    assert run(monkeypatch, "--model", "micro", "--device", "cpu", "--random-weights", "--output", tmp_path) == 0
    written = json.loads((tmp_path / "benchmark_vram.json").read_text())
    (measured,) = written["measured"]
    assert measured["most_references"] == 3
    assert [(case["width"], case["references"], case["fits"]) for case in measured["cases"]] == [
        (128, 0, True),
        (192, 0, True),
        (128, 1, True),
        (128, 2, True),
        (128, 3, True),
        (128, 4, False),
    ]
    assert all(case["seconds"] > 0 and case["estimate"] > 0 for case in measured["cases"] if case["fits"])
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 5
    assert written["machine"]["torch"]
    assert "out of memory" in capsys.readouterr().out


def test_a_model_that_is_not_here_is_an_error(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert run(monkeypatch, "--device", "cpu", "--output", tmp_path) == 1
    assert "--random-weights" in capsys.readouterr().err


def test_a_random_model_is_a_whole_one_and_written_once(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.random_model._SHARD", 1_000_000)
    folder = write_model(get_model("micro"), tmp_path / "micro")
    assert find_fault(folder) is None
    files = sorted((folder / "transformer").glob("*.safetensors"))
    assert len(files) > 1
    written = [file.stat().st_mtime_ns for file in files]
    write_model(get_model("micro"), folder)
    assert [file.stat().st_mtime_ns for file in files] == written


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(estimates(), indent=1) + "\n")
