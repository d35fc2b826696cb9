import logging
from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderKLFlux2

from imagegen.errors import ConfigurationError
from imagegen.model import acceleration
from imagegen.model.acceleration import choose_attention, load_decoder, use_attention
from imagegen.models import MICRO_PATH

MEGAPIXEL = (1024, 1024)


@pytest.mark.parametrize(
    ("capability", "packages", "wanted", "says"),
    [
        (None, {"flash_attn_interface", "sageattention"}, "native", "no CUDA GPU"),
        ((8, 0), set(), "native", "8.0"),  # A100
        ((8, 9), {"flash_attn", "sageattention"}, "native", "8.9"),  # RTX 4090; sage would give other images
        ((9, 0), set(), "cudnn", "9.0"),  # H100
        ((9, 0), {"flash_attn_interface"}, "flash3", "FlashAttention 3"),
        ((10, 0), {"flash_attn_interface"}, "cudnn", "10.0"),  # B200, which FlashAttention 3 does not know
        ((12, 0), set(), "native", "12.0"),  # RTX 5090
    ],
)
def test_the_kernel_for_attention_follows_from_the_gpu(capability, packages, wanted, says):
    attention, reason = choose_attention(capability, packages.__contains__)
    assert attention == wanted
    assert says in reason


def test_every_kernel_is_one_that_diffusers_knows_and_none_is_fetched():
    from diffusers.models.attention_dispatch import _HUB_KERNELS_REGISTRY, AttentionBackendName

    for name, _ in acceleration._BACKENDS.values():
        assert AttentionBackendName(name) not in _HUB_KERNELS_REGISTRY


@pytest.mark.parametrize(("attention", "why"), [("cudnn", "RuntimeError"), ("sage", "sageattention is not installed")])
def test_a_kernel_that_does_not_run_here_is_a_warning_and_torchs_own_is_used(attention, why, caplog):
    asked = []
    pipe = SimpleNamespace(transformer=SimpleNamespace(set_attention_backend=asked.append))
    use_attention(pipe, attention, "cpu")
    assert asked == ["native"]
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert f"attention by {attention} does not run here ({why})" in record.getMessage()


def test_a_hopper_gpu_whose_flash_attention_does_not_run_gets_cudnn(monkeypatch, caplog):
    asked = []
    pipe = SimpleNamespace(transformer=SimpleNamespace(set_attention_backend=asked.append))
    monkeypatch.setattr(acceleration, "is_installed", lambda package: True)
    monkeypatch.setattr(acceleration, "_try_attention", lambda backend, _: "OSError" if backend == "_flash_3" else None)
    use_attention(pipe, "flash3", "cuda", (9, 0))
    assert asked == ["_native_cudnn"]
    (record,) = caplog.records
    assert "attention by flash3 does not run here (OSError); cudnn is used" in record.getMessage()


class Layer(torch.nn.Module):
    def forward(self, states):
        return states @ torch.zeros(64, 64)


def test_an_image_of_as_many_tokens_as_a_layer_is_wide_needs_no_graph_of_its_own():
    graphs = []

    def count(graph, _):
        graphs.append(graph)
        return graph.forward

    acceleration.compile_blocks(SimpleNamespace(transformer=SimpleNamespace(compile_repeated_blocks=lambda **_: None)))
    torch._dynamo.reset()
    layer = Layer()
    layer.compile(fullgraph=True, dynamic=True, backend=count)
    with torch.no_grad():
        for tokens in (64, 96, 32):
            assert layer(torch.zeros(tokens, 64)).shape == (tokens, 64)
    assert len(graphs) == 1


def test_a_decoder_without_its_weights_is_an_error_and_not_a_random_one(tmp_path):
    """As a repository that holds the decoder alone would be."""
    from safetensors.torch import load_file, save_file

    vae = AutoencoderKLFlux2.from_pretrained(MICRO_PATH, subfolder="vae")
    vae.save_pretrained(tmp_path)
    assert load_decoder(tmp_path, torch.float32).config.latent_channels == vae.config.latent_channels
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    save_file({name: weight for name, weight in load_file(file).items() if not name.startswith("encoder")}, file)
    with pytest.raises(ConfigurationError, match=r"IMAGEGEN_DECODER: .* lacks \d+ weights, encoder\."):
        load_decoder(tmp_path, torch.float32)
    file.write_bytes(b"no weights at all")
    with pytest.raises(ConfigurationError, match=r"IMAGEGEN_DECODER: .* holds no VAE \(\w+\)"):
        load_decoder(tmp_path, torch.float32)
