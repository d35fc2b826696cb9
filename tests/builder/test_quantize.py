"""What `imagegen.builder.quantize` makes opens without the original, and equals what torchao makes on a GPU."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from diffusers import Flux2KleinPipeline, Flux2Transformer2DModel
from safetensors import safe_open
from safetensors.torch import load_file
from torchao.quantization import Float8Tensor, Int8Tensor, PerRow, PerTensor, quant_api, quantize_
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from imagegen.builder.quantize import _NOT_CONVERTED, Quantizer, main
from imagegen.errors import ConfigurationError
from imagegen.model import quantization
from imagegen.models import MICRO_PATH
from imagegen.weights import files as weight_files
from imagegen.weights.sources import find_fault

PROMPT = "a red circle on a blue background"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """micro as klein is published: a text encoder of 36 layers with a head of its own, weights in several files."""
    path = tmp_path_factory.mktemp("whole") / "model"
    shutil.copytree(MICRO_PATH, path)
    config = Qwen3Config.from_pretrained(MICRO_PATH / "text_encoder")
    config.update({"num_hidden_layers": 36, "layer_types": ["full_attention"] * 36, "tie_word_embeddings": False})
    torch.manual_seed(7)
    encoder = Qwen3ForCausalLM(config).bfloat16()
    encoder.model.norm.weight.data.uniform_(0.5, 2)
    shutil.rmtree(path / "text_encoder")
    encoder.save_pretrained(path / "text_encoder", max_shard_size="400KB")
    transformer = Flux2Transformer2DModel.from_pretrained(path / "transformer", dtype=torch.bfloat16)
    shutil.rmtree(path / "transformer")
    transformer.save_pretrained(path / "transformer", max_shard_size="2MB")
    return path


def quantized(source, target, *args, **options):
    quantizer = Quantizer(source, target, *args, **options)
    for shard in quantizer.shards():
        quantizer.add(shard)
    quantizer.finish()
    return target


def encode(encoder, source):
    """What the pipeline makes of a prompt with this text encoder."""
    tokenizer = AutoTokenizer.from_pretrained(source / "tokenizer")
    with torch.no_grad():
        return Flux2KleinPipeline._get_qwen3_prompt_embeds(encoder, tokenizer, PROMPT, max_sequence_length=32)


def test_a_trimmed_folder_gives_the_same_embeddings_to_diffusers_alone(whole, tmp_path):
    before = Qwen3ForCausalLM.from_pretrained(whole / "text_encoder")
    result = quantized(whole, tmp_path / "bf16", "bf16")
    after = Qwen3ForCausalLM.from_pretrained(result / "text_encoder")
    assert torch.equal(encode(before, whole), encode(after, whole))
    kept = {name for file in (result / "text_encoder").glob("*.safetensors") for name in load_file(file)}
    assert len([name for name in kept if name.endswith("mlp.up_proj.weight")]) == weight_files.TEXT_ENCODER_LAYERS
    assert not any(name.startswith(("lm_head", "model.norm", "model.layers.27.")) for name in kept)
    for file in (whole / "transformer").glob("*.safetensors"):
        assert file.read_bytes() == (result / "transformer" / file.name).read_bytes()
    assert find_fault(result) is None


def test_a_file_of_trimmed_layers_alone_is_not_asked_for(whole, tmp_path):
    quantizer = Quantizer(whole, tmp_path / "x", "fp8")
    index = json.loads((whole / "text_encoder" / "model.safetensors.index.json").read_text())["weight_map"]
    last = index["model.layers.35.mlp.down_proj.weight"]
    assert f"text_encoder/{last}" not in quantizer.shards()
    assert f"text_encoder/{index['model.layers.26.mlp.down_proj.weight']}" in quantizer.shards()


def test_the_weights_of_a_file_are_not_needed_before_their_turn(whole, tmp_path):
    """As a disk is asked for that holds the result and one file of the source."""
    source = tmp_path / "source"
    shutil.copytree(whole, source, ignore=shutil.ignore_patterns("*.safetensors"))
    quantizer = Quantizer(source, tmp_path / "target", "int8")
    for shard in quantizer.shards():
        shutil.copy(whole / shard, source / shard)
        quantizer.add(shard)
        (source / shard).unlink()
    quantizer.finish()
    assert find_fault(tmp_path / "target") is None


@pytest.mark.parametrize(("precision", "kind"), [("fp8", Float8Tensor), ("int8", Int8Tensor)])
def test_a_weight_is_what_torchao_makes_on_a_gpu(whole, tmp_path, monkeypatch, precision, kind):
    result = quantized(whole, tmp_path / precision, precision)
    loaded = Flux2Transformer2DModel.from_pretrained(result / "transformer", dtype=torch.bfloat16)
    expected = Flux2Transformer2DModel.from_pretrained(whole / "transformer", dtype=torch.bfloat16)
    monkeypatch.setattr(quant_api, "_check_hardware_support", lambda _: None)  # there is no GPU here
    quantize_(expected, quantization.recipe("transformer", precision), filter_fn=None)
    count = 0
    for name, weight in expected.named_parameters():
        got = loaded.get_parameter(name)
        assert type(got.data) is type(weight.data), name
        if not isinstance(weight, kind):
            assert torch.equal(got, weight), name
            continue
        count += 1
        assert torch.equal(got.qdata.view(torch.int8), weight.qdata.view(torch.int8)), name
        assert torch.equal(got.scale, weight.scale), name
        assert got.block_size == list(weight.block_size) and got.dtype == weight.dtype
        assert got.act_quant_kwargs == weight.act_quant_kwargs is not None
    blocks = [m for n, m in expected.named_modules() if "blocks." in n and isinstance(m, torch.nn.Linear)]
    assert count == len(blocks) == 2 * 12 + 4 * 2


@pytest.mark.slow  # a process of its own that loads the model
def test_a_checkpoint_opens_in_a_process_that_knows_nothing_of_this_project(whole, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(whole, source)
    result = quantized(source, tmp_path / "fp8", "fp8", "fp8")
    shutil.rmtree(source)
    code = f"""
