"""Versions of the store's tables: an older one is brought to this one with its jobs, a newer one is refused."""

from __future__ import annotations

import hashlib
import sqlite3

import pytest

from imagegen.errors import ConfigurationError, StoreFailed
from imagegen.jobs import schema
from imagegen.jobs.database import SqliteDatabase
from imagegen.jobs.store import Store
from tests.jobs.test_store import add


def database_of_version(folder, version):
    """A folder with a database as that version wrote it, and a job in it."""
    folder.mkdir()
    connection = sqlite3.connect(folder / "jobs.sqlite3")
    connection.execute("CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL)")
    for migration in schema.MIGRATIONS[:version]:
        for statement in migration:
            connection.execute(statement.replace("SERIAL_KEY", SqliteDatabase.serial))
    connection.execute("INSERT INTO meta VALUES ('version', ?)", (str(version),))
    connection.execute(
        "INSERT INTO jobs (id, owner, priority, state, mode, fields, seed, previews, created, starts, files, bytes, "
        "webhook_tries) VALUES ('old', 'alice', 0, 'running', 'generate', '{}', 7, 0, 1.5, 1, '[]', 0, 0)"
    )
    connection.commit()
    connection.close()
    return folder


@pytest.mark.parametrize("version", range(1, len(schema.MIGRATIONS) + 1))
def test_each_version_is_brought_to_this_one_with_its_jobs(tmp_path, version):
    database = SqliteDatabase(database_of_version(tmp_path / "jobs", version))
    jobs = Store(database, "here")
    assert jobs.recover() == 1
    assert (jobs.claim({}, {}, False).id, jobs.get("old").seed) == ("old", 7)
    add(jobs, "bob", 0, megapixels=1.5)
    assert database.execute("SELECT value FROM meta WHERE name = 'version'") == [{"value": str(len(schema.MIGRATIONS))}]
    fresh = SqliteDatabase(None)
    for table in ("jobs", "idempotency", "used", "workers"):
        statement = f"SELECT name, type FROM pragma_table_info('{table}') ORDER BY name"
        assert database.execute(statement) == fresh.execute(statement)


def test_a_migration_that_ends_at_any_statement_is_made_anew(tmp_path, monkeypatch):
    """kill -9 leaves what a transaction without COMMIT leaves."""
    execute, ended = SqliteDatabase.execute, 0
    for last in range(1, 100):
        folder, count = database_of_version(tmp_path / str(last), 1), 0

        def ending(self, statement, values=(), last=last):
            nonlocal count
            count += 1
            if count == last:
                raise StoreFailed("it ends here")
            return execute(self, statement, values)

        with monkeypatch.context() as patch:
            patch.setattr(SqliteDatabase, "execute", ending)
            try:
                SqliteDatabase(folder).close()
                break
            except ConfigurationError:
                ended += 1
        database = SqliteDatabase(folder)
        assert Store(database, "here").recover() == 1
        database.close()
    assert ended > len(schema.MIGRATIONS)


def test_a_version_that_was_released_is_never_changed():
    """A change of the tables is a new version at the end of MIGRATIONS; its fingerprint is added here."""
    assert [fingerprint(migration) for migration in schema.MIGRATIONS] == FINGERPRINTS


def fingerprint(migration):
    return hashlib.sha256("\n".join(migration).encode()).hexdigest()[:16]


#: Of each version.
FINGERPRINTS = ["e725a138e8324c31", "ffbaa548077a9925", "3e37d1aaa2942f17", "d2d1663672c8b66c", "8fe3e33c71c58160"]


def test_a_newer_version_is_refused(tmp_path):
    folder = database_of_version(tmp_path / "jobs", 1)
    connection = sqlite3.connect(folder / "jobs.sqlite3")
    connection.execute("UPDATE meta SET value = '99' WHERE name = 'version'")
    connection.commit()
    connection.close()
    with pytest.raises(ConfigurationError, match="version 99"):
        SqliteDatabase(folder)
