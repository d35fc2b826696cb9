from dataclasses import replace

import pytest
import torch

from imagegen.errors import ConfigurationError, OutOfMemory
from imagegen.memory import plan as memory_plan
from imagegen.memory.footprint import activations, part_bytes
from imagegen.memory.plan import CONTEXT, RESERVE, WORKSPACE, Gpu, gib
from imagegen.memory.planner import choose
from imagegen.models import get_model

KLEIN = get_model("klein-9b")
SQUARE = (1024, 1024)
ADA_24 = choose(KLEIN, Gpu.of(24, (8, 9)))


def test_four_references_on_24_gb():
    """fp8 transformer, bf16 text encoder of 27 layers, embeddings on the CPU: 21.3 GiB compiled, 22.8 not."""
    assert (ADA_24.transformer, ADA_24.text_encoder, ADA_24.offload) == ("fp8", "bf16", "embeddings")
    assert ADA_24.peak / 2**30 == pytest.approx(21.3, rel=0.01)
    assert ADA_24.eager().peak / 2**30 == pytest.approx(22.8, rel=0.01)
    assert ADA_24.eager().references == 4
    assert gib(ADA_24.resident) == "18.7 GiB"


def test_a_part_that_waits_for_its_turn_is_in_the_peak_of_its_turn_alone():
    plans = {offload: choose(KLEIN, Gpu.of(80, (9, 0)), offload=offload) for offload in ("none", "model", "group")}
    needs = activations(KLEIN, SQUARE, [SQUARE] * 4, compiled=True)
    fp8 = activations(KLEIN, SQUARE, (), text_encoder="fp8")
    parts = plans["model"].parts
    assert plans["none"].peak == CONTEXT + parts.total + needs.encode_prompt + WORKSPACE + needs.denoise
    assert plans["model"].peak == CONTEXT + parts.transformer + parts.vae + needs.denoise
    alone = activations(KLEIN, SQUARE, [], compiled=True)
    turns = (parts.text_encoder + alone.encode_prompt, parts.transformer + alone.denoise, alone.decode)
    assert plans["model"].peak_of(SQUARE, []) == CONTEXT + parts.vae + max(turns)
    assert CONTEXT + needs.denoise < plans["group"].peak < plans["model"].peak / 2
    turn = choose(KLEIN, Gpu.of(16, (8, 9)))
    assert turn.offload == "text_encoder"
    assert turn.peak == CONTEXT + turn.resident + turn.parts.text_encoder + fp8.encode_prompt


def test_the_path_with_a_cache_of_references_fits_one_on_24_gb_and_two_with_an_fp8_text_encoder():
    kv = get_model("klein-9b-kv")
    bf16 = choose(kv, Gpu.of(24, (8, 9)))
    fp8 = replace(bf16, text_encoder="fp8", parts=part_bytes(kv, "fp8", "fp8"))
    assert [bf16.kv_fits(SQUARE, [SQUARE] * n) for n in (0, 1, 2)] == [True, False, False]
    assert [fp8.kv_fits(SQUARE, [SQUARE] * n) for n in (1, 2, 3)] == [True, True, False]
    assert choose(kv, None).kv_fits(SQUARE, [SQUARE] * 4)
    fetched = choose(kv, Gpu.of(24, (8, 9)), offload="model")
    assert fetched.transformer == "bf16"
    assert [fetched.kv_fits(SQUARE, [SQUARE] * n) for n in (1, 2)] == [True, False]


def test_what_has_been_seen_not_to_fit_is_promised_no_more():
    lowered = ADA_24.lowered(2)
    assert lowered.references == 2
    lowered.check(SQUARE, [SQUARE] * 2)
    with pytest.raises(OutOfMemory, match="with 3 references does not fit"):
        lowered.check(SQUARE, [SQUARE] * 3)
    assert ADA_24.lowered(-1).references == 0
    with pytest.raises(OutOfMemory):
        ADA_24.lowered(-1).check(SQUARE, [])