from diffusers import Flux2KleinPipeline
pipe = Flux2KleinPipeline.from_pretrained({str(result)!r}, dtype="auto")
weight = pipe.transformer.single_transformer_blocks[3].attn.to_out.weight
print(type(weight).__name__, weight.act_quant_kwargs.granularity, weight.mm_config.use_fast_accum)
print(type(pipe.text_encoder.model.layers[26].mlp.down_proj.weight).__name__)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert ran.stdout.splitlines() == ["Float8Tensor PerRow(dim=-1) True", "Float8Tensor"]


def test_layers_can_have_one_scale_for_a_tensor(whole, tmp_path):
    pattern = r"single_transformer_blocks\.\d+\.attn\.to_out"
    result = quantized(whole, tmp_path / "mixed", "fp8", per_tensor=pattern)
    loaded = Flux2Transformer2DModel.from_pretrained(result / "transformer", dtype=torch.bfloat16)
    block = loaded.single_transformer_blocks[0].attn
    assert block.to_out.weight.scale.numel() == 1
    assert isinstance(block.to_out.weight.act_quant_kwargs.granularity, PerTensor)
    assert block.to_qkv_mlp_proj.weight.scale.numel() == block.to_qkv_mlp_proj.out_features
    assert isinstance(block.to_qkv_mlp_proj.weight.act_quant_kwargs.granularity, PerRow)


@pytest.mark.parametrize("precision", ["fp8", "int8"])
def test_rows_and_tokens_of_zeros_stay_zeros(precision):
    (config,) = quantization.recipe("transformer", precision).fqn_to_config.values()
    weight, tokens = torch.randn(32, 64), torch.randn(3, 64)
    weight[5] = tokens[1] = 0
    states = torch.nn.functional.linear(tokens, quantization.quantize(weight, config))
    assert states.isfinite().all()
    assert not states[1].any() and not states[:, 5].any()
    assert states[0, 0] == pytest.approx(float(tokens[0] @ weight[0]), abs=1)


def test_all_that_is_not_quantised_is_named(whole):
    """Else a module that a new diffusers brings would be taken for a quantised one."""
    transformer = Flux2Transformer2DModel.from_pretrained(whole / "transformer")
    recipe = quantization.recipe("transformer", "fp8")
    for name, module in transformer.named_modules():
        if isinstance(module, torch.nn.Linear):
            plain = any(part in name for part in _NOT_CONVERTED)
            assert plain == (quantization.layer_config(recipe, name) is None), name


def test_an_interrupted_run_goes_on(whole, tmp_path, monkeypatch):
    target = tmp_path / "target"
    first = Quantizer(whole, target, "fp8")
    shards = first.shards()
    for shard in shards[:-1]:
        first.add(shard)
    with pytest.raises(ConfigurationError, match=shards[-1]):
        first.finish()
    assert find_fault(target) is not None  # not taken for a model
    written = {shard: (target / shard).stat().st_mtime_ns for shard in shards[:-1]}
    monkeypatch.setattr(sys, "argv", ["quantize", str(whole), str(target), "--precision", "fp8"])
    assert main() == 0
    assert {shard: (target / shard).stat().st_mtime_ns for shard in shards[:-1]} == written
    assert find_fault(target) is None
    assert not list(target.rglob("*.part"))


def test_a_folder_of_another_precision_is_not_gone_on_with(tmp_path):
    quantized(MICRO_PATH, tmp_path, "fp8")
    with pytest.raises(ConfigurationError, match="another model or precision: transformer/config.json"):
        Quantizer(MICRO_PATH, tmp_path, "int8")


def test_a_source_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="no diffusers folder"):
        Quantizer(tmp_path, tmp_path / "target", "fp8")


def test_the_source_can_be_deleted_as_it_is_used(tmp_path, monkeypatch):
    """Also where its files are links into the cache of a hub, as a download leaves them."""
    blobs, source = tmp_path / "blobs", tmp_path / "source"
    blobs.mkdir()
    shutil.copytree(MICRO_PATH, source, ignore=shutil.ignore_patterns("loras"))  # they are no part of the model
    for number, file in enumerate(source.glob("*/*.safetensors")):
        file.rename(blobs / str(number))
        file.symlink_to(blobs / str(number))
    monkeypatch.setattr(sys, "argv", ["quantize", str(source), str(tmp_path / "target"), "--delete-source"])
    assert main() == 0
    assert not list(blobs.iterdir()) and not list(source.glob("*/*.safetensors"))
    with safe_open(tmp_path / "target/transformer/diffusion_pytorch_model.safetensors", framework="pt") as tensors:
        assert "transformer_blocks.0.attn.to_q._weight_qdata" in list(tensors.keys())
