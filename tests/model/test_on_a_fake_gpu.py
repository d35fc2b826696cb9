"""The GPU path at klein's full widths on a GPU that is not there: no operation of two devices or types, no wait but
those below, the memory of the plan, nothing left after unloading."""

import gc
import itertools
from dataclasses import replace

import pytest
import torch
from PIL import Image

from benchmarks.random_model import write_outline
from imagegen.errors import OutOfMemory
from imagegen.lora.layers import layers
from imagegen.memory.plan import CONTEXT, REFERENCE, Gpu
from imagegen.memory.planner import choose
from imagegen.model.adapters import Adapter, Matrices, Scaled
from imagegen.model.config import FluxConfig
from imagegen.model.pipeline import FluxPipeline
from imagegen.model.warm_up import warm_up
from imagegen.models import get_model
from tests.support.fake_cuda import DEVICE
from tests.support.fake_gpu import fake_gpu

SQUARE = (1024, 1024)
#: References and size: what every plan is tried with, and a column of docs/benchmarks.md (`pytest -s` prints the rows).
CASES = [(0, SQUARE), (1, SQUARE), (4, SQUARE), (0, (2048, 2048)), (1, (1088, 656)), (0, (256, 256))]
NUMBERS = itertools.count()
#: Where the host waits for the GPU while an image is generated, and why. There is no other wait, and no blocking copy.
WAITS = {
    "event: images.py wait": "each step waits for the one before; the image for its copy; the prompt's seconds",
}
#: And where layers wait on the CPU for their turn; those are the library's.
OFFLOAD_WAITS = {
    "copy up: pipeline_flux2_klein.py __call__": "group: the mean and deviation of the VAE's latents",
    "copy up: pipeline_flux2_klein.py _encode_vae_image": "group: the same",
    "copy up: group_offloading.py _transfer_tensor_to_device": "group: a layer, on a stream of its own",
    "stream: group_offloading.py pre_forward": "group: a layer waits for its copy",
    "stream: group_offloading.py _onload_from_memory": "group: and for that of the one before",
    "stream: group_offloading.py _offload_to_memory": "group: a layer's memory is freed when its work is done",
}


def thin(name):
    """A model of klein's widths with a few of its blocks: an image needs the same memory beside fewer weights."""
    spec = get_model(name)
    return replace(spec, architecture=replace(spec.architecture, double_blocks=1, single_blocks=2))


@pytest.fixture(scope="module")
def outline(tmp_path_factory):
    """The folder of a model, weights left out."""
    folders = {}

    def make(spec):
        if spec.name not in folders:
            folders[spec.name] = write_outline(spec, tmp_path_factory.mktemp(spec.name))
        return folders[spec.name]

    return make


def opened(spec, folder, gigabytes=80, capability=(9, 0), **how):
    """A pipeline, not loaded, by the plan of a GPU."""
    kv = how.pop("kv", None)
    plan = choose(spec, Gpu.of(gigabytes, capability), compiled=False, **how)
    return FluxPipeline(
        FluxConfig(
            spec,
            folder,
            device=DEVICE,
            transformer=plan.transformer,
            text_encoder=plan.text_encoder,
            offload=plan.offload,
            plan=plan,
            prompt_cache=10**9,
            kv=kv,
            lora_rank=plan.lora_rank,
        )
    )


def adapters(spec):
    """Two adapters of a job, of rank 24 together, one for all layers and one for a part."""
    every = {
        name: Matrices(torch.zeros(16, columns, dtype=torch.bfloat16), torch.zeros(16, rows, dtype=torch.bfloat16))
        for name, (rows, columns) in layers(spec).items()
    }
    part = Matrices(*(matrix[:8] for matrix in every["proj_out"]))
    return [Scaled(Adapter(16, every), 1.0), Scaled(Adapter(8, {"proj_out": part}), -0.5)]


def generate(pipeline, references=0, size=SQUARE, steps=1, on_step=None):
    """An image, of a prompt that is in no cache; with adapters where there is room for them."""
    images = [Image.new("RGB", REFERENCE)] * references
    return pipeline.edit(
        f"a red fox, {next(NUMBERS)}",
        images,
        width=size[0],
        height=size[1],
        num_inference_steps=steps,
        guidance_scale=pipeline.config.spec.guidance_scale,
        negative_prompt="blurred",  # of effect with a base model alone
        seed=0,
        loras=adapters(pipeline.config.spec) if pipeline.config.lora_rank else (),
        on_step=on_step,
    ).image


def measured(gpu, pipeline, references=0, size=SQUARE, **how):
    """Generates an image; its peak against the plan's, with the context, which a fake GPU has not."""
    gpu.reset()
    assert generate(pipeline, references, size, **how).size == size
    allowed = set(WAITS) | (set(OFFLOAD_WAITS) if pipeline.config.offload == "group" else set())
    assert set(gpu.waits) <= allowed
    return (gpu.peak + CONTEXT) / pipeline.config.plan.peak_of(size, [REFERENCE] * references) - 1


def runs(spec, folder, cases, gigabytes=80, capability=(9, 0), **how):
    """Loads, generates each case, unloads: the assertions of this file."""
    with fake_gpu(gigabytes, capability) as gpu:
        pipeline = opened(spec, folder, gigabytes, capability, **how)
        plan = pipeline.config.plan
        with pipeline:
            assert gpu.live == pytest.approx(plan.resident + plan.loras, rel=0.01, abs=1e6)
            generate(pipeline)
            errors = {case: measured(gpu, pipeline, *case) for case in cases}
        del pipeline
        gc.collect()
        assert gpu.live == 0
    shown = "".join(f" {errors[case]:+.1%} |" if case in errors else " |" for case in CASES)
    print(f"\n| {spec.name} | {plan.transformer}, {plan.text_encoder} | {plan.offload} |{shown}")
    assert {case: error for case, error in errors.items() if not -0.03 < error < 0.03} == {}


