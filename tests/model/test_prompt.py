"""What a GPU did for the first prompt is recorded and done again for others, where the text encoder stays there."""

import logging
from unittest import mock

import pytest

from imagegen.model import prompt
from tests.model.test_on_a_fake_gpu import opened, outline, thin
from tests.support.fake_gpu import fake_gpu

__all__ = ["outline"]  # a fixture


class Recorded:
    made, calls = 0, 0

    def __init__(self, function, *inputs):
        Recorded.made += 1
        self.function = function

    def __call__(self, *inputs):
        Recorded.calls += 1
        return self.function(*inputs)


def prompts(outline, offload):
    spec = thin("klein-9b")
    with opened(spec, outline(spec), precision="bf16", offload=offload) as pipeline:
        return [pipeline.encode_prompt(words).embeddings.shape for words in ("a", "b", "b")]


@pytest.mark.parametrize(("offload", "made", "calls"), [("none", 1, 2), ("embeddings", 1, 2), ("text_encoder", 0, 0)])
def test_a_text_encoder_that_stays_is_recorded_once(outline, offload, made, calls):
    Recorded.made = Recorded.calls = 0
    with fake_gpu(), mock.patch.object(prompt, "Graph", Recorded):
        assert prompts(outline, offload) == [(1, 512, 3 * 4096)] * 3
    assert (Recorded.made, Recorded.calls) == (made, calls)


def test_what_cannot_be_recorded_is_said_and_done_without(outline, caplog):
    def fail(*_):
        raise RuntimeError("operation not permitted when stream is capturing")

    with fake_gpu(), mock.patch.object(prompt, "Graph", fail), caplog.at_level(logging.WARNING):
        assert prompts(outline, "none") == [(1, 512, 3 * 4096)] * 3
    assert [record.getMessage() for record in caplog.records if record.name == "imagegen.model.prompt"] == [
        "the text encoder cannot be recorded (RuntimeError): operation not permitted when stream is capturing"
    ]
