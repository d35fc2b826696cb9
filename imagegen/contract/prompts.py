"""A caller's words -> the prompt that is used, and what of it the model does not see."""

from __future__ import annotations

import re
import unicodedata
from typing import Any

from imagegen.models import ModelSpec

#: Characters, after normalisation.
MAX_PROMPT = 4000
#: The flags of England, Scotland and Wales: a black flag, letters as tags, and the tag that ends them (UTS #51).
_TAGGED_FLAG = re.compile("\U0001f3f4[\U000e0030-\U000e007a]{1,6}\U000e007f")
#: What no language needs: controls other than tab and line breaks; overrides of direction, which show a reader other
#: words than the model gets (the marks and isolates of Arabic and Hebrew text stay, and so do joiners); tags outside of
#: flags, which hide words altogether; half surrogate pairs and noncharacters. Characters that this Python does not know
#: yet are no mistake: phones have next year's emoji before it does.
_REFUSED = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202d\u202e\ud800-\udfff\ufdd0-\ufdef\U000e0000-\U000e007f"
    + "".join(f"{chr(plane << 16 | 0xFFFE)}{chr(plane << 16 | 0xFFFF)}" for plane in range(17))
    + "]"
)
#: The same for JSON Schema, with a character that can be seen (of the most used scripts), or blank too.
_ALLOWED = r"[^\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202d\u202e\ufdd0-\ufdef\ufffe\uffff" + "\U000e0000-\U000e007f]*"
_SEEN = r"[!-~\u00a1-\u00ac\u00ae-\u02ff\u0391-\u03a1\u0410-\u044f\u4e00-\u9fa5\uac00-\ud7a3]"
PATTERN = f"^{_ALLOWED}{_SEEN}{_ALLOWED}$"
PATTERN_OR_BLANK = f"^{_ALLOWED}$"
#: Categories of which nothing can be seen: spaces, controls, formats.
_INVISIBLE = ("Zs", "Zl", "Zp", "Cc", "Cf")


def clean(prompt: str, field: str = "prompt") -> str:
    """The prompt in Unicode's normal form C, with line breaks as a line feed.

    NFC is what klein's own tokenizer makes of it, so that what is counted, recorded and encoded is one text. Not NFKC:
    it makes "x²" into "x2", and a prompt often quotes what is to be written in the image.

    Raises:
        ValueError: it is blank, too long, or holds a character that is not allowed; begins with the field's name.
    """
    prompt = unicodedata.normalize("NFC", prompt.replace("\r\n", "\n").replace("\r", "\n"))
    if len(prompt) > MAX_PROMPT:
        raise ValueError(f"{field}: {len(prompt)} characters are too many; 1 to {MAX_PROMPT} are allowed")
    if found := _REFUSED.search(_TAGGED_FLAG.sub(lambda flag: " " * len(flag[0]), prompt)):
        number = ord(found[0])
        name = unicodedata.name(found[0], "a control character or none at all")
        raise ValueError(f"{field}: character {found.start() + 1}, U+{number:04X} ({name}), is not allowed in a text")
    if is_blank(prompt):
        raise ValueError(f"{field}: is blank; 1 to {MAX_PROMPT} characters are allowed")
    return prompt


def is_blank(text: str) -> bool:
    """Whether nothing of a text can be seen."""
    return all(unicodedata.category(character) in _INVISIBLE for character in text)


def in_chat_template(tokenizer: Any, prompt: str) -> str:
    """A prompt in the chat template in which Flux2KleinPipeline gives it to its text encoder."""
    message = [{"role": "user", "content": prompt}]
    text: str = tokenizer.apply_chat_template(
        message, tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    return text


def count_tokens(tokenizer: Any, prompt: str) -> int:
    """Tokens of a prompt in its chat template."""
    return len(tokenizer(in_chat_template(tokenizer, prompt), verbose=False)["input_ids"])


def warnings(spec: ModelSpec, prompt: str, tokenizer: Any) -> list[str]:
    """What of a prompt has no effect: its end, where it is longer than the model reads; words that micro does not know.

    Not safe beside another call of the same tokenizer, which keeps its settings for cutting in itself.
    """
    found = []
    tokens = count_tokens(tokenizer, prompt)
    if tokens > spec.max_sequence_length:
        found.append(
            f"prompt: {tokens} tokens came, those of the model's chat template included, and {spec.name} reads the "
            f"first {spec.max_sequence_length}; the rest is ignored"
        )
    if spec.draws is not None:
        words = dict.fromkeys(re.findall(r"[^\W\d_]+", prompt.lower()))
        read = {word: tokenizer.backend_tokenizer.normalizer.normalize_str(word) for word in words}
        unknown = [word for word in words if tokenizer.convert_tokens_to_ids(read[word]) == tokenizer.unk_token_id]
        if unknown:
            listed = ", ".join(unknown[:8]) + (", ..." if len(unknown) > 8 else "")
            found.append(f"prompt: {spec.name} does not know {listed[:200]}; it draws {spec.draws}")
        plurals = [word for word in words if word == f"{read[word]}s"]
        if plurals:
            one = plurals[0][:-1]
            found.append(
                f"prompt: {spec.name} reads {plurals[0]} as one {one}; two are "
                f"'a red {one} on the left and a red {one} on the right on a white background'"
            )
    return found
