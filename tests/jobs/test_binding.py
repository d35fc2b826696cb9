"""Servers that share a database share one folder of files too; another one is refused at the start."""

from __future__ import annotations

import pytest

from imagegen.errors import ConfigurationError
from imagegen.jobs import binding
from imagegen.jobs.binding import bind
from imagegen.jobs.database import SqliteDatabase
from imagegen.server.main import create_app
from tests.support import settings


@pytest.fixture
def database():
    """One that servers share, as far as the statements go."""
    opened = SqliteDatabase(None)
    opened.shared = True
    return opened


def folder(path):
    path.mkdir()
    return path


def test_the_second_server_with_the_same_folder_is_taken_and_one_with_another_is_not(database, tmp_path):
    first, other = folder(tmp_path / "first"), folder(tmp_path / "other")
    for _ in range(2):
        bind(database, first)
    with pytest.raises(ConfigurationError, match="is not the folder of the jobs in IMAGEGEN_JOBS_DATABASE.*missing"):
        bind(database, other)
    assert list(other.iterdir()) == []
    bind(database, first)


def test_a_folder_belongs_to_one_database(database, tmp_path):
    bind(database, tmp_path)
    another = SqliteDatabase(None)
    another.shared = True
    with pytest.raises(ConfigurationError, match="has another identity"):
        bind(another, tmp_path)


def test_a_copy_of_the_folder_is_the_folder(database, tmp_path):
    first, copy = folder(tmp_path / "first"), folder(tmp_path / "copy")
    bind(database, first)
    (copy / "store-id").write_bytes((first / "store-id").read_bytes())
    bind(database, copy)


@pytest.mark.parametrize("left", ["nothing", "an empty file", "the identity"])
def test_a_start_that_was_killed_halfway_refuses_no_later_one(database, tmp_path, left, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(binding, "private", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            bind(database, tmp_path)
    if left != "nothing":
        (identity,) = database.execute("SELECT value FROM meta WHERE name = 'identity'")
        (tmp_path / "store-id").write_text(identity["value"] if left == "the identity" else "")
    bind(database, tmp_path)
    bind(database, tmp_path)


def test_a_folder_of_one_server_is_not_shared_and_a_shared_one_is_not_one_servers(database, tmp_path):
    own, shared = tmp_path / "own", folder(tmp_path / "shared")
    SqliteDatabase(own).close()
    with pytest.raises(ConfigurationError, match=r"holds jobs\.sqlite3, the jobs of a server without"):
        bind(database, own)
    bind(database, shared)
    held = sorted(shared.iterdir())
    with pytest.raises(ConfigurationError, match="belongs to servers with an IMAGEGEN_JOBS_DATABASE"):
        create_app(settings(jobs_dir=shared))
    assert sorted(shared.iterdir()) == held  # and so
    bind(database, shared)  # the next start of the servers that share it is taken
    create_app(settings(jobs_dir=own))
