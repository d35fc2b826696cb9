"""The webhooks in the database: which are due, and what came of each try. For the store's thread."""

from __future__ import annotations

from contextlib import nullcontext

from imagegen.jobs.database import Database
from imagegen.jobs.rows import COLUMNS, Row
from imagegen.jobs.store import DAY


class Deliveries:
    """The webhooks of a store."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def due(self, of_each: int, limit: int, lease: float = 0.0) -> list[Row]:
        """Jobs whose webhook is due, those that wait longest first.

        Args:
            of_each: jobs of one owner at most, so that one whose receiver hangs does not keep others waiting.
            lease: seconds for which no other process gets them.
        """
        now = self._database.now()
        with self._database.transaction() if lease else nullcontext():
            rows = self._database.execute(
                f"SELECT * FROM (SELECT {COLUMNS}, "
                "ROW_NUMBER() OVER (PARTITION BY owner ORDER BY webhook_next) AS nth "
                "FROM jobs WHERE webhook_state = 'pending' AND (webhook_next <= ? OR webhook_next > ?)) AS due "
                "WHERE nth <= ? ORDER BY webhook_next LIMIT ?",
                (now, now + DAY, of_each, limit),  # no delay is a day: the clock was set back since
            )
            for row in rows if lease else ():
                self._database.execute("UPDATE jobs SET webhook_next = ? WHERE id = ?", (now + lease, row["id"]))
        return [Row(**{name: value for name, value in row.items() if name != "nth"}) for row in rows]

    def note(self, job: str, state: str, error: str | None = None, delay: float | None = None) -> None:
        """What came of a try to deliver a job's webhook; its secret goes when there will be no other.

        Args:
            delay: seconds until the next try.
        """
        next_try = None if delay is None else self._database.now() + delay
        with self._database.transaction():
            self._database.execute(
                "UPDATE jobs SET webhook_state = ?, webhook_tries = webhook_tries + 1, webhook_error = ?, "
                "webhook_next = ?, webhook_secret = CASE WHEN ? = 'pending' THEN webhook_secret ELSE NULL END "
                "WHERE id = ?",
                (state, error, next_try, state, job),
            )
