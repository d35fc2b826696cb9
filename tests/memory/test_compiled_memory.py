"""What a compiled block needs, by the code that Inductor writes for it, against the plan's figures."""

import pytest

from imagegen.memory.footprint import activations
from imagegen.memory.plan import REFERENCE
from imagegen.models import get_model
from tests.support.compiled_memory import peak_of_a_block

#: Of Inductor's own, in what it imports.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
KLEIN = get_model("klein-9b")
#: Of an edit with four references at 1024x1024.
TOKENS = 5 * 4096


def estimate(precision):
    needs = activations(KLEIN, REFERENCE, [REFERENCE] * 4, precision, compiled=True)
    return needs.denoise - 512 * 3 * 4096 * 2  # the prompt's embeddings are beside the block


@pytest.mark.slow  # Inductor writes code for a block of klein-9b
@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_a_compiled_single_block_needs_what_is_estimated(precision):
    """The widest moment is in a single block: 123.9 kB a token in bf16, as in torch's code for an H100."""
    assert peak_of_a_block("single", precision, 4096, TOKENS) == pytest.approx(estimate(precision), rel=0.03)


@pytest.mark.slow  # as above
@pytest.mark.parametrize("precision", ["bf16", "fp8", "int8"])
def test_a_compiled_double_block_needs_less(precision):
    assert peak_of_a_block("double", precision, 4096, TOKENS) < estimate(precision)


@pytest.mark.slow  # as above
def test_in_fp8_a_cpu_keeps_one_buffer_more_than_a_gpu():
    """The input of the last layer, 4 x 4096 values of two bytes a token, which an H100's code makes in fp8 at once."""
    gpu = peak_of_a_block("single", "fp8", 4096, TOKENS) - (TOKENS + 512) * 4 * 4096 * 2
    assert gpu == pytest.approx(estimate("fp8"), rel=0.03)
