"""LoRA on the loaded model: as diffusers and peft apply it, on every precision, and gone without a trace after it."""

import json
from dataclasses import replace

import pytest
import torch
from diffusers import Flux2KleinPipeline
from diffusers.loaders import lora_conversion_utils as diffusers_own

from benchmarks import lora
from imagegen.errors import OutOfMemory
from imagegen.lora import header
from imagegen.lora.header import Broken
from imagegen.lora.layers import layers
from imagegen.memory.footprint import lora_bytes
from imagegen.model.adapters import Adapter, LoraLayers, Matrices, Scaled, read_adapter
from imagegen.model.assembly import empty_modules
from imagegen.model.pipeline import FluxPipeline
from imagegen.models import MICRO_PATH
from tests.support.loras import MICRO, SHIPPED, random_tensors, save

HOW = {"width": 96, "height": 64, "num_inference_steps": 2, "guidance_scale": 1.0}
PROMPT = "a green circle on a red background"


@pytest.fixture(scope="module")
def loaded(config):
    with FluxPipeline(replace(config, lora_rank=16)) as pipeline:
        yield pipeline


@pytest.fixture(scope="module")
def plain(pipeline):
    return pipeline.generate(PROMPT, seed=5, **HOW).image.tobytes()


def opened(file, rank=64):
    return read_adapter(file, header.read(file, MICRO, rank), torch.float32)


def shipped(name):
    return opened(SHIPPED / f"{name}.safetensors")


def draw(pipeline, *loras, **more):
    return pipeline.generate(PROMPT, seed=5, loras=loras, **{**HOW, **more}).image


def difference(one, other):
    a, b = (torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).int() for image in (one, other))
    return (a - b).abs().max().item()


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")  # at the second adapter
@pytest.mark.parametrize("used", [[("frame", 1.0)], [("frame", 0.5)], [("frame", 0.7), ("ring", -1.5)]])
def test_pictures_are_those_of_diffusers_and_peft(loaded, used):
    bare = Flux2KleinPipeline.from_pretrained(MICRO_PATH, dtype=torch.float32)
    for name, _ in used:
        bare.load_lora_weights(SHIPPED / f"{name}.safetensors", adapter_name=name, use_safetensors=True)
    bare.set_adapters([name for name, _ in used], [scale for _, scale in used])
    wanted = bare(prompt=PROMPT, generator=torch.Generator().manual_seed(5), max_sequence_length=32, **HOW).images[0]
    drawn = draw(loaded, *(Scaled(shipped(name), scale) for name, scale in used))
    assert difference(drawn, wanted) <= 1
    assert difference(drawn, draw(loaded)) > 8


def test_without_adapters_a_picture_is_bit_identical_to_the_bare_model_s(loaded, plain):
    assert draw(loaded).tobytes() == plain
    draw(loaded, Scaled(shipped("frame"), 1.0))
    assert draw(loaded).tobytes() == plain


def test_at_scale_0_a_picture_is_the_bare_model_s(loaded, plain):
    assert draw(loaded, Scaled(shipped("frame"), 0.0)).tobytes() == plain


def test_an_adapter_leaves_nothing_in_those_after_it(loaded):
    part = Adapter(2, {"x_embedder": shipped_part("x_embedder")})
    alone = draw(loaded, Scaled(part, 1.0)).tobytes()
    draw(loaded, Scaled(shipped("frame"), 1.0), Scaled(shipped("ring"), 1.0))
    assert draw(loaded, Scaled(part, 1.0)).tobytes() == alone


def shipped_part(name):
    rows, columns = layers(MICRO)[name]
    random = torch.Generator().manual_seed(3)
    return Matrices(torch.randn(2, columns, generator=random), torch.randn(2, rows, generator=random))


class Stop(BaseException):
    pass


@pytest.mark.parametrize("error", [Stop, torch.OutOfMemoryError, RuntimeError])
def test_whatever_ends_a_picture_the_next_one_is_the_bare_model_s(loaded, plain, error):
    def on_step(step, total, preview):
        raise error("in the middle")

    wanted = OutOfMemory if error is torch.OutOfMemoryError else error
    with pytest.raises(wanted):
        draw(loaded, Scaled(shipped("frame"), 1.0), on_step=on_step)
    assert draw(loaded).tobytes() == plain


def test_a_copy_that_fails_half_way_is_done_anew(loaded, plain):
    right = draw(loaded, Scaled(shipped("ring"), 1.0)).tobytes()
    broken = shipped("ring")
    last = list(broken.layers)[-1]
    broken.layers[last] = Matrices(torch.zeros(5, 3), torch.zeros(5, 3))  # fits no layer
    with pytest.raises(RuntimeError):
        draw(loaded, Scaled(broken, 1.0))
    assert draw(loaded).tobytes() == plain
    assert draw(loaded, Scaled(shipped("ring"), 1.0)).tobytes() == right


def test_ranks_over_the_buffers_and_a_model_without_room(loaded, pipeline):
    with pytest.raises(ValueError, match="over 16"):
        draw(loaded, *(Scaled(shipped("frame"), 1.0) for _ in range(4)))
    with pytest.raises(ValueError, match="without room"):
        draw(pipeline, Scaled(shipped("frame"), 1.0))


