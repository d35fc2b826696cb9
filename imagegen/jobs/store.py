"""The jobs in the database: every statement that is made of them. For one thread.

A job's row says all that is needed to run it, to tell its caller what came of it, and to deliver its webhook. The bytes
of references and images are `imagegen.jobs.files`.
"""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Collection, Mapping
from typing import Any

from imagegen.errors import IdempotencyKeyReuse, LimitExceeded, Overloaded
from imagegen.jobs.database import Database
from imagegen.jobs.rows import COLUMNS, NewJob, Room, Row

#: Seconds of a day, and the limit that is counted by the day.
DAY, DAYS_MEGAPIXELS = 86_400, "megapixels_per_day"
#: Seconds after which a process that shares the store, and has not said that it is alive, counts as ended.
ALIVE_SECONDS = 30.0
#: Seconds for which an idempotency key is remembered.
KEY_SECONDS = 86_400.0


class Store:
    """The jobs.

    Args:
        worker: the name of this process, for the jobs that it runs.
    """

    def __init__(self, database: Database, worker: str) -> None:
        self._database, self._worker = database, worker
        #: Since when this process has said without a gap that it is alive, and when it last did.
        self._beating = (math.inf, -math.inf)

    def add(self, job: NewJob, room: Room, key: tuple[str, str] | None = None) -> tuple[Row, bool]:
        """Stores a job, unless its idempotency key has one.

        Args:
            room: for jobs that wait.
            key: the Idempotency-Key, and the fingerprint of the body that came with it.

        Returns:
            The job, or the one that the key has; and whether it is new.

        Raises:
            IdempotencyKeyReuse: the key came with another body.
            Overloaded: too many jobs wait.
            StoreFailed: it could not be stored.
        """
        now = self._database.now()
        with self._database.transaction():
            if key is not None:
                name, fingerprint = key
                forgotten = now - KEY_SECONDS
                self._execute("DELETE FROM idempotency WHERE created < ?", forgotten)
                for known in self._execute(
                    "INSERT INTO idempotency (owner, name, fingerprint, job, created) VALUES (?, ?, ?, ?, ?) "
                    "ON CONFLICT (owner, name) DO UPDATE SET name = excluded.name RETURNING fingerprint, job",
                    job.owner, name, fingerprint, job.id, now,
                ):  # fmt: skip
                    if known["fingerprint"] != fingerprint:
                        raise _reused()
                    if known["job"] != job.id and (row := self._get(known["job"])) is not None:
                        return row, False
                    self._execute(
                        "UPDATE idempotency SET job = ? WHERE owner = ? AND name = ?", job.id, job.owner, name
                    )
            self.check_room(job, room)
            self._execute(
                "INSERT INTO jobs (id, owner, priority, state, mode, fields, seed, previews, created, starts, files, "
                "bytes, webhook_url, webhook_secret, webhook_tries, megapixels, trace, spoken) "
                "VALUES (?, ?, ?, 'queued', ?, ?, ?, ?, ?, 0, ?, ?, ?, ?, 0, ?, ?, ?)",
                job.id, job.owner, job.priority, job.mode, job.fields, job.seed, job.previews, now,
                json.dumps(job.files), job.bytes, job.webhook_url, job.webhook_secret, job.megapixels,
                job.trace, job.spoken,
            )  # fmt: skip
            row = self._get(job.id)
        if row is None:
            raise RuntimeError("a job that was stored is not there")
        return row, True

    def check_room(self, job: NewJob, room: Room) -> None:
        """Whether a job may wait.

        Raises:
            LimitExceeded: its owner has too many jobs waiting, or too many bytes.
            Overloaded: too many jobs wait.
        """
        # Of all owners at once: for one of them SQLite would read its ended jobs too.
        rows = self._execute(
            "SELECT owner, COUNT(*) AS n, SUM(bytes) AS bytes FROM jobs WHERE state = 'queued' GROUP BY owner"
        )
        total = sum(row["n"] for row in rows)
        own = next((row for row in rows if row["owner"] == job.owner), {"n": 0, "bytes": 0})
        size = int(own["bytes"]) + job.bytes  # PostgreSQL's sums are decimals
        again = f"try again in {room.seconds} s"
        if own["n"] >= room.share:
            cause = f"this caller has {own['n']} jobs waiting, and {room.share} are allowed"
            raise LimitExceeded(f"jobs_waiting: {cause}; {again}", "jobs_waiting", retry_after=room.seconds)
        if own["n"] and size > room.bytes:
            cause = f"this caller's waiting jobs would have {size} bytes with this one, and {room.bytes} are allowed"
            raise LimitExceeded(f"jobs_waiting: {cause}; {again}", "jobs_waiting", retry_after=room.seconds)
        if total >= room.total:
            raise Overloaded(f"jobs_waiting: {total} jobs wait already; {again}", retry_after=room.seconds)

    def find(self, owner: str, name: str, fingerprint: str) -> Row | None:
        """The job that an idempotency key has.

        Raises:
            IdempotencyKeyReuse: the key came with another body.
        """
        rows = self._execute(
            "SELECT fingerprint, job FROM idempotency WHERE owner = ? AND name = ? AND created >= ?",
            owner, name, self._database.now() - KEY_SECONDS,
        )  # fmt: skip
        if not rows:
            return None
        if rows[0]["fingerprint"] != fingerprint:
            raise _reused()
        return self._get(rows[0]["job"])

    def now(self) -> float:
        """Seconds since 1970, by the clock of the store."""
        return self._database.now()

    def get(self, job: str) -> Row | None:
        """A job, whoever's it is."""
        return self._get(job)

    def page(self, owner: str, limit: int, before: int | None) -> list[Row]:
        """An owner's jobs, the newest first.

        Args:
            before: only those with a smaller `seq`.
        """
        return [
            Row(**row)
            for row in self._execute(
                f"SELECT {COLUMNS} FROM jobs WHERE owner = ? AND seq < ? ORDER BY seq DESC LIMIT ?",
                owner, 2**62 if before is None else before, limit,
            )
        ]  # fmt: skip

    def waiting(self) -> dict[str, int]:
        """How many jobs of each owner wait."""
        rows = self._execute("SELECT owner, COUNT(*) AS n FROM jobs WHERE state = 'queued' GROUP BY owner")
        return {row["owner"]: row["n"] for row in rows}

    def place(self, job: Row) -> int:
        """How many waiting jobs come before a waiting one at most: its owner's earlier ones, and of each other owner,
        since owners take turns, as many and one more."""
        rows = self._execute(
            "SELECT owner, COUNT(*) AS n, SUM(CASE WHEN seq < ? THEN 1 ELSE 0 END) AS earlier, "
            "MAX(priority) AS priority FROM jobs WHERE state = 'queued' GROUP BY owner",
            job.seq,
        )
        own = next((int(row["earlier"]) for row in rows if row["owner"] == job.owner), 0)
        place = own
        for row in rows:
            if row["owner"] != job.owner and row["priority"] >= job.priority:
                place += row["n"] if row["priority"] > job.priority else min(row["n"], own + 1)
        return place

    def claim(self, running: Mapping[str, int], turns: Mapping[str, int], newcomers: bool) -> Row | None:
        """Begins the next job: of the owners with the highest priority the one who has waited longest for a turn, and
        of that owner's jobs the oldest.

        Args:
            running: how many jobs of each owner run here.
            turns: the number of each owner's last turn.
            newcomers: only owners with no running job.
        """
        owners = self._execute(
            "SELECT owner, MAX(priority) AS priority, MIN(seq) AS seq FROM jobs WHERE state = 'queued' GROUP BY owner"
        )
        owners = [row for row in owners if not (newcomers and running.get(row["owner"]))]
        owners.sort(key=lambda row: (-row["priority"], turns.get(row["owner"], -1), row["seq"]))
        for owner in owners:
            with self._database.transaction(durable=False):  # without power it would wait again, and be begun anew
                rows = self._execute(
                    "UPDATE jobs SET state = 'running', started = ?, starts = starts + 1, worker = ? "
                    f"WHERE seq = ? AND state = 'queued' RETURNING {COLUMNS}",
                    self._database.now(), self._worker, owner["seq"],
                )  # fmt: skip
            if rows:  # else another process was faster
                return Row(**rows[0])
        return None

    def put_back(self, job: str, started: bool) -> None:
        """A job that was begun here waits again, at its old place.

        Args:
            started: False: it had no chance, and that does not count as a start.
        """
        with self._database.transaction():
            self._execute(
                "UPDATE jobs SET state = 'queued', worker = NULL, starts = starts - ? "
                "WHERE id = ? AND state = 'running' AND worker = ?",
                0 if started else 1, job, self._worker,
            )  # fmt: skip

    def recover(self, shared: bool = False) -> int:
        """Lets the jobs wait again whose process has ended; how many they are.

        Args:
            shared: other processes run jobs too, and say so by `beat`. None of them counts as ended before this one
                has been able to say so itself for as long: the database may have been away for all. False: all that
                were running.
        """
        with self._database.transaction():
            now = self._database.now()
            if shared and now - self._beating[0] < ALIVE_SECONDS:
                return 0
            alive = now - ALIVE_SECONDS if shared else float("inf")
            rows = self._execute(
                "UPDATE jobs SET state = 'queued', worker = NULL WHERE state = 'running' "
                "AND (worker IS NULL OR worker NOT IN (SELECT name FROM workers WHERE seen > ? AND seen < ?)) "
                "RETURNING seq",
                alive,
                now + ALIVE_SECONDS,  # who was seen later is of before the clock was set back
            )
        return len(rows)

    def beat(self) -> set[str]:
        """This process is alive; returns the jobs that run here, of which another may have cancelled some."""
        with self._database.transaction():
            now = self._database.now()
            self._execute("DELETE FROM workers WHERE seen < ?", now - DAY)
            self._execute(
                "INSERT INTO workers (name, seen) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET seen = excluded.seen",
                self._worker, now,
            )  # fmt: skip
            rows = self._execute("SELECT id FROM jobs WHERE state = 'running' AND worker = ?", self._worker)
        since, last = self._beating
        self._beating = (since if 0 <= now - last < ALIVE_SECONDS / 2 else now, now)
        return {row["id"] for row in rows}

    def is_here(self, job: Row) -> bool:
        """Whether a running job runs in this process."""
        return job.worker == self._worker

    def finish(
        self,
        job: str,
        state: str,
        *,
        result: str | None = None,
        error: str | None = None,
        events: str | None = None,
        files: Collection[str] = (),
        size: int = 0,
        megapixels: float = 0.0,
    ) -> bool:
        """Ends a job that waits or runs, makes its webhook due, and corrects what was counted of its owner's limit;
        False where it had ended already."""
        now = self._database.now()
        with self._database.transaction():
            rows = self._execute(
                "UPDATE jobs SET state = ?, finished = ?, worker = NULL, result = ?, error = ?, events = ?, "
                "files = ?, bytes = ?, webhook_next = ?, "
                "webhook_state = CASE WHEN webhook_url IS NULL THEN NULL ELSE 'pending' END "
                "WHERE id = ? AND state IN ('queued', 'running') RETURNING owner, created, megapixels",
                state,
                now,
                result,
                error,
                events,
                json.dumps(list(files)),
                size,
                now,
                job,
            )  # fmt: skip
            for row in rows:
                if row["megapixels"]:
                    start = int(row["created"]) // DAY * DAY
                    self._use(row["owner"], DAYS_MEGAPIXELS, start, megapixels - row["megapixels"], None)
        return bool(rows)

    def forget(self, job: str) -> int:
        """Deletes a job that has ended; the bytes that it had, 0 where it was gone."""
        with self._database.transaction():
            rows = self._execute(
                "DELETE FROM jobs WHERE id = ? AND state NOT IN ('queued', 'running') RETURNING bytes", job
            )
        return sum(row["bytes"] for row in rows)

    def use(self, owner: str, name: str, start: int, amount: float, most: float | None) -> float | None:
        """Counts what an owner has had of a limit in the window that begins at `start`.

        Args:
            most: what it may have; None: an amount that was counted before is corrected, if its window still runs.

        Returns:
            What it has had, where `amount` would be too much and is not counted; else None.
        """
        with self._database.transaction():
            return self._use(owner, name, start, amount, most)

    def secret(self) -> str:
        """A secret of this store, made at the first call."""
        if rows := self._execute("SELECT value FROM meta WHERE name = 'secret'"):  # a full disk can be read
            return str(rows[0]["value"])
        with self._database.transaction():
            rows = self._execute(
                "INSERT INTO meta (name, value) VALUES ('secret', ?) "
                "ON CONFLICT (name) DO UPDATE SET name = excluded.name RETURNING value",
                secrets.token_hex(32),
            )
        return str(rows[0]["value"])

    def _use(self, owner: str, name: str, start: int, amount: float, most: float | None) -> float | None:
        rows = self._execute("SELECT start, amount FROM used WHERE owner = ? AND name = ?", owner, name)
        had = rows[0]["amount"] if rows and rows[0]["start"] == start else 0.0
        if most is not None and had + amount > most:
            return float(had)
        if most is not None or (rows and rows[0]["start"] == start):
            self._execute(
                "INSERT INTO used (owner, name, start, amount) VALUES (?, ?, ?, ?) "
                "ON CONFLICT (owner, name) DO UPDATE SET start = excluded.start, amount = excluded.amount",
                owner, name, start, max(0.0, had + amount),
            )  # fmt: skip
        return None

    def _get(self, job: str) -> Row | None:
        rows = self._execute(f"SELECT {COLUMNS} FROM jobs WHERE id = ?", job)
        return Row(**rows[0]) if rows else None

    def _execute(self, statement: str, *values: Any) -> list[dict[str, Any]]:
        return self._database.execute(statement, values)


def _reused() -> IdempotencyKeyReuse:
    return IdempotencyKeyReuse("Idempotency-Key: came before with another body", "Idempotency-Key")
