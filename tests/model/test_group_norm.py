"""Group norms that use the whole GPU: torch's own values, computed otherwise; here on a CPU."""

import pytest
import torch
from diffusers import AutoencoderKLFlux2
from torch import nn

from imagegen.model.group_norm import SpreadGroupNorm, spread_group_norms


def made(channels, groups):
    norm = SpreadGroupNorm(groups, channels, eps=1e-6)
    torch.manual_seed(1)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


@pytest.mark.parametrize("shape", [(1, 64, 24, 40), (1, 64, 300)])  # an image's; that of the attention inside the VAE
@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
def test_the_values_are_torch_s_own(shape, form):
    norm = made(64, 32)
    values = 3 * torch.randn(shape) + 2
    if len(shape) == 4:
        values = values.contiguous(memory_format=form)
    with torch.no_grad():
        wanted = norm(values)
        torch.testing.assert_close(norm.spread(values), wanted, rtol=1e-4, atol=1e-4)
        half = norm.to(torch.bfloat16).spread(values.bfloat16())
    assert half.dtype == torch.bfloat16
    assert (half.float() - wanted).norm() / wanted.norm() < 1e-2  # a rounding to 8 bits of mantissa


@pytest.mark.parametrize("value", [0.0, 100.0, -3e4])
def test_a_group_of_equal_values_is_no_number_out_of_range(value):
    """What rounding leaves of a variance of 0 can be less than 0, which has no root."""
    norm = made(8, 4)
    values = torch.full((1, 8, 33, 17), value)
    with torch.no_grad():
        assert norm.spread(values).isfinite().all()


def test_all_norms_of_a_vae_are_replaced_and_keep_their_weights():
    vae = AutoencoderKLFlux2(
        block_out_channels=(32,), down_block_types=("DownEncoderBlock2D",), up_block_types=("UpDecoderBlock2D",)
    )
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    latents = torch.randn(1, 32, 8, 8)
    with torch.no_grad():
        wanted = vae.eval().decode(latents).sample
        spread_group_norms(vae)
        assert torch.equal(vae.decode(latents).sample, wanted)  # on a CPU to the bit
    norms = [module for module in vae.modules() if isinstance(module, nn.GroupNorm)]
    assert len(norms) > 4
    assert all(isinstance(norm, SpreadGroupNorm) and not norm.training for norm in norms)
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())