@pytest.mark.parametrize("precision", ["fp8", "int8"])
def test_on_quantised_weights(config, precision):
    with FluxPipeline(replace(config, transformer=precision, lora_rank=8, dtype="bfloat16")) as quantised:
        before = draw(quantised)
        file = SHIPPED / "frame.safetensors"
        frame = read_adapter(file, header.read(file, MICRO, 64), torch.bfloat16)
        assert difference(draw(quantised, Scaled(frame, 1.0)), before) > 8
        assert draw(quantised).tobytes() == before.tobytes()


def test_the_buffers_take_what_the_plan_counts():
    transformer = empty_modules(MICRO_PATH)["transformer"]
    made = LoraLayers(transformer, MICRO, 32, torch.device("meta"), torch.bfloat16)
    assert made.bytes == lora_bytes(MICRO, 32)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e38])
def test_values_that_are_not_finite_are_refused(tmp_path, value):
    tensors = random_tensors(names=["proj_out"])
    tensors["transformer.proj_out.lora_B.weight"][3, 1] = value
    if value == 1e38:
        tensors["transformer.proj_out.alpha"] = torch.tensor([1e9])
    with pytest.raises(Broken, match="not finite"):
        opened(save(tensors, tmp_path / "x"))


def matrices(adapter):
    return {name: pair.up.t() @ pair.down for name, pair in adapter.layers.items()}


def theirs(converted):
    names = {key.rpartition(".lora_")[0] for key in converted}
    return {
        name.removeprefix("transformer."): converted[f"{name}.lora_B.weight"] @ converted[f"{name}.lora_A.weight"]
        for name in names
    }


def bfl_tensors():
    """All layers of micro in BFL's naming, but the last modulation, whose halves diffusers' converter leaves."""
    random, made = torch.Generator().manual_seed(1), {}

    def add(name, rows, columns):
        made[f"{name}.lora_A.weight"] = torch.randn(3, columns, generator=random)
        made[f"{name}.lora_B.weight"] = torch.randn(rows, 3, generator=random)

    for i in range(2):
        for part in ("img", "txt"):
            add(f"double_blocks.{i}.{part}_attn.qkv", 384, 128)
            add(f"double_blocks.{i}.{part}_attn.proj", 128, 128)
            add(f"double_blocks.{i}.{part}_mlp.0", 768, 128)
            add(f"double_blocks.{i}.{part}_mlp.2", 128, 384)
    for i in range(4):
        add(f"single_blocks.{i}.linear1", 1152, 128)
        add(f"single_blocks.{i}.linear2", 128, 512)
    add("img_in", 128, 32)
    add("txt_in", 128, 192)
    add("time_in.in_layer", 128, 64)
    add("time_in.out_layer", 128, 128)
    add("final_layer.linear", 32, 128)
    return made


@pytest.mark.parametrize("prefix", ["diffusion_model.", "base_model.model.", ""])
def test_bfl_s_naming_is_read_as_diffusers_reads_it(tmp_path, prefix):
    tensors = {f"{prefix}{name}": value for name, value in bfl_tensors().items()}
    found = matrices(opened(save(tensors, tmp_path / "x")))
    converted = diffusers_own._convert_non_diffusers_flux2_lora_to_diffusers(
        {f"diffusion_model.{name}": value for name, value in bfl_tensors().items()}
    )
    wanted = theirs(converted)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value)


def test_kohya_s_naming_and_alpha_are_read_as_diffusers_reads_them(tmp_path):
    tensors = {}
    for name, value in bfl_tensors().items():
        module, _, matrix = name.removesuffix(".weight").rpartition(".lora_")
        flat = f"lora_unet_{module.replace('.', '_')}"
        tensors[f"{flat}.lora_{'down' if matrix == 'A' else 'up'}.weight"] = value
        tensors[f"{flat}.alpha"] = torch.tensor(1.5)
    found = matrices(opened(save(tensors, tmp_path / "x")))
    wanted = theirs(diffusers_own._convert_kohya_flux2_lora_to_diffusers(dict(tensors)))
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value)


def test_the_last_modulation_s_halves_change_places(tmp_path):
    tensors = {
        "diffusion_model.final_layer.adaLN_modulation.1.lora_A.weight": torch.ones(1, 128),
        "diffusion_model.final_layer.adaLN_modulation.1.lora_B.weight": torch.arange(256.0)[:, None],
    }
    up = opened(save(tensors, tmp_path / "x")).layers["norm_out.linear"].up
    assert up[0].tolist() == [*range(128, 256), *range(128)]


def test_peft_s_rank_stabilised_scale(tmp_path):
    settings = {"transformer.lora_alpha": 6, "transformer.use_rslora": True}
    tensors = random_tensors(4, names=["proj_out"])
    found = matrices(opened(save(tensors, tmp_path / "x", {"lora_adapter_metadata": json.dumps(settings)})))
    product = tensors["transformer.proj_out.lora_B.weight"] @ tensors["transformer.proj_out.lora_A.weight"]
    torch.testing.assert_close(found["proj_out"], product * 3)


@pytest.mark.slow
def test_the_shipped_adapters_show_what_they_teach_alone_weaker_and_together():
    shown = {name: float(value.split("%")[0]) for name, value in lora.meaning(20).items()}
    assert shown.pop("no frame without") == 100
    assert 0 < shown.pop("of the edge white at scale 0.5") < shown.pop("of the edge white at scale 1")
    assert all(share >= 85 for share in shown.values()), shown  # of 20 or 40; docs/benchmarks.md has more


@pytest.mark.slow
def test_other_adapters_compile_nothing():
    assert lora.graphs().startswith("0 more than 4; compiled: True")
