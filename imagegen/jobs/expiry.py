"""How long ended jobs are kept: the statements of the store that let them expire. For the store's thread."""

from __future__ import annotations

from collections.abc import Collection

from imagegen.jobs.database import Database
from imagegen.jobs.rows import COLUMNS, Row

#: Seconds for which an expired job is remembered, so that its caller learns of it.
EXPIRED_SECONDS = 7 * 86_400.0
#: Expired jobs and idempotency keys that are remembered at most; callers have equal shares of them.
_MOST_EXPIRED, _MOST_KEYS = 10_000, 100_000


class Expiry:
    """The ended jobs of a store, by their age and bytes."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def bytes_kept(self) -> int:
        """Bytes of all jobs."""
        return int(self._database.execute("SELECT COALESCE(SUM(bytes), 0) AS n FROM jobs WHERE bytes > 0")[0]["n"])

    def to_make_room(self, missing: int, limit: int, whole: bool = False) -> list[Row]:
        """Ended jobs that have `missing` bytes together, and no more of them than that takes: of the owners whose ended
        jobs have the most, the oldest, so that no caller's jobs push out another's.

        Args:
            limit: jobs at most.
            whole: none at all where all ended jobs together have fewer.
        """
        kept = "FROM jobs WHERE bytes > 0 AND state IN ('succeeded', 'failed', 'cancelled')"
        rows = self._database.execute(f"SELECT owner, SUM(bytes) AS n {kept} GROUP BY owner ORDER BY n DESC")
        owned = {row["owner"]: int(row["n"]) for row in rows}  # PostgreSQL's sums are decimals
        if whole and sum(owned.values()) < missing:
            return []
        share = _share(list(owned.values()), missing)
        chosen: list[Row] = []
        for owner, own in owned.items():
            over, left = own - share, limit - len(chosen)
            if over <= 0 or missing <= 0 or left <= 0:
                break  # so have all that follow
            statement = f"SELECT {COLUMNS} {kept} AND owner = ? ORDER BY finished LIMIT ?"
            for row in self._database.execute(statement, (owner, left)):
                if over <= 0 or missing <= 0:  # whole jobs go: those of one owner may be enough for all
                    break
                chosen.append(Row(**row))
                over -= row["bytes"]
                missing -= row["bytes"]
        return chosen

    def too_old(self, limit: int, keep: float) -> list[Row]:
        """Jobs that ended more than `keep` seconds ago, the oldest first."""
        return [
            Row(**row)
            for row in self._database.execute(
                f"SELECT {COLUMNS} FROM jobs WHERE state IN ('succeeded', 'failed', 'cancelled') AND finished < ? "
                "ORDER BY finished LIMIT ?",
                (self._database.now() - keep, limit),
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
        """Deletes what expired long ago, and those expired jobs and idempotency keys that are too many.

        Args:
            keep: seconds for which an ended job is kept.
        """
        with self._database.transaction():
            oldest = self._database.now() - keep - EXPIRED_SECONDS
            self._database.execute(
                "DELETE FROM jobs WHERE state = 'expired' AND finished < ? "
                "AND (webhook_state IS NULL OR webhook_state <> 'pending')",
                (oldest,),
            )
            self._drop_most("jobs", "id", "finished", "state = 'expired'", _MOST_EXPIRED)
            self._drop_most("idempotency", "owner, name", "created", "1 = 1", _MOST_KEYS)

    def _drop_most(self, table: str, key: str, age: str, of: str, most: int) -> None:
        """Deletes the oldest rows of the owners who have the most of them, so that no caller pushes out another's."""
        if self._database.execute(f"SELECT COUNT(*) AS n FROM {table} WHERE {of}")[0]["n"] <= most:
            return
        ranked = f"SELECT *, ROW_NUMBER() OVER (PARTITION BY owner ORDER BY {age} DESC) AS nth FROM {table} WHERE {of}"
        placed = f"SELECT *, ROW_NUMBER() OVER (ORDER BY nth, {age} DESC) AS place FROM ({ranked}) AS ranked"
        chosen = f"SELECT {key} FROM ({placed}) AS placed WHERE place > ?"
        if table == "jobs":
            chosen += " AND (webhook_state IS NULL OR webhook_state <> 'pending')"
        self._database.execute(f"DELETE FROM {table} WHERE ({key}) IN ({chosen})", (most,))


def _share(owned: list[int], missing: int) -> float:
    """What each owner may keep so that `missing` is given up, by those alone who have more than that.

    Args:
        owned: by each owner, the most first.
    """
    total = 0
    for count, own in enumerate(owned, 1):
        total += own
        share = (total - missing) / count
        if count == len(owned) or share >= owned[count]:
            return share
    return 0.0
