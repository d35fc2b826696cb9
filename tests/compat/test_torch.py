"""The names inside of torch exist, and do what the project takes them for. torch is pinned, and upgraded by hand."""

import torch
from torch import nn
from torch.fx.experimental import _config as shapes

from imagegen.compat import torch as compat


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
