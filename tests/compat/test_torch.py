"""The names inside of torch exist, and do what the project takes them for. torch is pinned, and upgraded by hand."""

import torch
from torch import nn
from torch.fx.experimental import _config as shapes

from imagegen.compat import torch as compat
from imagegen.model import quantization


class Layer(nn.Module):
    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values + 1


def test_a_module_runs_eagerly_once_it_has_forgotten_that_it_was_compiled():
    whole, calls = nn.Sequential(nn.Identity(), Layer()), []

    def backend(graph, _):
        calls.append(graph)
        return graph.forward

    whole[1].compile(backend=backend)
    whole(torch.ones(1, 2))
    assert len(calls) == 1
    compat.forget_compiled(whole)
    torch._dynamo.reset()
    whole(torch.ones(1, 2))
    assert len(calls) == 1


def test_what_cannot_be_compiled_is_one_of_the_errors():
    def backend(graph, _):
        raise RuntimeError("no compiler")

    layer = Layer()
    layer.compile(backend=backend)
    try:
        layer(torch.ones(1, 2))
    except compat.errors_of_compilation():
        return
    finally:
        torch._dynamo.reset()
    raise AssertionError("it was not one of them")


def test_sizes_that_are_equal_once_are_one_graph_with_those_that_are_not(monkeypatch):
    monkeypatch.setattr(shapes, "use_duck_shape", True)
    compat.treat_equal_sizes_as_different()
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    @torch.compile(backend=backend, dynamic=True, fullgraph=True)
    def add(one, other):
        return one.sum() + other.sum()

    add(torch.ones(4), torch.ones(4))
    add(torch.ones(4), torch.ones(5))
    torch._dynamo.reset()
    assert len(graphs) == 1


def test_pinned_memory_of_torch_211_is_given_back_by_its_older_name(monkeypatch):
    """torch 2.11 has no torch.accelerator.empty_host_cache."""
    freed = []
    monkeypatch.delattr(torch.accelerator, "empty_host_cache")
    monkeypatch.setattr(torch._C, "_host_emptyCache", lambda: freed.append(True), raising=False)
    compat.empty_host_cache()
    assert freed == [True]


def test_integers_are_multiplied_exactly():
    one, other = (torch.randint(-128, 128, size, dtype=torch.int8) for size in ((20, 64), (64, 16)))
    product = compat.multiply_integers(one, other)
    assert product.dtype == torch.int32
    assert torch.equal(product.long(), one.long() @ other.long())


def test_a_quantised_tensor_is_made_of_others_and_made_again_of_them():
    config = quantization.layer_config(quantization.recipe("transformer", "int8"), "transformer_blocks.0.attn.to_q")
    weight = quantization.quantize(torch.randn(64, 64, dtype=torch.bfloat16), config)
    inner, rebuild = compat.inner_tensors(weight)
    assert {type(one) for one in inner.values()} == {torch.Tensor}
    copied = rebuild({name: one.clone() for name, one in inner.items()})
    assert type(copied) is type(weight)
    assert torch.equal(copied.dequantize(), weight.dequantize())
    assert compat.inner_tensors(torch.ones(2)) is None
