"""A job as the database holds it."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields

#: States of a job that has not ended, and of one that has.
OPEN, DONE = ("queued", "running"), ("succeeded", "failed", "cancelled")


@dataclass
class Row:
    """A job as it is stored. Times are seconds since 1970.

    Args:
        seq: its place in the order of arrival.
        id: 32 hexadecimal digits.
        owner: the caller's name, who alone sees it.
        priority: of its owner; the highest goes first.
        state: queued, running, succeeded, failed, cancelled or expired.
        fields: of its request, without its reference images.
        seed: of its images, where its request names none.
        starts: how often it was begun.
        worker: the process that runs it.
        result: the answer without its images; error: the error's body; each in JSON.
        events: what happened, in JSON, once it has ended.
        files: the names of its bytes, in JSON; `bytes`: how many they are.
        webhook_state: None where there is none; pending, delivered or failed.
        webhook_next: when it is tried next.
        megapixels: those that were counted of its owner's limit when it was accepted.
        trace: the `traceparent` of the request that brought it; None while traces are off.
        spoken: the caller's names of fields that have another here, in JSON.
    """

    seq: int
    id: str
    owner: str
    priority: int
    state: str
    mode: str
    fields: str
    seed: int
    previews: int
    created: float
    started: float | None
    finished: float | None
    starts: int
    worker: str | None
    result: str | None
    error: str | None
    events: str | None
    files: str
    bytes: int
    webhook_url: str | None
    webhook_secret: str | None
    webhook_state: str | None
    webhook_tries: int
    webhook_next: float | None
    webhook_error: str | None
    megapixels: float
    trace: str | None
    spoken: str

    @property
    def names(self) -> list[str]:
        """The names of its bytes."""
        names: list[str] = json.loads(self.files)
        return names


#: Of the table, in the order of Row.
COLUMNS = ", ".join(field.name for field in fields(Row))


@dataclass(frozen=True)
class NewJob:
    """A job that is to be stored; see Row. The archive fills in what follows from its request."""

    id: str
    owner: str
    seed: int
    priority: int = 0
    previews: int = 0
    megapixels: float = 0.0
    webhook_url: str | None = None
    webhook_secret: str | None = None
    mode: str = ""
    fields: str = "{}"
    spoken: str = "{}"
    files: tuple[str, ...] = ()
    bytes: int = 0
    trace: str | None = None


@dataclass(frozen=True)
class Room:
    """How many jobs may wait: in all, and of one owner; seconds until there may be room again; and the bytes of one
    owner's, beyond its first job."""

    total: int
    share: int
    seconds: int
    bytes: int = 2**62
