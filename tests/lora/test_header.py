"""What is no adapter of the model is refused by its header, with the reason; nothing of it is loaded."""

import json
import os
import pickle
import struct

import pytest
import torch

from imagegen.lora import header
from imagegen.lora.header import Broken
from imagegen.models import get_model
from tests.support.loras import KLEIN, MICRO, SHIPPED, random_tensors, save

LAYER = "single_transformer_blocks.0.attn.to_out"


def written(path, head, size=0, length=None):
    data = head if isinstance(head, bytes) else json.dumps(head).encode()
    path.write_bytes(struct.pack("<Q", len(data) if length is None else length) + data + bytes(size))
    return path


def fault_of(file, spec=MICRO, rank=64):
    with pytest.raises(Broken) as caught:
        header.read(file, spec, rank)
    return str(caught.value)


@pytest.mark.parametrize("name", ["frame", "ring"])
def test_the_shipped_adapters_are_whole_and_small(name):
    file = SHIPPED / f"{name}.safetensors"
    assert file.stat().st_size < 200_000
    assert header.read(file, MICRO, 64).rank == 5


def test_the_layers_and_the_rank_are_told(tmp_path):
    found = header.read(save(random_tensors(3), tmp_path / "x"), MICRO, 64)
    assert (found.rank, found.layers) == (3, 41)


@pytest.mark.parametrize("matrix", ["lora_A", "lora_B"])
def test_a_matrix_without_its_pair(tmp_path, matrix):
    tensors = random_tensors(names=[LAYER])
    del tensors[f"transformer.{LAYER}.{matrix}.weight"]
    assert fault_of(save(tensors, tmp_path / "x")).startswith(f"{LAYER} lacks its ")


@pytest.mark.parametrize(
    ("matrix", "shape"),
    [("lora_A", (2, 3)), ("lora_B", (3, 2)), ("lora_A", (512,)), ("lora_B", (128, 3)), ("lora_A", (0, 512))],
)
def test_wrong_shapes(tmp_path, matrix, shape):
    tensors = random_tensors(names=[LAYER]) | {f"transformer.{LAYER}.{matrix}.weight": torch.zeros(shape)}
    assert "micro takes (rank, 512) and (128, rank)" in fault_of(save(tensors, tmp_path / "x"))


def test_a_rank_over_the_limit(tmp_path):
    file = save(random_tensors(4096, names=[LAYER], dtype=torch.float16), tmp_path / "x")
    assert fault_of(file) == "has rank 4096; 64 is allowed (IMAGEGEN_LORA_RANK)"


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32]
)
@pytest.mark.parametrize("shape", [(), (1,)])
def test_an_alpha_is_one_number_of_any_type(tmp_path, dtype, shape):
    tensors = random_tensors(names=[LAYER]) | {f"transformer.{LAYER}.alpha": torch.full(shape, 3, dtype=dtype)}
    (module,) = header.read(save(tensors, tmp_path / "x"), MICRO, 64).modules
    assert module.alpha.dtype in ("F32", "F16", "BF16", "F64", "I64", "I32")


def test_an_alpha_that_is_not_one_number(tmp_path):
    tensors = random_tensors(names=[LAYER]) | {f"transformer.{LAYER}.alpha": torch.zeros(2)}
    assert "has an alpha of (2)" in fault_of(save(tensors, tmp_path / "x"))


def test_a_file_of_five_gigabytes_is_refused_by_its_size(tmp_path):
    file = tmp_path / "x"
    with file.open("wb") as stream:
        stream.truncate(5 * 10**9)
    assert fault_of(file, KLEIN).startswith("has 5000 MB; ")


def test_what_is_no_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.safetensors")  # which would never answer
    (tmp_path / "folder.safetensors").mkdir()
    for name in ("pipe", "folder"):
        assert fault_of(tmp_path / f"{name}.safetensors") == "is no file"


def test_a_truncated_file_and_one_that_goes_on(tmp_path):
    data = (SHIPPED / "frame.safetensors").read_bytes()
    file = tmp_path / "x"
    for size, text in ((4, "is no safetensors file"), (100, "ends within its header")):
        file.write_bytes(data[:size])
        assert fault_of(file) == text
    file.write_bytes(data[:-1])
    assert fault_of(file) == f"has {len(data) - 1} bytes of {len(data)}"
    file.write_bytes(data + b"0")
    assert fault_of(file) == "goes on after its tensors"


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_is_never_opened(tmp_path, protocol):
    class Bomb:
        def __reduce__(self):
            return pytest.fail, ("it was unpickled",)

    file = tmp_path / "x.safetensors"
    file.write_bytes(pickle.dumps({"transformer.x": Bomb()}, protocol=protocol))
    assert "is a pickle" in (fault := fault_of(file)) or fault == "is no safetensors file"
    torch.save({"transformer.x": torch.zeros(2)}, file)
    assert fault_of(file) == "is a pickle, which is never opened; save it as safetensors"


ENTRY = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    ("head", "size"),
    [
        (b"[" * 100_000, 0),
        (b"[]", 0),
        (b"{}", 0),
        (b'{"a":', 0),
        (b"\xff\xfe{}", 0),
        ({"a": 3}, 0),
        ({"a": {**ENTRY, "shape": [-1]}}, 4),
        ({"a": {**ENTRY, "shape": [True]}}, 4),
        ({"a": {**ENTRY, "shape": [2**62, 4]}}, 4),
        ({"a": {**ENTRY, "data_offsets": [4, 0]}}, 4),
        ({"a": {**ENTRY, "data_offsets": [0, 8]}}, 8),
        ({"a": {**ENTRY, "data_offsets": [4, 8]}}, 8),
        ({"a": ENTRY, "b": ENTRY}, 4),
        (b'{"a":' + json.dumps(ENTRY).encode() + b',"a":' + json.dumps(ENTRY).encode() + b"}", 4),
        ({"__metadata__": 3, "a": ENTRY}, 4),
        ({"a": {**ENTRY, "shape": [1] * 2000}}, 4),
    ],
)
def test_headers_that_are_none(tmp_path, head, size):
    assert fault_of(written(tmp_path / "x", head, size))


