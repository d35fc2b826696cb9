"""The database of the jobs and the folder of their references and images belong together.

Servers that share a database find each other's files only in one folder that they share too. So the first start writes
the database's random identity into the folder; each later start compares the two.
"""

from __future__ import annotations

import secrets
from pathlib import Path

from imagegen.errors import ConfigurationError, StoreFailed
from imagegen.jobs.database import SQLITE_FILE, Database, SqliteDatabase, private
from imagegen.settings import Settings

#: The file in the folder that holds the identity of its database.
_FILE = "store-id"


def open_database(settings: Settings) -> Database:
    """The database that the settings name.

    Raises:
        ConfigurationError: it cannot be used, or its folder belongs to servers that share another.
    """
    folder = settings.jobs_dir
    if settings.jobs_database is None:
        if folder is not None:
            _check_own(folder)
        return SqliteDatabase(folder)
    if folder is None:
        raise ConfigurationError(
            "IMAGEGEN_JOBS_DATABASE: needs IMAGEGEN_JOBS_DIR, a folder that all servers of the database share"
        )
    try:
        from imagegen.jobs.postgres import PostgresDatabase
    except ImportError:
        raise ConfigurationError("IMAGEGEN_JOBS_DATABASE: needs pg8000; pip install pg8000") from None
    return PostgresDatabase(settings.jobs_database.get_secret_value())


def _check_own(folder: Path) -> None:
    """Checks the folder of a server that shares no database. Before SQLite is opened there: a start that is refused
    must leave no file, for which the servers that share the folder would be refused too."""
    try:
        bound = (folder / _FILE).exists()
    except OSError as error:
        raise _refused(f"cannot be used ({error.strerror})") from None
    if bound:
        raise _refused("belongs to servers with an IMAGEGEN_JOBS_DATABASE; set that, or take another folder")


def bind(database: Database, folder: Path) -> None:
    """Binds a database that servers share to the folder of its files at the first start, and compares them at each
    later one.

    Raises:
        ConfigurationError: the folder belongs to another database, or the database to another folder.
    """
    try:
        if (folder / SQLITE_FILE).exists():
            raise _refused(
                f"holds {SQLITE_FILE}, the jobs of a server without an IMAGEGEN_JOBS_DATABASE; take an empty folder"
            )
        _compare(database, folder / _FILE)
    except OSError as error:
        raise _refused(f"cannot be used ({error.strerror})") from None
    except StoreFailed:
        raise ConfigurationError("IMAGEGEN_JOBS_DATABASE: cannot be used; the log says why") from None


def _compare(database: Database, path: Path) -> None:
    """Two transactions, so that a start that ends between them, however it ends, leaves nothing that refuses the
    next one."""
    with database.transaction():
        identity = _meta(database, "identity", secrets.token_hex(16))
    with database.transaction():  # of one server at a time
        found = path.read_text(errors="replace").strip() if path.exists() else ""
        bound = database.execute("SELECT value FROM meta WHERE name = 'bound'")
        if not found and not bound:
            private(path)
            path.write_text(f"{identity}\n")
        elif found != identity:
            raise _refused(
                "is not the folder of the jobs in IMAGEGEN_JOBS_DATABASE; all servers of a database share one folder. "
                f"(Where it holds a copy of that folder: {_FILE} in it must say {identity}, and "
                f"{'has another identity' if found else 'is missing'})"
            )
        _meta(database, "bound", "yes")


def _meta(database: Database, name: str, value: str) -> str:
    """A value of the database, which is kept from the first call on."""
    rows = database.execute(
        "INSERT INTO meta (name, value) VALUES (?, ?) "
        "ON CONFLICT (name) DO UPDATE SET name = excluded.name RETURNING value",
        (name, value),
    )
    return str(rows[0]["value"])


def _refused(why: str) -> ConfigurationError:
    return ConfigurationError(f"IMAGEGEN_JOBS_DIR: {why}")
