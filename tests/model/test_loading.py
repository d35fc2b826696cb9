import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from imagegen.memory.plan import Gpu
from imagegen.model import loading
from imagegen.model.compile_cache import CompileCache
from imagegen.model.pipeline import FluxPipeline
from imagegen.models import get_model
from tests.support import ROOT, settings

PROGRAM = """
import asyncio, handler
output = asyncio.run(handler.handler({"id": "x", "input": {"prompt": "a red circle", "width": 64, "height": 64}}))
from huggingface_hub import constants
print(len(output["images"]), constants.HF_HUB_OFFLINE)
"""


@pytest.fixture
def loaded(monkeypatch):
    """A GPU, by name: what `load` makes of the settings for it, without loading anything there."""
    done = []
    monkeypatch.setattr(loading, "read_gpu", lambda device: Gpu.of(24, (9, 0)) if device != "cpu" else None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(FluxPipeline, "load", lambda self: done.append("load"))
    monkeypatch.setattr(loading, "warm_up", lambda pipeline: done.append("warm up"))
    monkeypatch.setattr(FluxPipeline, "compiled", True)
    monkeypatch.setattr(
        FluxPipeline,
        "compile_cache",
        lambda self, folder: CompileCache(folder, {"card": "of a kind", "model": "micro"}),
    )
    monkeypatch.setattr(CompileCache, "load", lambda self: done.append("read") or self.file.exists())
    monkeypatch.setattr(CompileCache, "save", lambda self: done.append("write"))

    def run(**changes):
        done.clear()
        stages = []
        pipeline = loading.load(get_model("micro"), settings(**changes), False, stages.append)
        return pipeline.config, done.copy(), stages

    return run


def test_on_a_gpu_blocks_are_compiled_and_images_generated_before_the_worker_is_ready(loaded, caplog):
    caplog.set_level(logging.INFO)
    config, done, stages = loaded(device="cuda")
    assert (config.compile, config.attention, config.prompt_cache) == (True, "cudnn", 512_000_000)
    assert done == ["load", "warm up"]
    assert stages[-1] == "warming up"
    assert "attention by cudnn: compute capability 9.0: cuDNN has kernels for it" in caplog.text


def test_on_a_cpu_nothing_is_compiled_or_warmed_up_unless_asked(loaded):
    config, done, stages = loaded(device="cpu")
    assert (config.compile, config.attention) == (False, None)
    assert done == ["load"]
    assert "warming up" not in stages
    config, done, _ = loaded(device="cpu", compile="on", warm_up="on", attention="native")
    assert (config.compile, config.attention) == (True, "native")
    assert done == ["load", "warm up"]


def test_what_is_off_stays_off(loaded):
    config, done, _ = loaded(device="cuda", compile="off", warm_up="off", attention="flash3", prompt_cache_mb=0)
    assert (config.compile, config.attention, config.prompt_cache) == (False, "flash3", 0)
    assert done == ["load"]


def test_layers_that_are_fetched_for_each_step_are_not_compiled_and_who_asks_for_it_is_told(loaded, caplog):
    config, _, _ = loaded(device="cuda", offload="group")
    assert (config.offload, config.compile) == ("group", False)
    assert "IMAGEGEN_COMPILE" not in caplog.text
    config, _, _ = loaded(device="cuda", offload="group", compile="on")
    assert not config.compile
    assert "IMAGEGEN_COMPILE=on: layers that are fetched as they run cannot be compiled" in caplog.text
    assert loaded(device="cuda", offload="model", compile="on")[0].compile


def test_compiled_code_is_read_before_the_warm_up_and_written_after_it_where_there_was_none(loaded, tmp_path):
    _, done, stages = loaded(device="cuda", compile_cache=tmp_path)
    assert done == ["load", "read", "warm up", "write"]
    assert stages[-2:] == ["reading the compile cache", "warming up"]
    (tmp_path / "of-a-kind_micro.compiled").write_bytes(b"")
    assert loaded(device="cuda", compile_cache=tmp_path)[1] == ["load", "read", "warm up"]
    assert loaded(device="cuda", compile_cache=tmp_path, warm_up="off")[1] == ["load", "read"]
    assert loaded(device="cuda", compile_cache=tmp_path, compile="off")[1] == ["load", "warm up"]


def test_blocks_with_a_kernel_that_the_compiler_does_not_know_are_not_compiled(loaded, caplog):
    config, _, _ = loaded(device="cuda", attention="sage")
    assert (config.compile, config.plan.compiled) == (False, False)
    assert "IMAGEGEN_ATTENTION=sage: blocks with this kernel cannot be compiled" in caplog.text


def test_a_decoder_that_is_not_here_is_downloaded(loaded, monkeypatch):
    monkeypatch.setattr(loading, "find_decoder", lambda _: None)
    monkeypatch.setattr(loading, "download_decoder", lambda *_: Path("fetched"))
    assert loaded(decoder="small")[0].decoder == Path("fetched")
    monkeypatch.setattr(loading, "find_decoder", lambda _: Path("found"))
    assert loaded(decoder="small")[0].decoder == Path("found")
    assert loaded()[0].decoder is None


@pytest.mark.slow  # a process of its own that loads the model
def test_no_library_asks_the_hub_for_weights_that_are_here():
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.split() == ["1", "True"], done.stderr
