"""The layers that an adapter can change are all Linear layers of the real classes."""

import pytest
from torch import nn

from benchmarks.random_model import write_outline
from imagegen.lora.layers import elements, layers
from imagegen.model.assembly import empty_modules
from imagegen.models import MICRO_PATH, get_model


@pytest.mark.parametrize("name", ["micro", "klein-9b", "klein-4b", "klein-9b-kv"])
def test_they_are_those_of_the_real_transformer(name, tmp_path):
    spec = get_model(name)
    folder = MICRO_PATH if name == "micro" else write_outline(spec, tmp_path)
    transformer = empty_modules(folder)["transformer"]
    linears = {
        layer: (module.out_features, module.in_features)
        for layer, module in transformer.named_modules()
        if isinstance(module, nn.Linear)
    }
    assert layers(spec) == linears
    assert elements(spec) == sum(map(sum, linears.values()))
