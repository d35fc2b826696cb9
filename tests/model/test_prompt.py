"""What a GPU did for the first prompt is recorded and done again for others, where the text encoder stays there."""

import logging
from contextlib import nullcontext
from dataclasses import replace
from unittest import mock

import pytest
import torch

from imagegen.errors import GpuFailed
from imagegen.memory.plan import Gpu
from imagegen.memory.planner import choose
from imagegen.model import prompt
from imagegen.model.config import FluxConfig
from imagegen.model.pipeline import FluxPipeline
from tests.model.test_on_a_fake_gpu import opened, outline, thin
from tests.support.fake_cuda import DEVICE
from tests.support.fake_gpu import fake_gpu

__all__ = ["outline"]  # a fixture


class Recorded:
    made, calls = 0, 0

    def __init__(self, function, *inputs):
        Recorded.made += 1
        self.function = function

    def __call__(self, *inputs):
        Recorded.calls += 1
        return self.function(*inputs)


def prompts(outline, offload):
    spec = thin("klein-9b")
    pipeline = opened(spec, outline(spec), precision="bf16", offload=offload)
    pipeline.config = replace(pipeline.config, compile=True)
    with pipeline:
        return [pipeline.encode_prompt(words).embeddings.shape for words in ("a", "b", "b")]


@pytest.mark.parametrize(("offload", "made", "calls"), [("none", 1, 2), ("embeddings", 1, 2), ("text_encoder", 0, 0)])
def test_a_text_encoder_that_stays_is_recorded_once(outline, offload, made, calls):
    Recorded.made = Recorded.calls = 0
    with fake_gpu(), mock.patch.object(prompt, "Graph", Recorded):
        assert prompts(outline, offload) == [(1, 512, 3 * 4096)] * 3
    assert (Recorded.made, Recorded.calls) == (made, calls)


def test_what_cannot_be_recorded_is_said_and_done_without(outline, caplog):
    def fail(*_):
        raise prompt.NotRecorded("RuntimeError: it cannot be done")

    with fake_gpu(), mock.patch.object(prompt, "Graph", fail), caplog.at_level(logging.WARNING):
        assert prompts(outline, "none") == [(1, 512, 3 * 4096)] * 3
    assert [record.getMessage() for record in caplog.records if record.name == "imagegen.model.prompt"] == [
        "the text encoder cannot be recorded (RuntimeError: it cannot be done)"
    ]


class Capture:
    """torch.cuda.graph: what it is left with may fail."""

    def __init__(self, fails):
        self.fails = fails

    def __call__(self, *_, **__):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.fails:
            raise torch.AcceleratorError("CUDA error: operation failed due to a previous error during capture")


@pytest.mark.parametrize(
    ("inside", "ends", "error"),
    [(False, True, None), (True, True, prompt.NotRecorded), (True, False, GpuFailed), (False, False, GpuFailed)],
)
def test_a_recording_that_cannot_be_ended_costs_the_worker_and_another_its_speed_alone(
    monkeypatch, inside, ends, error
):
    """After the first torch's memory stays as it was in the middle of a recording."""
    calls = []

    def function(tensor):
        calls.append(tensor)
        if inside and len(calls) == 2:
            raise RuntimeError("it cannot be done")
        return tensor

    stream = mock.Mock()
    monkeypatch.setattr(torch.cuda, "CUDAGraph", mock.Mock)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "graph", Capture(fails=not ends))
    with pytest.raises(error) if error else nullcontext():
        prompt.Graph(function, torch.ones(2))


def test_a_recording_that_cannot_be_ended_is_said_with_the_way_out(outline):
    """Though it came of a lack of memory, after which a worker would go on."""

    def fail(*_):
        raise GpuFailed("IMAGEGEN_COMPILE=off records nothing") from torch.OutOfMemoryError("CUDA out of memory")

    with (
        fake_gpu(),
        mock.patch.object(prompt, "Graph", fail),
        pytest.raises(GpuFailed, match="IMAGEGEN_COMPILE=off"),
    ):
        prompts(outline, "none")


@pytest.mark.parametrize("precision", ["bf16", "fp8", pytest.param("int8", marks=pytest.mark.slow)])
def test_what_is_recorded_needs_the_memory_of_the_plan(outline, precision):
    spec = thin("klein-9b")
    plan = replace(choose(spec, Gpu.of(80, (9, 0)), offload="none"), text_encoder=precision)
    with fake_gpu() as gpu:
        config = FluxConfig(spec, outline(spec), device=DEVICE, text_encoder=precision, plan=plan, compile=True)
        with FluxPipeline(config) as pipeline:
            before = gpu.live
            pipeline.encode_prompt("a red fox")
            assert gpu.live - before == pytest.approx(plan.recorded, rel=0.2)
