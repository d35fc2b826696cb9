"""The miniature's adapters: trained further."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from imagegen.builder.micro import adapters
from imagegen.models import MICRO_PATH


@pytest.mark.slow  # it opens the model and trains a round
@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")  # two adapters are meant
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # bfloat16 goes into norms in float32
def test_adapters_go_on_from_those_that_were_written(tmp_path, monkeypatch):
    """At a rate of nothing they stay what they were."""
    monkeypatch.setattr(adapters, "_CONTINUED", 0.0)
    monkeypatch.setattr(adapters, "COUNTS", {"generate": 2, "edit": 2, "edit2": 2})
    adapters.train(tmp_path, 1, 1, MICRO_PATH / "loras")
    for name in adapters.GAIN:
        was, now = (load_file(folder / f"{name}.safetensors") for folder in (MICRO_PATH / "loras", tmp_path))
        assert was.keys() == now.keys()
        assert all(torch.allclose(was[key], now[key], rtol=2e-3, atol=1e-6) for key in was)


def test_adapters_of_other_layers_are_refused(tmp_path):
    tensors = load_file(MICRO_PATH / "loras" / "frame.safetensors")
    tensors.pop(next(iter(tensors)))
    save_file(tensors, tmp_path / "frame.safetensors")
    with pytest.raises(ValueError, match=r"frame\.safetensors in .* is not of the layers that are trained"):
        adapters.train(tmp_path, 1, 1, tmp_path)
