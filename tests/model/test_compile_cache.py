import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from imagegen.model.compile_cache import CompileCache, compile_key

KEY = {"torch": "2.13.0", "gpu": "NVIDIA H100 80GB HBM3/x", "model": "klein-9b"}


@pytest.fixture
def compiled(monkeypatch):
    """What torch has compiled, and what it was handed."""
    handed = []
    monkeypatch.setattr(torch.compiler, "save_cache_artifacts", lambda: (b"code\nof a kind", object()))
    monkeypatch.setattr(torch.compiler, "load_cache_artifacts", lambda artifacts: handed.append(artifacts) or object())
    return handed


def test_what_is_saved_is_loaded_where_the_key_is_the_same(tmp_path, compiled, caplog):
    caplog.set_level(logging.INFO)
    cache = CompileCache(tmp_path / "new" / "folder", KEY)
    assert not cache.load()
    assert not caplog.records  # the folder is still to be filled: nothing to warn of
    cache.save()
    assert cache.file.name == "2.13.0_NVIDIA-H100-80GB-HBM3-x_klein-9b.compiled"
    assert list(cache.file.parent.iterdir()) == [cache.file]  # nothing half-written is left
    assert cache.file.stat().st_mode & 0o777 == 0o644
    assert CompileCache(cache.file.parent, KEY).load()
    assert compiled == [b"code\nof a kind"]


@pytest.mark.parametrize("changed", list(KEY))
def test_another_machines_cache_is_ignored_with_one_warning(tmp_path, compiled, caplog, changed):
    CompileCache(tmp_path, KEY).save()
    assert not CompileCache(tmp_path, {**KEY, changed: "another"}).load()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "none of the 1 compile caches" in record.getMessage()
    assert not compiled


@pytest.mark.parametrize("how", ["cut", "changed", "renamed", "empty"])
def test_a_broken_cache_is_ignored_with_one_warning(tmp_path, compiled, caplog, how):
    cache = CompileCache(tmp_path, KEY)
    cache.save()
    content = cache.file.read_bytes()
    if how == "renamed":
        cache.file.rename(tmp_path / "x")
        cache = CompileCache(tmp_path, {**KEY, "torch": "2.14.0"})
        (tmp_path / "x").rename(cache.file)
    else:
        cache.file.write_bytes({"cut": content[:-1], "changed": content[:-1] + b"?", "empty": b""}[how])
    assert not cache.load()
    (record,) = caplog.records
    assert "is broken or for another machine; it is ignored" in record.getMessage()
    assert not compiled  # torch never saw it


def test_a_folder_that_cannot_be_written_to_is_a_warning(tmp_path, compiled, caplog):
    (tmp_path / "file").write_text("")
    CompileCache(tmp_path / "file" / "folder", KEY).save()
    (record,) = caplog.records
    assert "cannot be written (" in record.getMessage()


def test_the_key_names_what_compiled_code_depends_on(pipeline):
    key = compile_key(pipeline._pipe, pipeline.config.spec)
    assert key["torch"] == torch.__version__
    assert (key["model"], key["weights"], key["attention"]) == ("micro", "Tensor-float32", "default")
    assert set(key) == {"torch", "triton", "diffusers", "gpu", "model", "weights", "attention", "loras"}


_COMPILED = """
import json, logging, sys, time
from pathlib import Path
from dataclasses import replace
import numpy as np
import torch
from torch._dynamo.utils import counters
from imagegen.model.loading import load
from imagegen.models import get_model
from tests.support import settings
from tests.support.images import scene

logging.basicConfig(level=logging.INFO, stream=sys.stderr)
HOW = {"num_inference_steps": 4, "guidance_scale": 1.0, "seed": 3}
chosen = settings(compile="on", warm_up="on", compile_cache=Path(sys.argv[1]))
stages = []
pipeline = load(replace(get_model("micro"), pipeline_class="Flux2KleinKVPipeline"), chosen, False, stages.append)
warm = counters["stats"]["unique_graphs"]
references = [scene("circle", "red", "blue"), scene("star", "green", "white").resize((96, 160))]
cases = [(0, 128, 128, False), (0, 256, 320, False), (1, 192, 128, True), (2, 96, 64, True), (2, 160, 96, False)]


def image_of(number, width, height, kv):
    pipeline.config = replace(pipeline.config, kv=kv)
    return pipeline.edit("make the background green", references[:number], width=width, height=height, **HOW).image \\
        if number else pipeline.generate("a yellow star on a blue background", width=width, height=height, **HOW).image


compiled = [np.asarray(image_of(*case), int) for case in cases]
later = counters["stats"]["unique_graphs"] - warm
from imagegen.model.acceleration import run_eagerly
run_eagerly(pipeline._pipe)
worst = max(np.abs(np.asarray(image_of(*case), int) - image).max() for case, image in zip(cases, compiled))
print(json.dumps({
    "stages": stages, "warm": warm, "later": later, "worst": int(worst),
    "made": counters["inductor"]["fxgraph_cache_miss"], "found": counters["inductor"]["fxgraph_cache_hit"],
}))
"""


def _run(folder: Path, own: Path) -> tuple[dict, str]:
    """A process with nothing compiled but what `folder` holds."""
    done = subprocess.run(
        [sys.executable, "-c", _COMPILED, str(folder)],
        env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(own)},
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


@pytest.mark.slow  # torch compiles for a minute
def test_compiled_images_are_the_eager_ones_and_the_code_outlives_its_process(tmp_path):
    """With inductor on the CPU: one graph for each kind of block (double, single) and each way to use references
    (plain; keys and values taken; used), whatever their number and the size. All are there after the warm-up, and in
    the file: the second process, which has nothing else, compiles nothing."""
    graphs = 6
    first, said = _run(tmp_path / "cache", tmp_path / "a")
    assert first["stages"][-2:] == ["reading the compile cache", "warming up"]
    assert (first["warm"], first["later"]) == (graphs, 0)
    assert first["worst"] <= 2  # of 255
    assert (first["made"], first["found"]) == (graphs, 0)
    assert "is written" in said
    second, said = _run(tmp_path / "cache", tmp_path / "b")
    assert (second["made"], second["found"]) == (0, graphs)
    assert second["worst"] <= 2
    assert "with the compile cache" in said