def test_a_24_gb_gpu_holds_four_references_in_fp8_without_compiling(outline):
    """8.0 GB beside the weights, with torchao's layers as they are, where there is room for 4.7."""
    spec = thin("klein-9b")
    runs(spec, outline(spec), [(0, SQUARE), (4, SQUARE)], 24, (8, 9), precision="fp8", offload="embeddings")
    whole = choose(get_model("klein-9b"), Gpu.of(24, (8, 9)), compiled=False)
    assert (whole.transformer, whole.text_encoder, whole.references) == ("fp8", "bf16", 4)


def test_steps_previews_a_stop_and_a_lack_of_memory_leave_nothing_behind(outline):
    class Stop(BaseException):
        pass

    def stop(step, total, preview):
        assert preview().size == SQUARE
        raise Stop

    spec = thin("klein-9b")
    with fake_gpu() as gpu:
        with opened(spec, outline(spec)) as pipeline:
            generate(pipeline)
            gpu.reset()
            generate(pipeline, steps=4)
            assert gpu.waits == {"event: images.py wait": 4}  # three steps for the one before, and the image
            live = gpu.live
            with pytest.raises(Stop):
                generate(pipeline, on_step=stop)
            assert gpu.live <= live + 10**6
            gpu.limit = live + 10**9  # less than an edit with four references needs
            with pytest.raises(OutOfMemory):
                generate(pipeline, 4)
            assert generate(pipeline, 0, (512, 512)).size == (512, 512)
            assert gpu.live <= live + 10**6
            gpu.limit = live + 29 * 10**8
            warm_up(pipeline)  # four references do not fit, three do not, two do
            plan = pipeline.config.plan
            assert plan.references == 2
            plan.check(SQUARE, [REFERENCE] * 2)
            with pytest.raises(OutOfMemory):
                plan.check(SQUARE, [REFERENCE] * 3)
        del pipeline
        gc.collect()
        assert gpu.live == 0


def test_a_preview_is_decoded_without_a_transformer_that_is_fetched(outline):
    spec, size, shown = thin("klein-9b"), (2048, 2048), []
    with fake_gpu() as gpu, opened(spec, outline(spec), precision="bf16", offload="model") as pipeline:
        generate(pipeline, size=size)
        gpu.reset()
        generate(pipeline, size=size, steps=2, on_step=lambda step, total, preview: shown.append(preview().size))
        assert shown == [size] * 2
        assert gpu.peak + CONTEXT < 1.03 * pipeline.config.plan.peak_of(size, [])


def test_an_operation_of_two_devices_is_found():
    with fake_gpu(), pytest.raises(RuntimeError, match="device"):
        torch.ones(2, device=DEVICE) + torch.ones(2)


def test_what_makes_the_host_wait_is_counted():
    with fake_gpu() as gpu:
        values = torch.ones(2, device=DEVICE)
        values.sum().item()
        values.cpu()
        values.to("cpu", non_blocking=True)
        assert [kind.partition(":")[0] for kind in gpu.waits] == ["item", "copy down"]
        assert gpu.live == 512


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp8", "int8"])
@pytest.mark.parametrize("offload", ["none", "embeddings", "text_encoder", "model", "group"])
@pytest.mark.parametrize("name", ["klein-9b", "klein-4b"])
def test_every_plan_runs_in_its_memory(outline, name, offload, precision):
    spec = thin(name)
    capability = (8, 6) if precision == "int8" else (9, 0)
    runs(spec, outline(spec), CASES, 80, capability, precision=precision, offload=offload)


def test_adapters_stay_on_the_gpu_while_the_weights_come_and_go(outline):
    spec = thin("klein-9b")
    runs(spec, outline(spec), [(1, SQUARE)], precision="bf16", offload="group", lora_rank=64)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp8", "int8"])
@pytest.mark.parametrize("offload", ["none", "embeddings", "text_encoder", "model", "group"])
def test_adapters_at_every_size_in_the_memory_of_each_plan(outline, offload, precision):
    spec = thin("klein-9b")
    capability = (8, 6) if precision == "int8" else (9, 0)
    runs(spec, outline(spec), CASES, 80, capability, precision=precision, offload=offload, lora_rank=64)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp8"])
@pytest.mark.parametrize("name", ["klein-base-9b", "klein-base-4b"])
def test_a_base_model_runs_with_guidance_and_a_negative_prompt(outline, name, precision):
    spec = thin(name)
    runs(spec, outline(spec), CASES, precision=precision)


@pytest.mark.slow
@pytest.mark.parametrize(("references", "precision"), [(1, "bf16"), (4, "bf16"), (2, "fp8")])
def test_the_path_with_cached_keys_and_values_needs_what_is_estimated(outline, references, precision):
    from imagegen.memory.footprint import kv_bytes

    spec = get_model("klein-9b-kv")
    with fake_gpu() as gpu, opened(spec, outline(spec), precision=precision, kv=True) as pipeline:
        generate(pipeline)
        gpu.reset()
        generate(pipeline, references)
        estimate = pipeline.config.plan.resident + kv_bytes(spec, SQUARE, [REFERENCE] * references)
        assert gpu.peak == pytest.approx(estimate, rel=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_the_whole_model_runs_in_its_memory(outline, precision):
    spec = get_model("klein-9b")
    runs(spec, outline(replace(spec, name="whole")), [(0, SQUARE), (4, SQUARE)], precision=precision)