def test_a_header_longer_than_any_adapter_s(tmp_path):
    assert fault_of(written(tmp_path / "x", b"{}", length=2**63)) == "is no safetensors file"


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("diffusion_model.double_blocks.0.img_attn.qkv.lokr_w1", "a LoKr"),
        ("lycoris_transformer_blocks_0_attn_to_q.lokr_w2", "a LoKr"),
        ("lora_unet_double_blocks_0_img_mlp_0.hada_w1_a", "a LoHa"),
        ("transformer.x_embedder.dora_scale", "a DoRA"),
        ("transformer.x_embedder.lora_magnitude_vector", "a DoRA"),
        ("diffusion_model.img_in.diff", "a difference of whole weights"),
        ("diffusion_model.img_in.diff_b", "a difference of whole weights"),
        ("lora_unet_double_blocks_0_img_mlp_0.dora_scale", "a DoRA"),
        ("diffusion_model.double_blocks.0.img_attn.proj.dora_scale", "a DoRA"),
        ("diffusion_model.double_blocks.0.img_attn.proj.oft_blocks", "an OFT"),
        ("transformer.x_embedder.lora_B.bias", "a LoRA with biases"),
        ("diffusion_model.img_in.lora_up.bias", "a LoRA with biases"),
        ("text_encoder.model.layers.0.self_attn.q_proj.lora_A.weight", "an adapter of the text encoder"),
        (
            "text_encoders.qwen3_8b.transformer.model.layers.0.mlp.up_proj.lora_A.weight",
            "an adapter of the text encoder",
        ),
        ("base_model.model.model.layers.7.self_attn.v_proj.lora_B.weight", "an adapter of the text encoder"),
        ("lora_te_layers_0_self_attn_q_proj.lora_down.weight", "an adapter of the text encoder"),
        ("lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", "an adapter of the text encoder"),
    ],
)
def test_other_kinds_of_adapters_are_refused_by_name(tmp_path, key, kind):
    fault = fault_of(save(random_tensors() | {key: torch.zeros(2, 2)}, tmp_path / "x"))
    assert fault == f"is {kind}, which is not supported; LoRA is"


def test_types_that_are_not_read(tmp_path):
    tensors = random_tensors(names=[LAYER])
    tensors = {name: value.to(torch.float8_e4m3fn) for name, value in tensors.items()}
    assert "is of F8_E4M3; allowed are F32, F16, BF16" in fault_of(save(tensors, tmp_path / "x"))


def test_an_adapter_of_another_model_says_so(tmp_path):
    small = random_tensors(1, get_model("klein-4b"), dtype=torch.float16)
    assert fault_of(save(small, tmp_path / "4b"), KLEIN) == "is an adapter of klein-4b, and klein-9b is served"
    assert fault_of(SHIPPED / "frame.safetensors", KLEIN) == "is an adapter of micro, and klein-9b is served"


@pytest.mark.parametrize(
    ("key", "model"),
    [
        ("transformer.single_transformer_blocks.3.proj_mlp.lora_A.weight", "FLUX.1"),
        ("lora_unet_double_blocks_3_img_mod_lin.lora_down.weight", "FLUX.1"),
        ("diffusion_model.double_blocks.18.img_attn.qkv.lora_A.weight", "FLUX.1"),
        ("diffusion_model.single_blocks.47.linear1.lora_A.weight", "FLUX.2 [dev]"),
        ("lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight", "Stable Diffusion"),
    ],
)
def test_an_adapter_of_another_family_says_so(tmp_path, key, model):
    assert fault_of(save({key: torch.zeros(2, 2)}, tmp_path / "x"), KLEIN) == (
        f"is an adapter of {model}, and klein-9b is served"
    )


def test_a_layer_that_comes_under_two_names(tmp_path):
    tensors = random_tensors(names=["x_embedder"])
    tensors |= random_tensors(names=["x_embedder"], prefix="diffusion_model.")
    assert fault_of(save(tensors, tmp_path / "x")).endswith("is there twice, under two names")
    tensors = random_tensors(names=["proj_out"])
    tensors |= {name.replace("proj_out", "final_layer.linear"): value for name, value in tensors.items()}
    assert fault_of(save(tensors, tmp_path / "x")) == "changes proj_out twice, under two names"


@pytest.mark.parametrize("settings", ["{", "3", '{"transformer.lora_alpha": "x"}', '{"transformer.lora_alpha": 1e999}'])
def test_peft_s_settings_that_are_broken(tmp_path, settings):
    file = save(random_tensors(), tmp_path / "x", {"lora_adapter_metadata": settings})
    assert fault_of(file)


def test_peft_s_alpha_is_taken(tmp_path):
    patterns = {"x_embedder": 1, "embedder": 4, "proj_out": 16, "out": 6}  # whole parts of names alone
    settings = {"transformer.lora_alpha": 8, "transformer.r": 2, "transformer.alpha_pattern": patterns}
    file = save(random_tensors(), tmp_path / "x", {"lora_adapter_metadata": json.dumps(settings)})
    factors = {module.name: module.factor for module in header.read(file, MICRO, 64).modules}
    assert factors["x_embedder"] == 0.5
    assert factors["context_embedder"] == 4
    assert factors["proj_out"] == 8
