"""What of a request counts as not given, the same at every endpoint."""

from __future__ import annotations

from typing import Any

#: What clients write for a field that they do not set. An empty prompt is a missing one.
EMPTY: tuple[Any, ...] = (None, "", [], {})


def is_given(value: Any) -> bool:
    """Whether a value says anything; a list of nothing but empty entries does not."""
    return value not in EMPTY and not (isinstance(value, list) and all(one in EMPTY for one in value))
