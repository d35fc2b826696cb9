"""A queue that callers share."""

from __future__ import annotations

import heapq
import itertools
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """Items of several callers: the callers take turns, and a caller's items come in the order of their arrival.

    A turn is fixed when an item is put: behind the caller's own items, and never before the turn that is running. So a
    caller with a single item waits for at most one item of each other caller, and nobody waits for ever (start-time
    fair queuing with equal weights: Goyal, Vin and Cheng 1996).
    """

    def __init__(self) -> None:
        self._numbers = itertools.count()  # no two entries compare equal
        self._turns: list[tuple[int, int, str | None]] = []
        self._items: dict[str | None, list[tuple[float, int, T]]] = {}
        self._last: dict[str | None, int] = {}
        self._turn = 0

    def put(self, caller: str | None, arrival: float, item: T) -> None:
        """Adds an item, which need not be the caller's newest."""
        turn = self._last[caller] = max(self._turn, self._last.get(caller, self._turn - 1) + 1)
        heapq.heappush(self._turns, (turn, next(self._numbers), caller))
        heapq.heappush(self._items.setdefault(caller, []), (arrival, next(self._numbers), item))

    def get(self) -> T:
        """Removes the next item.

        Raises:
            IndexError: there is none.
        """
        self._turn, _, caller = heapq.heappop(self._turns)
        _, _, item = heapq.heappop(self._items[caller])
        if not self._items[caller]:
            del self._items[caller]
        # Forgotten are those whose next item would have this turn anyway; where nobody waits, all but the last one.
        known = self._last.items() if self._turns else [(caller, self._turn)]
        self._last = {other: last for other, last in known if last >= self._turn}
        return item
