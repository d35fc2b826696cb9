"""A queue that callers share."""

from __future__ import annotations

import bisect
import heapq
import itertools
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")

#: How often an item is overtaken at most, and how many turns ahead one that overtakes is looked for.
OVERTAKEN, REACH = 3, 16


@dataclass(order=True)
class _Item(Generic[T]):
    arrival: float
    number: int
    item: T = field(compare=False)
    group: Hashable = field(compare=False)
    overtaken: int = field(default=0, compare=False)


class FairQueue(Generic[T]):
    """Items of several callers: the callers take turns, and a caller's items come in the order of their arrival.

    A turn is fixed when an item is put: behind the caller's own items, and never before the turn that is running. So a
    caller with a single item waits for at most one item of each other caller, and nobody waits for ever (start-time
    fair queuing with equal weights: Goyal, Vin and Cheng 1996).

    An item of the same group as the one before (jobs with the same LoRA adapters, which are then in place) may overtake
    those before it; each is overtaken `OVERTAKEN` times at most.
    """

    def __init__(self) -> None:
        self._numbers = itertools.count()  # no two entries compare equal
        self._turns: list[tuple[int, int, str | None]] = []
        self._items: dict[str | None, list[_Item[T]]] = {}
        self._last: dict[str | None, int] = {}
        self._turn = 0
        self._group: Hashable = None

    def put(self, caller: str | None, arrival: float, item: T, group: Hashable = None) -> None:
        """Adds an item, which need not be the caller's newest.

        Args:
            group: items of the same one are better done one after another; one without goes with any.
        """
        turn = self._last[caller] = max(self._turn, self._last.get(caller, self._turn - 1) + 1)
        heapq.heappush(self._turns, (turn, next(self._numbers), caller))
        bisect.insort(self._items.setdefault(caller, []), _Item(arrival, next(self._numbers), item, group))

    def get(self) -> T:
        """Removes the next item: that of the next turn, or one of the last item's group that may overtake.

        Raises:
            IndexError: there is none.
        """
        following = self._following()
        chosen = 0  # one without a group goes with any: nothing is gained by overtaking it
        if self._group is not None and following[0][1].group is not None:
            chosen = next((i for i, (_, item) in enumerate(following) if item.group == self._group), 0)
        if any(item.overtaken >= OVERTAKEN for _, item in following[:chosen]):
            chosen = 0
        for _, item in following[:chosen]:
            item.overtaken += 1
        entry, found = following[chosen]
        self._turns.remove(entry)
        heapq.heapify(self._turns)
        caller = entry[2]
        self._items[caller].remove(found)
        if not self._items[caller]:
            del self._items[caller]
        # One that overtakes leaves the turn with those whom it has overtaken.
        self._turn = following[0][0][0]
        self._group = self._group if found.group is None else found.group
        # Forgotten are those whose next item would have this turn anyway; where nobody waits, all but the last one.
        known = self._last.items() if self._turns else [(caller, self._turn)]
        self._last = {other: last for other, last in known if last >= self._turn}
        return found.item

    def _following(self) -> list[tuple[tuple[int, int, str | None], _Item[T]]]:
        """The next turns, as many as an item could overtake and one more, each with the item that it is for."""
        taken: dict[str | None, int] = {}
        pairs = []
        for entry in heapq.nsmallest(REACH, self._turns):
            at = taken.get(entry[2], 0)
            taken[entry[2]] = at + 1
            pairs.append((entry, self._items[entry[2]][at]))
        if not pairs:
            raise IndexError("the queue is empty")
        return pairs
