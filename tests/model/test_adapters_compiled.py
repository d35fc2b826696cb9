"""Compiled blocks and LoRA: how many graphs there are, that the warm-up makes them all, and that torch's limit of
graphs for one function is far from them."""

from dataclasses import replace

import pytest
import torch
from PIL import Image
from torch._dynamo.eval_frame import _debug_get_cache_entry_list
from torch._dynamo.utils import counters

from benchmarks.lora import random_adapter
from imagegen.compat.torch import treat_equal_sizes_as_different
from imagegen.model import acceleration
from imagegen.model.adapters import Scaled
from imagegen.model.compile_cache import compile_key
from imagegen.model.pipeline import FluxPipeline
from imagegen.model.warm_up import warm_up
from imagegen.models import get_model


@pytest.fixture
def traced(monkeypatch):
    """Blocks are compiled to graphs, which then run as they are: Inductor's code is not what is looked at here."""

    def compile_blocks(pipe):
        treat_equal_sizes_as_different()
        pipe.transformer.compile_repeated_blocks(fullgraph=True, dynamic=True, backend="eager")

    monkeypatch.setattr(acceleration, "compile_blocks", compile_blocks)
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def graphs():
    return counters["stats"]["unique_graphs"]


@pytest.mark.slow  # traces 12 graphs, for 20 seconds of CPU
def test_every_graph_of_the_model_with_cached_keys_and_values_is_there_after_the_warm_up(config, traced):
    """Two kinds of blocks, three ways to use references (plain; keys and values taken; used), with adapters and
    without: 12, of which torch counts the 6 of each kind against its limit of 8."""
    kv = replace(get_model("micro"), pipeline_class="Flux2KleinKVPipeline")
    with FluxPipeline(replace(config, spec=kv, compile=True, lora_rank=8, kv=True)) as pipeline:
        warm_up(pipeline)
        assert graphs() == 12
        jobs = [(0, True), (1, True), (2, True), (2, False)]
        for number, (references, cached) in enumerate(jobs * 2):
            pipeline.config = replace(pipeline.config, kv=cached)
            pipeline.edit(
                "a red circle",
                [Image.new("RGB", (64, 64 + 16 * number))] * references,
                width=64 + 16 * number,
                height=64,
                num_inference_steps=4,
                guidance_scale=1.0,
                seed=1,
                loras=[Scaled(random_adapter(kv, 1 + number, number), 0.5)] if number % 3 else [],
            ).image.close()
        assert graphs() == 12
        assert pipeline.compiled
        transformer = pipeline._pipe.transformer
        for block in (transformer.transformer_blocks[0], transformer.single_transformer_blocks[0]):
            entries = _debug_get_cache_entry_list(type(block).forward.__code__)
            assert len(entries) == 6 < torch._dynamo.config.recompile_limit


def test_code_with_adapters_is_not_taken_for_code_without(config, traced):
    keys = []
    for rank in (0, 8, 64):
        with FluxPipeline(replace(config, lora_rank=rank)) as pipeline:
            keys.append(pipeline.compile_cache(config.path).file.name)
            assert compile_key(pipeline._pipe, config.spec, rank)["weights"] == "Tensor-float32"
    assert len(set(keys)) == 3
    assert [key.rpartition("_")[2] for key in keys] == [
        "no-loras.compiled",
        "loras-to-rank-8.compiled",
        "loras-to-rank-64.compiled",
    ]
