"""How long ended jobs are kept: the statements of the store that let them expire. For the store's thread."""

from __future__ import annotations

import time
from collections.abc import Collection

from imagegen.jobs.database import Database
from imagegen.jobs.rows import COLUMNS, Row

#: Seconds for which an expired job is remembered, so that its caller learns of it.
EXPIRED_SECONDS = 7 * 86_400.0
#: Expired jobs and idempotency keys that are remembered at most, the newest.
_MOST_EXPIRED, _MOST_KEYS = 10_000, 100_000


class Expiry:
    """The ended jobs of a store, by their age and bytes."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def bytes_kept(self) -> int:
        """Bytes of all jobs."""
        return int(self._database.execute("SELECT COALESCE(SUM(bytes), 0) AS n FROM jobs WHERE bytes > 0")[0]["n"])

    def oldest_with_bytes(self, limit: int) -> list[Row]:
        """Ended jobs that have files, the oldest first."""
        return [
            Row(**row)
            for row in self._database.execute(
                f"SELECT {COLUMNS} FROM jobs WHERE state IN ('succeeded', 'failed', 'cancelled') AND bytes > 0 "
                "ORDER BY finished LIMIT ?",
                (limit,),
            )
        ]

    def oldest_kept(self, limit: int, before: float) -> list[Row]:
        """Ended jobs that ended before a time, the oldest first."""
        return [
            Row(**row)
            for row in self._database.execute(
                f"SELECT {COLUMNS} FROM jobs WHERE state IN ('succeeded', 'failed', 'cancelled') AND finished < ? "
                "ORDER BY finished LIMIT ?",
                (before, limit),
            )
        ]

    def expire(self, jobs: Collection[str]) -> None:
        """Ended jobs whose files are gone; they are remembered for a while, so that their callers learn of it."""
        with self._database.transaction():
            for job in jobs:
                self._database.execute(
                    "UPDATE jobs SET state = 'expired', result = NULL, error = NULL, events = NULL, fields = '{}', "
                    "files = '[]', bytes = 0 WHERE id = ? AND state IN ('succeeded', 'failed', 'cancelled')",
                    (job,),
                )

    def drop_expired(self, keep: float) -> None:
        """Deletes what expired long ago, and of expired jobs and idempotency keys the oldest that are too many.

        Args:
            keep: seconds for which an ended job is kept.
        """
        with self._database.transaction():
            oldest = time.time() - keep - EXPIRED_SECONDS
            self._database.execute(
                "DELETE FROM jobs WHERE state = 'expired' AND finished < ? "
                "AND (webhook_state IS NULL OR webhook_state <> 'pending')",
                (oldest,),
            )
            self._database.execute(
                "DELETE FROM jobs WHERE state = 'expired' "
                "AND (webhook_state IS NULL OR webhook_state <> 'pending') AND finished < "
                "(SELECT finished FROM jobs WHERE state = 'expired' ORDER BY finished DESC LIMIT 1 OFFSET ?)",
                (_MOST_EXPIRED,),
            )
            self._database.execute(
                "DELETE FROM idempotency WHERE created < "
                "(SELECT created FROM idempotency ORDER BY created DESC LIMIT 1 OFFSET ?)",
                (_MOST_KEYS,),
            )
