"""An amount that callers share, so that none of them keeps another out."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable

from imagegen.telemetry.metrics import Metrics


class SharedLimit:
    """So much of something in all, and less of it for one caller. For the event loop's thread alone.

    Args:
        name: of the limit, in metrics.
        total: what there is.
        share: what one caller may have of it. The caller None is the only one, and may have it all.
    """

    def __init__(self, name: str, total: float, share: float, metrics: Metrics) -> None:
        self.total, self.share = total, min(share, total)
        self._name, self._metrics = name, metrics
        self._taken: Counter[str | None] = Counter()
        #: What a caller may have in place of `share`, if that is less; None: nothing else.
        self.share_of: Callable[[str], float | None] = lambda _: None
        metrics.limit.labels(name).set(total)
        self._waiting: deque[tuple[str | None, float, asyncio.Future[None]]] = deque()

    @property
    def taken(self) -> float:
        """What is taken, by all."""
        return sum(self._taken.values())

    def share_for(self, caller: str) -> float:
        """What this caller may have."""
        own = self.share_of(caller)
        return self.share if own is None else min(own, self.share)

    def excess(self, caller: str | None, amount: float) -> str | None:
        """Why `amount` more is too much: the caller's "share", or the "total"; None where it is not."""
        if caller is not None and self._taken[caller] + amount > self.share_for(caller):
            return "share"
        return "total" if self.taken + amount > self.total else None

    def try_take(self, caller: str | None, amount: float) -> str | None:
        """Takes `amount` where it is not too much; else counts a refusal, and returns why."""
        excess = self.excess(caller, amount)
        if excess is None:
            self._add(caller, amount)
        else:
            self._metrics.refused.labels(self._name, excess).inc()
        return excess

    async def take(self, caller: str | None, amount: float) -> None:
        """Waits until there is `amount`, and takes it: in the order of arrival, but that no caller waits for another
        one's share."""
        if not self._waiting and self.excess(caller, amount) is None:
            self._add(caller, amount)
            return
        turn = asyncio.get_running_loop().create_future()
        entry = (caller, amount, turn)
        self._waiting.append(entry)
        self._admit_waiting()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give_back(caller, amount)
            else:
                self._waiting.remove(entry)
                self._admit_waiting()
            raise

    def give_back(self, caller: str | None, amount: float) -> None:
        """Returns what was taken."""
        self._add(caller, -amount)
        if not self._taken[caller]:
            del self._taken[caller]
        self._admit_waiting()

    def _admit_waiting(self) -> None:
        for entry in list(self._waiting):
            caller, amount, turn = entry
            if turn.done():  # its task was cancelled, and removes it in its next step
                continue
            excess = self.excess(caller, amount)
            if excess == "total":
                return  # or a large one would wait for ever
            if excess is None:
                self._waiting.remove(entry)
                self._add(caller, amount)
                turn.set_result(None)

    def _add(self, caller: str | None, amount: float) -> None:
        self._taken[caller] += amount  # type: ignore[assignment] # a Counter of floats
        self._metrics.in_use.labels(self._name).set(self.taken)
