"""What a prompt may hold, what is made of it, and what is said of the part that the model does not see."""

import dataclasses
import unicodedata

import pytest

from imagegen.contract import prompts
from imagegen.contract.requests import parse_job
from tests.engine.test_service import run
from tests.support.images import from_base64

ZWJ_FAMILY = "\U0001f468\u200d\U0001f469\u200d\U0001f467"
SCOTLAND = "\U0001f3f4\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f"


@pytest.mark.parametrize(
    "prompt",
    [
        "a red circle\n\ton blue",
        "دائرة حمراء على خلفية زرقاء",
        "\u200fעיגול אדום\u200e, a \u2068red\u2069 circle",  # marks and isolates of bidirectional text
        "می\u200cخواهم",  # Persian's non-joiner
        "क्\u200dष",
        "赤い丸、青い背景",
        "ภาพ\u200bวงกลม",  # Thai's break between words
        f"a family {ZWJ_FAMILY}, a flag {SCOTLAND}, a heart ❤️, hands 👋🏽",
        "\U0001fae9",  # an emoji that this Python's tables do not have
        "\uf8ff",  # an Apple; private use
        "the words “x² ½ ™ ﬁ” in gold",  # NFKC would write other words
    ],
)
def test_text_of_any_language_stays_what_it_is(prompt):
    assert prompts.clean(prompt) == prompt


def test_one_text_has_one_form():
    decomposed = unicodedata.normalize("NFD", "déjà vu, 한글, Å")
    assert prompts.clean(decomposed) == "déjà vu, 한글, Å"
    assert prompts.clean("a\r\nb\rc") == "a\nb\nc"
    assert parse_job({"prompt": decomposed}).prompt == "déjà vu, 한글, Å"


@pytest.mark.parametrize("character", ["\x00", "\x07", "\x1b", "\x7f", "\x85", "\u202e", "\u202d", "\ufffe",
                                       "\U0010ffff", "\ufdd0", "\U000e0041", "\U000e0001", "\udc80"])  # fmt: skip
def test_what_no_text_needs_is_refused_by_name_and_place(character):
    with pytest.raises(ValueError, match=rf"^prompt: character 5, U\+{ord(character):04X} \(.+\), is not allowed"):
        prompts.clean(f"abcd{character}canary")
    with pytest.raises(ValueError, match="not allowed"):
        prompts.clean(f"{SCOTLAND}{character}")


@pytest.mark.parametrize("prompt", [" ", "\n\t", "\u200b", "\ufeff\u200d", "\u2028\u00a0\u3000", "\u200f"])
def test_what_cannot_be_seen_is_blank(prompt):
    with pytest.raises(ValueError, match="^prompt: is blank"):
        prompts.clean(prompt)


def test_length_is_that_of_the_normal_form():
    assert prompts.clean("é" * 4000) == prompts.clean("e\u0301" * 4000) == "é" * 4000
    with pytest.raises(ValueError, match="^prompt: 6000 characters are too many"):
        prompts.clean("\U0001d15e" * 3000)  # a note that NFC takes apart


def test_tokens_are_counted_as_the_pipeline_does(pipeline):
    """Against the ids that diffusers' own function makes: all of them that are not padding."""
    pipe, words, seen = pipeline._pipe, ("a red circle on a blue background", "x", "red " * 20, "日本 🌟"), []
    hook = pipe.text_encoder.register_forward_pre_hook(
        lambda *call: seen.append(int(call[2]["attention_mask"].sum())), with_kwargs=True
    )
    try:
        for prompt in words:
            pipe.encode_prompt(prompt, max_sequence_length=32)
    finally:
        hook.remove()
    assert seen == [prompts.count_tokens(pipe.tokenizer, prompt) for prompt in words]


def test_a_prompt_that_is_cut_is_generated_with_a_warning(service):
    long = run(service, prompt="a red circle on a blue background" + " and a star" * 20, seed=1)
    spec = service.spec
    pipe = service.start().result()._pipe
    tokens = prompts.count_tokens(pipe.tokenizer, "a red circle on a blue background" + " and a star" * 20)
    assert tokens > spec.max_sequence_length
    assert long.warnings[0] == (
        f"prompt: {tokens} tokens came, those of the model's chat template included, and micro reads the first 32; "
        "the rest is ignored"
    )
    assert from_base64(long.images[0]).size == (128, 128)
    assert not run(service, prompt="a red circle on a blue background", seed=1).warnings


def test_a_warning_begins_with_the_first_token_too_many(pipeline):
    tokenizer, spec = pipeline._pipe.tokenizer, pipeline.config.spec
    tokens = prompts.count_tokens(tokenizer, "a red circle")
    for limit, cut in ((tokens, False), (tokens - 1, True)):
        found = prompts.warnings(dataclasses.replace(spec, max_sequence_length=limit), "a red circle", tokenizer)
        assert bool(found) == cut
