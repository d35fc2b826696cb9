"""`make benchmark-gpu` from end to end with micro on the CPU: all but CUDA itself."""

import json
import sys
import time

import pytest

from benchmarks import gpu as benchmark_gpu
from benchmarks.gpu_parts import PARTS, Benchmark, Row
from benchmarks.measure import Device
from benchmarks.probes import step_flops
from imagegen.models import MICRO_PATH, get_model

ROWS = [
    "smoke: an image",
    "smoke: an edit",
    "smoke: a stop in a step",
    "smoke: out of memory",
    "smoke: the VAE's norms",
    "smoke: unloading",
    "bare diffusers, bf16, 0 references",
    "bare diffusers, bf16, 1 references",
    "bare diffusers, bf16, 4 references",
    "1 references, bf16",
    "4 references, bf16",
    "1 references, fp8",
    "4 references, fp8",
    "text to image, 4 steps, bf16, 128x128",
    "model FLOPs used",
    "repeated prompt",
    "load to GPU",
    "24 GB, 4 references",
    "text to image, 4 steps, fp8, 128x128",
    "fp8 on the GPU against bf16 with model offload",
    "cached keys and values",
    "not compiled, bf16, 0 references",
    "not compiled, bf16, 1 references",
    "not compiled, bf16, 4 references",
    "not compiled, fp8, 0 references",
    "not compiled, fp8, 1 references",
    "not compiled, fp8, 4 references",
    "attention by native",
    "attention by cudnn",
    "a scale for each whole weight",
    "the VAE with torch's own norms, bf16, 0 references",
    "the VAE with torch's own norms, bf16, 1 references",
    "the text encoder not recorded",
    "compiled with max-autotune",
]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The JSON and the table of one whole run."""
    folder = tmp_path_factory.mktemp("gpu")
    with pytest.MonkeyPatch.context() as patch:
        command = ["benchmark_gpu", "--model", "micro", "--device", "cpu", "--output", str(folder)]
        patch.setattr(sys, "argv", command)
        assert benchmark_gpu.main() == 0
    return json.loads((folder / "benchmark_gpu.json").read_text()), (folder / "benchmark_gpu.md").read_text()


@pytest.mark.slow  # the whole benchmark, with micro
def test_every_promise_is_measured(report):
    result, text = report
    rows = {what: next(row for row in result["rows"] if row["what"].startswith(what)) for what in ROWS}
    assert len(result["rows"]) == len(ROWS)
    assert all(row["what"] in text and row["target"] in text for row in rows.values())
    measured = [row for what, row in rows.items() if not what.startswith(("24 GB", "cached", "smoke"))]
    assert all(row["met"] for what, row in rows.items() if what.startswith("smoke"))
    assert all(row["value"] is not None and not row["note"].startswith(("not", "broken")) for row in measured)
    assert rows["24 GB, 4 references"]["met"] is True
    assert rows["24 GB, 4 references"]["details"]["references"] == 4
    assert result["machine"]["torch"] and result["machine"]["diffusers"]


@pytest.mark.slow  # the whole benchmark, with micro
def test_a_missed_target_says_where_the_time_goes(report):
    result, text = report
    row = next(row for row in result["rows"] if row["what"].startswith("model FLOPs used"))
    assert row["met"] is False  # micro is too small to fill a CPU
    assert {"operation", "milliseconds", "share", "calls"} == set(row["profile"][0])
    assert f"Where the time goes: {row['what']}" in text


class Parts(Benchmark):
    """One part fails, one takes too long inside of the compiler, one has no time left."""

    def _bf16(self):
        raise RuntimeError("no kernel image is available")

    def _loading(self):
        self._add(Row("measured"))

    def _kv(self):
        try:
            time.sleep(60)
        except Exception as error:  # as torch.compile would
            raise RuntimeError("the compiler failed") from error


def test_what_fails_or_takes_too_long_costs_its_own_row_alone_and_each_is_saved():
    saved = []
    parts = Parts(
        get_model("micro"),
        MICRO_PATH,
        Device("cpu"),
        time.monotonic() + 1,
        compiled=False,
        save=lambda rows: saved.append([row.what for row in rows]),
    )
    parts.run(("bf16", "loading", "kv", "levers"))
    assert [(row.what, row.note) for row in parts.rows] == [
        ("bf16", "broken off: RuntimeError: no kernel image is available"),
        ("measured", ""),
        ("kv", "broken off: _OutOfTime: the time was over"),
        ("levers", "not measured: the time was over"),
    ]
    assert saved[0] == ["bf16"]
    assert ["bf16", "measured"] in saved


def test_two_calls_measure_what_one_does():
    assert (*PARTS["1"], *PARTS["2"]) == PARTS["all"]


def test_the_work_of_a_step_is_that_of_the_traced_model():
    """75.5 TFLOP at 1024x1024, of which 11.1 are attention."""
    assert step_flops(get_model("klein-9b"), 1024) / 1e12 == pytest.approx(75.5, abs=0.1)
