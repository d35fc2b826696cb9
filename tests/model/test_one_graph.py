"""Each kind of block is one graph for the compiler, in each precision and at any size: what is compiled in the warm-up
serves every job."""

import pytest
import torch
from torch._dynamo.utils import counters
from torch._subclasses.fake_tensor import FakeTensorMode

from imagegen.compat.torch import treat_equal_sizes_as_different
from imagegen.model.config import FluxConfig
from imagegen.model.offload import OnloadHook
from imagegen.model.pipeline import FluxPipeline
from imagegen.models import MICRO_PATH, get_model
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


@pytest.mark.slow  # compiles
def test_weights_that_come_anew_for_each_image_compile_nothing_anew(monkeypatch):
    """IMAGEGEN_OFFLOAD=model: on a GPU each image's weights are other tensors."""

    def come(self, module, args, kwargs):
        for child, name, home in () if self._here else self._home:
            child.register_parameter(name, torch.nn.Parameter(home.detach().clone(), requires_grad=False))
        self._here = True
        return args, kwargs

    monkeypatch.setattr(OnloadHook, "_come", come)
    monkeypatch.setattr(
        "imagegen.model.acceleration.compile_blocks",
        lambda pipe: pipe.transformer.compile_repeated_blocks(fullgraph=True, dynamic=True, backend="eager"),
    )
    how = {"height": 64, "num_inference_steps": 2, "guidance_scale": 1.0, "seed": 1}
    treat_equal_sizes_as_different()
    torch._dynamo.reset()
    counters.clear()
    with FluxPipeline(FluxConfig(get_model("micro"), MICRO_PATH, device="cpu", offload="model", compile=True)) as pipe:
        for width in (64, 64, 80):
            pipe.generate("a red circle", width=width, **how).image.load()
            assert pipe.compiled
            assert counters["stats"]["unique_graphs"] == 2  # of the double and of the single blocks
