"""The tables of the store, version by version. What has been released is never changed; a change is a new version.

Times are seconds since 1970. `SERIAL_KEY` becomes the database's own type of a number that it counts up itself.
"""

from __future__ import annotations

_JOBS = (
    """
    CREATE TABLE jobs (
        seq SERIAL_KEY,
        id TEXT NOT NULL UNIQUE,
        owner TEXT NOT NULL,
        priority INTEGER NOT NULL,
        state TEXT NOT NULL,
        mode TEXT NOT NULL,
        fields TEXT NOT NULL,
        seed BIGINT NOT NULL,
        previews INTEGER NOT NULL,
        created DOUBLE PRECISION NOT NULL,
        started DOUBLE PRECISION,
        finished DOUBLE PRECISION,
        starts INTEGER NOT NULL,
        worker TEXT,
        result TEXT,
        error TEXT,
        events TEXT,
        files TEXT NOT NULL,
        bytes BIGINT NOT NULL,
        webhook_url TEXT,
        webhook_secret TEXT,
        webhook_state TEXT,
        webhook_tries INTEGER NOT NULL,
        webhook_next DOUBLE PRECISION,
        webhook_error TEXT
    )
    """,
    "CREATE INDEX jobs_waiting ON jobs (owner, seq) WHERE state = 'queued'",
    "CREATE INDEX jobs_running ON jobs (seq) WHERE state = 'running'",
    "CREATE INDEX jobs_of_owner ON jobs (owner, seq)",
    "CREATE INDEX jobs_bytes ON jobs (bytes) WHERE bytes > 0",
    "CREATE INDEX jobs_done ON jobs (finished) WHERE state IN ('succeeded', 'failed', 'cancelled')",
    "CREATE INDEX jobs_expired ON jobs (finished) WHERE state = 'expired'",
    "CREATE INDEX jobs_to_tell ON jobs (owner, webhook_next) WHERE webhook_state = 'pending'",
    """
    CREATE TABLE idempotency (
        owner TEXT NOT NULL,
        name TEXT NOT NULL,
        fingerprint TEXT NOT NULL,
        job TEXT NOT NULL,
        created DOUBLE PRECISION NOT NULL,
        PRIMARY KEY (owner, name)
    )
    """,
    "CREATE INDEX idempotency_created ON idempotency (created)",
)

_LIMITS = (
    """
    CREATE TABLE used (
        owner TEXT NOT NULL,
        name TEXT NOT NULL,
        start BIGINT NOT NULL,
        amount DOUBLE PRECISION NOT NULL,
        PRIMARY KEY (owner, name)
    )
    """,
    "ALTER TABLE jobs ADD COLUMN megapixels DOUBLE PRECISION NOT NULL DEFAULT 0",
)

_WORKERS = ("CREATE TABLE workers (name TEXT PRIMARY KEY, seen DOUBLE PRECISION NOT NULL)",)

_TRACES = ("ALTER TABLE jobs ADD COLUMN trace TEXT",)

_SPOKEN = (
    "ALTER TABLE jobs ADD COLUMN spoken TEXT NOT NULL DEFAULT '{}'",
    "CREATE INDEX jobs_kept ON jobs (owner, finished, bytes) "
    "WHERE bytes > 0 AND state IN ('succeeded', 'failed', 'cancelled')",
)

#: The statements that lead from each version to the next, beginning with an empty database.
MIGRATIONS: tuple[tuple[str, ...], ...] = (_JOBS, _LIMITS, _WORKERS, _TRACES, _SPOKEN)
