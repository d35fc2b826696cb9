"""PostgreSQL as the database of the jobs, for several servers that share them (IMAGEGEN_JOBS_DATABASE)."""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pg8000.dbapi

from imagegen.errors import ConfigurationError, StoreFailed
from imagegen.jobs.database import failed, migrate

#: One transaction at a time, of all servers, as SQLite has it: the number of an advisory lock.
_LOCK = 0x6B6C65696E
#: Seconds to connect, and for the answer to a statement.
_SECONDS = 10


class PostgresDatabase:
    """PostgreSQL; a connection that breaks is opened anew with the next statement.

    Args:
        url: postgresql://USER:PASSWORD@HOST:PORT/NAME; with ?sslmode=require, by TLS.

    Raises:
        ConfigurationError: the database cannot be reached, or is of a newer version.
    """

    serial = "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY"
    shared = True

    def __init__(self, url: str) -> None:
        wrong = ConfigurationError("IMAGEGEN_JOBS_DATABASE: must be postgresql://USER:PASSWORD@HOST:PORT/NAME")
        try:
            parts = urlsplit(url)
            port = parts.port or 5432
        except ValueError:  # its message may hold a part of the password
            raise wrong from None
        if parts.scheme not in ("postgresql", "postgres") or not parts.hostname or not parts.path.strip("/"):
            raise wrong
        secure = parse_qs(parts.query).get("sslmode", ["prefer"])[0] in ("require", "verify-ca", "verify-full")
        self._options: dict[str, Any] = {
            "user": unquote(parts.username or "postgres"),
            "password": unquote(parts.password) if parts.password else None,
            "host": parts.hostname,
            "port": port,
            "database": unquote(parts.path.strip("/")),
            "ssl_context": ssl.create_default_context() if secure else None,
            "timeout": _SECONDS,
            "application_name": "image-gen",
        }
        self._connection: Any = None
        try:
            migrate(self)
        except StoreFailed:
            raise ConfigurationError("IMAGEGEN_JOBS_DATABASE: cannot be used; the log says why") from None

    def execute(self, statement: str, values: Sequence[Any] = ()) -> list[dict[str, Any]]:
        """The rows of a statement.

        Raises:
            StoreFailed: the database cannot be reached, or could not do it.
        """
        try:
            if self._connection is None:
                self._connection = pg8000.dbapi.connect(**self._options)
                self._connection.autocommit = True
            cursor = self._connection.cursor()
            cursor.execute(statement.replace("?", "%s"), tuple(values))
            if cursor.description is None:
                return []
            names = [column[0] for column in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
        except pg8000.dbapi.DatabaseError as error:
            raise failed(error) from error
        except (pg8000.dbapi.Error, OSError) as error:  # the connection is lost
            self.close()
            raise failed(error) from error

    @contextmanager
    def transaction(self, durable: bool = True) -> Iterator[None]:
        """All statements of the block, or none.

        Raises:
            StoreFailed: as for `execute`.
        """
        self.execute("BEGIN")
        try:
            self.execute("SELECT pg_advisory_xact_lock(?)", (_LOCK,))
            yield
            self.execute("COMMIT")
        except BaseException:
            if self._connection is not None:
                with suppress(StoreFailed):
                    self.execute("ROLLBACK")
            raise

    def now(self) -> float:
        """Seconds since 1970, by the clock of the database's machine; those of the servers may differ."""
        return float(self.execute("SELECT EXTRACT(EPOCH FROM clock_timestamp()) AS now")[0]["now"])

    def close(self) -> None:
        """Closes the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(pg8000.dbapi.Error, OSError):
                connection.close()
