"""What of a request counts as not given, the same at every endpoint."""

from __future__ import annotations

from typing import Any

#: What clients write for a field that they do not set. An empty prompt is a missing one.
EMPTY: tuple[Any, ...] = (None, "", [], {})


def is_given(value: Any) -> bool:
    """Whether a value says anything."""
    return value not in EMPTY
