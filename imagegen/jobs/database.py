"""The database of the jobs: SQLite in the folder of IMAGEGEN_JOBS_DIR, in memory without one; see
`imagegen.jobs.postgres` for one that servers share.

SQLite writes ahead (WAL) and waits for the disk with each commit, so that what was answered survives kill -9 and a loss
of power. The statements are SQL that PostgreSQL knows too; `?` stands for a value.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from imagegen.errors import ConfigurationError, StoreFailed
from imagegen.jobs.schema import MIGRATIONS

log = logging.getLogger(__name__)

#: The database in its folder, and the file that a process locks.
SQLITE_FILE, _LOCK = "jobs.sqlite3", "lock"
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
#: SQLite's errors of the disk, of rights and of other processes; any other is of the database itself.
_NO_DAMAGE = (
    sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PERM, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_INTERRUPT,
)  # fmt: skip


class Database(Protocol):
    """A database, for one thread."""

    #: What `schema.MIGRATIONS` write for a column of numbers that the database counts up itself.
    serial: str
    #: Whether other servers use it too.
    shared: bool

    def execute(self, statement: str, values: Sequence[Any] = ()) -> list[dict[str, Any]]:
        """The rows of a statement.

        Raises:
            StoreFailed: the disk is full, or broken; the database cannot be reached.
        """

    @contextmanager
    def transaction(self, durable: bool = True) -> Iterator[None]:
        """All statements of the block, or none.

        Args:
            durable: False: it outlives the process, and need not outlive the machine's power; that saves a wait.

        Raises:
            StoreFailed: as for `execute`.
        """

    def now(self) -> float:
        """Seconds since 1970, by the one clock of all who use it.

        Raises:
            StoreFailed: as for `execute`.
        """

    def close(self) -> None:
        """Closes it."""


class SqliteDatabase:
    """SQLite.

    Args:
        folder: where the file is; None: in memory.

    Raises:
        ConfigurationError: the folder cannot be written to, is in use, or holds no database of this version.
    """

    serial = "INTEGER PRIMARY KEY AUTOINCREMENT"
    shared = False

    def __init__(self, folder: Path | None) -> None:
        self._lock: int | None = None
        try:
            if folder is not None:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._lock = _lock(folder)
            # A file of the owner's alone: it holds prompts, and the secrets of webhooks.
            name = ":memory:" if folder is None else str(private(folder / SQLITE_FILE))
            self._connection = sqlite3.connect(name, isolation_level=None, check_same_thread=False)
            self._connection.row_factory = sqlite3.Row
            for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=5000"):
                self._connection.execute(f"PRAGMA {pragma}")
            # A tenth of a second with 100,000 jobs. What is damaged would else be found by a job, or by none.
            if [tuple(row) for row in self._connection.execute("PRAGMA quick_check(1)")] != [("ok",)]:
                raise sqlite3.DatabaseError
            migrate(self)
        except (sqlite3.DatabaseError, StoreFailed) as error:
            self.close()
            cause = error.__cause__ if isinstance(error, StoreFailed) else error
            why = "is no database, or damaged; move it away, or put a copy in its place"
            if isinstance(cause, sqlite3.OperationalError) and not _is_damage(cause):
                why = f"cannot be written to ({cause})"
            raise ConfigurationError(f"IMAGEGEN_JOBS_DIR: {SQLITE_FILE} {why}") from None
        except OSError as error:
            self.close()
            raise ConfigurationError(f"IMAGEGEN_JOBS_DIR: cannot be used ({error.strerror})") from None
        except ConfigurationError:
            self.close()
            raise

    def execute(self, statement: str, values: Sequence[Any] = ()) -> list[dict[str, Any]]:
        """The rows of a statement.

        Raises:
            StoreFailed: the disk is full, or broken.
        """
        try:
            return [dict(row) for row in self._connection.execute(statement, values)]
        except sqlite3.DatabaseError as error:
            raise failed(error) from error

    @contextmanager
    def transaction(self, durable: bool = True) -> Iterator[None]:
        """All statements of the block, or none.

        Raises:
            StoreFailed: the disk is full, or broken.
        """
        if not durable:
            self.execute("PRAGMA synchronous=NORMAL")
        try:
            self.execute("BEGIN IMMEDIATE")
            yield
            self.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise
        finally:
            if not durable:
                self._connection.execute("PRAGMA synchronous=FULL")

    def now(self) -> float:
        """Seconds since 1970."""
        return time.time()

    def close(self) -> None:
        """Closes it, and lets another process have the folder."""
        if hasattr(self, "_connection"):
            self._connection.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def failed(error: Exception) -> StoreFailed:
    """The error for the caller; the log has the cause."""
    log.error("the store of jobs failed: %s", error)
    if _is_damage(error):
        return StoreFailed("the store of jobs is damaged; a copy must be put in its place", retry_after=60)
    if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_FULL or getattr(error, "errno", 0) in _NO_SPACE:
        return StoreFailed("the disk of the store of jobs is full; try again later", retry_after=60)
    return StoreFailed("the store of jobs cannot be used now; try again later", retry_after=10)


def _is_damage(error: BaseException | None) -> bool:
    """Whether SQLite says that the database itself is at fault."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_IOERR)  # errors of Python's module alone have none
    return code & 0xFF not in _NO_DAMAGE


def migrate(database: Database) -> None:
    """Brings the tables to this version, one version after the other.

    Raises:
        ConfigurationError: they are of a newer version.
    """
    with database.transaction():
        database.execute("CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL)")
        rows = database.execute("SELECT value FROM meta WHERE name = 'version'")
        written = rows[0]["value"] if rows else "0"
        if not re.fullmatch("[0-9]{1,9}", written):
            raise ConfigurationError("the store of jobs is damaged: its version is no number; put a copy in its place")
        version = int(written)
        if version > len(MIGRATIONS):
            raise ConfigurationError(
                f"the store of jobs has version {version}, and this program knows versions up to {len(MIGRATIONS)}; "
                "run the program that wrote it, or a newer one"
            )
        if version == len(MIGRATIONS):
            return  # nothing is written: the disk may be full
        for migration in MIGRATIONS[version:]:
            for statement in migration:
                database.execute(statement.replace("SERIAL_KEY", database.serial))
        database.execute("DELETE FROM meta WHERE name = 'version'")
        database.execute("INSERT INTO meta (name, value) VALUES ('version', ?)", (str(len(MIGRATIONS)),))


def private(path: Path) -> Path:
    """A file that nobody but this user can read, made where it is not there."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    return path


def _lock(folder: Path) -> int:
    """Takes the folder for this process, until it ends, however it ends."""
    handle = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise ConfigurationError(
            "IMAGEGEN_JOBS_DIR: another process uses this folder; give each server a folder of its own"
        ) from None
    return handle