def test_a_plan_that_fits_compiled_alone_promises_fewer_references_where_nothing_compiles():
    assert ADA_24.gpu is not None
    tight = replace(ADA_24, gpu=replace(ADA_24.gpu, bytes=ADA_24.peak + RESERVE))
    assert not tight.fits(tight.gpu)
    assert tight.eager().references == 1
    assert tight.eager().fits(tight.gpu)


def test_an_image_that_fits_is_let_through():
    ADA_24.check(SQUARE, [SQUARE] * 4)
    ADA_24.check((1536, 1536), [])


def test_an_image_that_cannot_fit_is_refused_with_the_largest_size_that_does():
    with pytest.raises(OutOfMemory) as caught:
        ADA_24.check((2048, 2048), [])
    assert caught.value.message == "width: 2048x2048 does not fit the GPU's memory; 1616x1616 does"
    assert caught.value.field == "width"
    ADA_24.check((1616, 1616), [])
    with pytest.raises(OutOfMemory, match="^1024x1024 with 30 references does not fit .*; ask for fewer references$"):
        ADA_24.check(SQUARE, [SQUARE] * 30)


def test_nothing_is_refused_on_a_cpu():
    choose(KLEIN, None).check((2048, 2048), [SQUARE] * 40)


@pytest.mark.parametrize("size", [(2048, 2048), (1024, 2048), (2048, 1024), (2048, 512), (512, 512)])
def test_the_largest_size_that_fits_is_of_the_same_shape_and_smaller(size):
    available = (ADA_24.peak_of(size, []) - ADA_24.peak_of((256, 256), [])) // 2 + ADA_24.peak_of((256, 256), [])
    smaller = ADA_24.largest(size, [], available + RESERVE)
    assert ADA_24.peak_of(smaller, []) <= available
    assert smaller[0] < size[0]
    assert smaller[1] < size[1]
    assert smaller[0] / smaller[1] == pytest.approx(size[0] / size[1], rel=0.1)
    assert all(side % 16 == 0 and side >= KLEIN.min_size for side in smaller)


@pytest.fixture
def gpu(monkeypatch):
    """A GPU with 24 GB free, of which the CPU plays the part; torch holds 1 GB of it, half of that for nothing."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (24_000_000_000, 25_000_000_000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 1_000_000_000)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 500_000_000)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    return monkeypatch


def test_what_can_be_had_of_a_gpu(gpu):
    assert memory_plan.available_bytes("cuda") == 25_000_000_000 + CONTEXT


def test_out_of_memory_on_the_gpu_names_the_largest_size_that_should_fit_now(gpu):
    gpu.setattr(memory_plan, "available_bytes", lambda device: ADA_24.peak_of((800, 800), []) + RESERVE)
    error = memory_plan.out_of_memory(ADA_24, SQUARE, [], "cuda")
    assert error.message == "width: 1024x1024 does not fit the GPU's memory; 800x800 does"
    assert error.field == "width"
    error = memory_plan.out_of_memory(ADA_24, SQUARE, [SQUARE] * 4, "cuda")
    assert error.message == "1024x1024 with 4 references does not fit the GPU's memory; ask for fewer references"
    error = memory_plan.out_of_memory(None, SQUARE, [], "cuda")
    assert error.message == "1024x1024 does not fit the GPU's memory; ask for a smaller size"


def test_a_gpu_is_read_after_a_calculation_on_it(gpu):
    ones = torch.ones
    gpu.setattr(torch, "ones", lambda *size, device: ones(*size))
    assert memory_plan.read_gpu("cuda:1") == Gpu(25_000_000_000 + CONTEXT, (8, 9))
    assert memory_plan.read_gpu("cpu") is None


def test_a_gpu_that_does_not_work_is_named_before_the_weights_are_read():
    with pytest.raises(ConfigurationError, match=r"the GPU does not work \(\w+\).*driver"):
        memory_plan.read_gpu("cuda")
