"""Each kind of block is one graph for the compiler, in each precision and at any size: what is compiled in the warm-up
serves every job."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from imagegen.compat.torch import treat_equal_sizes_as_different
from tests.support.compiled_memory import block_of, inputs_of

#: Tokens: 512x512; 1024x1024, as many as klein-9b's layers are wide; 1088x656; an edit with four references.
TOKENS = [1024, 4096, 68 * 41, 5 * 4096]


@pytest.mark.slow  # klein-9b's blocks, traced
@pytest.mark.parametrize("precision", ["bf16", "fp8", "int8"])
@pytest.mark.parametrize("kind", ["double", "single"])
def test_a_kind_of_block_is_one_graph(kind, precision):
    graphs = []

    def keep(graph, _):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    treat_equal_sizes_as_different()
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        block = block_of(kind, precision, 4096)
        block.compile(fullgraph=True, dynamic=True, backend=keep)
        for tokens in TOKENS:
            block(**inputs_of(kind, 4096, tokens))
    assert len(graphs) == 1
