"""A word-level tokenizer in klein's tokenizer class, with a chat template that frames the prompt."""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from imagegen.builder.micro.scenes import COLOURS, SHAPES

SPECIAL = ("<pad>", "<unk>", "<start>", "<end>")
#: Every word that the model is taught, and a few that it will be (kept, so that the vocabulary does not move).
WORDS = (
    *COLOURS, *SHAPES, "shape", "shapes", "background", "image", "picture", "colour", "color", "1", "2", "3", "4",
    "one", "two", "three", "four", "a", "an", "the", "of", "on", "in", "at", "to", "into", "with", "and", "it", "from",
    "left", "right", "top", "bottom", "centre", "center", "middle", "corner", "upper", "lower", "small", "little",
    "medium", "big", "large", "bigger", "smaller", "larger", "make", "paint", "change", "turn", "put", "draw", "add",
    "move", "remove", "delete", "take", "away", "keep", "everything", "nothing", "gradient", "light", "dark", "plain",
    "grey", "gray", "pink", "brown", "cyan", "empty", "everywhere", "enlarge", "shrink", "replace", "swap", "side",
    "its", "is", "there", "behind", "under", "over", "above", "below", "next", "both", "all", "same", "first", "second",
    "third", "fourth", "combine", "use", "up", "down", "off", "onto", "set", ",", ".",
)  # fmt: skip
#: Tokens of a prompt, as the pipeline's `max_sequence_length`: long enough for every caption, cheap on a CPU.
MAX_TOKENS = 32

_TEMPLATE = "{% for m in messages %}<start> {{ m['content'] }} <end>{% endfor %}"


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer; ids are stable: special tokens first, then WORDS in order. A plural is read as its shape."""
    vocabulary = {word: i for i, word in enumerate((*SPECIAL, *WORDS))}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    singular = [normalizers.Replace(Regex(rf"\b{shape}s\b"), shape) for shape in SHAPES]
    core.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase(), *singular])
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            # A special token stays whole; punctuation parts from its word; digits one by one.
            pre_tokenizers.Split(Regex(r"<\w+>|\d|[^\W\d]+|[^\w\s]"), "isolated"),
        ]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<start>",
        eos_token="<end>",
        model_max_length=MAX_TOKENS,
        padding_side="right",
    )
    tokenizer.chat_template = _TEMPLATE
    return tokenizer
