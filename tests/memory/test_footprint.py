"""The bytes that the plan computes, against those of the real classes, built on the meta device."""

import json

import pytest
import torch
from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel
from torch import nn
from transformers import Qwen3Config, Qwen3ForCausalLM

from benchmarks.random_model import configs
from imagegen.memory.footprint import activations, kv_bytes, part_bytes
from imagegen.models import MICRO_PATH, get_model
from imagegen.weights.files import TEXT_ENCODER_LAYERS

SQUARE = (1024, 1024)
MODELS = ("klein-9b", "klein-4b", "micro")


def nested(weights):
    """bitsandbytes' 4 bits: a byte of scale for 64 weights, a float32 for 256 of these, two tables, an offset."""
    scales = -(-weights // 64)
    return weights // 2 + scales + 4 * -(-scales // 256) + 4 * (16 + 256 + 1)


#: As torchao and bitsandbytes keep a weight: bytes of it and its scales.
LAYOUTS = {
    "fp8": lambda rows, columns: rows * columns + 4 * rows,
    "int8": lambda rows, columns: rows * columns + 5 * rows,
    "nf4": lambda rows, columns: nested(rows * columns),
}


def build(name):
    """Transformer, text encoder and VAE as the model's config.json have them."""
    if name == "micro":
        configs = [json.loads((MICRO_PATH / part / "config.json").read_text()) for part in ("transformer", "vae")]
        text = Qwen3Config.from_pretrained(MICRO_PATH / "text_encoder")
        with torch.device("meta"):
            return (
                Flux2Transformer2DModel.from_config(configs[0]),
                Qwen3ForCausalLM(text),
                AutoencoderKLFlux2.from_config(configs[1]),
            )
    large = name == "klein-9b"
    text = Qwen3Config(
        vocab_size=151_936,
        hidden_size=4096 if large else 2560,
        intermediate_size=12288 if large else 9728,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=not large,
    )
    with torch.device("meta"):
        transformer = Flux2Transformer2DModel(
            in_channels=128,
            num_layers=8 if large else 5,
            num_single_layers=24 if large else 20,
            num_attention_heads=32 if large else 24,
            attention_head_dim=128,
            joint_attention_dim=12288 if large else 7680,
            guidance_embeds=False,
        )
        return transformer, Qwen3ForCausalLM(text), AutoencoderKLFlux2()


def module_bytes(module, precision, leave_out=()):
    """Bytes of a module's parameters, of which the Linear layers inside its blocks are in `precision`."""
    total, seen = 0, set()
    for name, inner in module.named_modules():
        in_blocks = "transformer_blocks." in name or "layers." in name
        for key, parameter in inner.named_parameters(name, recurse=False):
            if id(parameter) in seen or key.startswith(leave_out):
                continue
            seen.add(id(parameter))
            if precision != "bf16" and in_blocks and isinstance(inner, nn.Linear):
                total += LAYOUTS[precision](*parameter.shape)
            else:
                total += parameter.numel() * 2
    return total


@pytest.fixture(scope="module", params=MODELS)
def built(request):
    return get_model(request.param), *build(request.param)


@pytest.mark.parametrize("precision", ["bf16", "fp8", "int8", "nf4"])
def test_the_bytes_of_each_part_are_those_of_the_real_module(built, precision):
    spec, transformer, text_encoder, vae = built
    layers = text_encoder.config.num_hidden_layers
    unused = tuple(f"model.layers.{i}." for i in range(TEXT_ENCODER_LAYERS, layers))
    if layers > TEXT_ENCODER_LAYERS:
        unused += ("model.norm.",)
    if not text_encoder.config.tie_word_embeddings:
        unused += ("lm_head.",)
    parts = part_bytes(spec, precision, precision)
    table = text_encoder.model.embed_tokens.weight.numel() * 2
    assert parts.transformer == module_bytes(transformer, precision)
    assert parts.embeddings == table
    assert parts.text_encoder + parts.embeddings == module_bytes(text_encoder, precision, unused)
    assert parts.vae == module_bytes(vae, "bf16")
    whole = part_bytes(spec, precision, precision, trimmed=False)
    assert whole.text_encoder + whole.embeddings + whole.unused == module_bytes(text_encoder, precision)


def test_klein_9b_has_the_parameters_that_it_is_published_with(built):
    spec = built[0]
    if spec.name == "klein-9b":
        assert part_bytes(spec, "bf16", "bf16").transformer == 2 * 9_078_581_248


@pytest.mark.parametrize(
    ("transformer", "expected"),
    [
        ("bf16", (32.3, 27.9, 26.8, 21.9, 19.6)),
        ("fp8", (24.2, 19.8, 18.7, 13.8, 11.5)),
        ("int8", (24.2, 19.8, 18.7, 13.8, 11.5)),
        ("nf4", (20.3, 15.9, 14.7, 9.9, 7.5)),
    ],
)
def test_the_table_of_what_is_resident_of_klein_9b(transformer, expected):
    """GiB with the text encoder whole, trimmed, without embeddings, and without embeddings in fp8 and in 4 bits."""
    spec = get_model("klein-9b")
    trimmed = {kept: part_bytes(spec, transformer, kept) for kept in ("bf16", "fp8", "nf4")}
    resident = [part_bytes(spec, transformer, "bf16", trimmed=False).total, trimmed["bf16"].total]
    resident += [parts.total - parts.embeddings for parts in trimmed.values()]
    assert tuple(round(number / 2**30, 1) for number in resident) == expected


def test_a_random_model_has_the_same_shapes(built):
    """`benchmarks.random_model` stands in for the real weights in benchmarks."""
    spec, transformer, text_encoder, vae = built
    read = configs(spec.architecture)
    with torch.device("meta"):
        made = (
            Flux2Transformer2DModel.from_config(read["transformer"]),
            Qwen3ForCausalLM(Qwen3Config.from_dict(read["text_encoder"])),
            AutoencoderKLFlux2.from_config(read["vae"]),
        )
    for one, other in zip(made, (transformer, text_encoder, vae), strict=True):
        assert {key: w.shape for key, w in one.state_dict().items()} == {
            key: w.shape for key, w in other.state_dict().items()
        }


@pytest.mark.parametrize(
    ("precision", "compiled", "gigabytes"),
    [
        ("bf16", True, {0: 0.58, 4: 2.61}),  # torch 2.13's code for an H100: 123.9 kB for each of 20,992 tokens
        ("fp8", True, {0: 0.51, 4: 2.27}),  # 107.6 kB
        ("bf16", False, {0: 0.82, 1: 1.54, 2: 2.25, 4: 3.68}),
        ("fp8", False, {0: 1.02, 1: 1.74, 2: 2.46, 4: 3.90}),
        ("int8", False, {0: 0.94, 1: 1.66, 2: 2.38, 4: 3.83}),
    ],
)
def test_what_an_image_needs_is_that_of_the_traced_model(precision, compiled, gigabytes):
    for references, wanted in gigabytes.items():
        needs = activations(get_model("klein-9b"), SQUARE, [SQUARE] * references, precision, compiled)
        assert needs.denoise / 1e9 == pytest.approx(wanted, rel=0.03)
        assert needs.decode / 1e9 == pytest.approx(1.63, abs=0.01)
    assert needs.encode_references / 1e9 == pytest.approx(1.34 if references else 0, abs=0.01)


@pytest.mark.parametrize(("references", "gigabytes"), [(1, 4.3), (2, 7.5), (3, 10.7), (4, 13.9)])
def test_what_the_path_with_a_cache_needs_is_that_of_the_traced_model(references, gigabytes):
    assert kv_bytes(get_model("klein-9b-kv"), SQUARE, [SQUARE] * references) / 1e9 == pytest.approx(gigabytes, abs=0.01)
