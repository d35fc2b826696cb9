"""What was received, as a message shows it."""

from __future__ import annotations

import reprlib
from typing import Any


class _Shown(reprlib.Repr):
    """JSON's words for its constants. Not repr, which descends into what may be a thousand levels deep."""

    def repr_bool(self, value: bool, level: int) -> str:
        return "true" if value else "false"

    def repr_NoneType(self, value: None, level: int) -> str:  # noqa: N802 - reprlib's name for it
        return "null"


_shown = _Shown()


def show(value: Any, limit: int = 60) -> str:
    """What came, short enough for a message."""
    try:
        text = _shown.repr(value)
    except ValueError:  # an integer of more than 4,300 digits
        return f"a very long {type(value).__name__}"
    return text if len(text) <= limit else f"{text[:limit]}..."


_KINDS: dict[type[Any], str] = {dict: "an object", list: "a list", str: "a string"}


def kind_of(value: Any) -> str:
    """What came, without the words or images that it may hold."""
    return _KINDS.get(type(value)) or show(value)
