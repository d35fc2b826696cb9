"""The store of jobs: turns of owners, places, and folders that cannot be used."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
import subprocess
import time

import pytest

from imagegen.errors import ConfigurationError, IdempotencyKeyReuse, LimitExceeded, Overloaded, StoreFailed
from imagegen.jobs import store
from imagegen.jobs.archive import Archive
from imagegen.jobs.database import SqliteDatabase
from imagegen.jobs.deliveries import Deliveries
from imagegen.jobs.files import FolderFiles, input_name
from imagegen.jobs.rows import NewJob, Room
from imagegen.jobs.store import Store
from tests.support import settings

ROOM = Room(1000, 750, 1)


@pytest.fixture
def jobs():
    return Store(SqliteDatabase(None), "here")


def add(jobs, owner, number, room=ROOM, key=None, **more):
    return jobs.add(NewJob(f"{owner}{number}", owner, seed=0, mode="generate", **more), room, key)[0]


def claims(jobs, count, newcomers=False):
    """The ids of the next jobs, each of which ends before the next begins."""
    turns, ids = {}, []
    for turn in range(count):
        row = jobs.claim({}, turns, newcomers)
        turns[row.owner] = turn
        ids.append(row.id)
        jobs.finish(row.id, "succeeded")
    return ids


def test_owners_take_turns_and_each_ones_jobs_keep_their_order(jobs):
    for i in range(5):
        add(jobs, "alice", i)
    for i in range(2):
        add(jobs, "bob", i)
    assert claims(jobs, 7) == ["alice0", "bob0", "alice1", "bob1", "alice2", "alice3", "alice4"]
    assert jobs.claim({}, {}, False) is None


def test_one_callers_hundred_jobs_keep_another_one_waiting_for_one(jobs):
    for i in range(100):
        add(jobs, "alice", i)
    row = jobs.claim({}, {}, False)
    add(jobs, "bob", 0)
    assert jobs.claim({"alice": 1}, {"alice": 0}, False).id == "bob0"
    assert row.id == "alice0"


def test_the_highest_priority_goes_first(jobs):
    add(jobs, "alice", 0)
    add(jobs, "bob", 0, priority=5)
    add(jobs, "bob", 1, priority=5)
    assert claims(jobs, 3) == ["bob0", "bob1", "alice0"]


def test_a_newcomer_is_an_owner_without_a_running_job(jobs):
    add(jobs, "alice", 0)
    assert jobs.claim({"alice": 1}, {}, True) is None
    add(jobs, "bob", 0)
    assert jobs.claim({"alice": 1}, {}, True).id == "bob0"


def test_a_place_is_never_less_than_what_comes_before(jobs):
    rows = [add(jobs, owner, i) for i in range(3) for owner in ("alice", "bob", "carol")]
    order = claims(jobs, 0)
    places = {row.id: jobs.place(row) for row in rows}
    order = claims(jobs, 9)
    assert all(order.index(job) <= place <= order.index(job) + 2 for job, place in places.items())


def test_how_many_may_wait(jobs):
    room = Room(3, 2, 7)
    add(jobs, "alice", 0, room)
    add(jobs, "alice", 1, room)
    with pytest.raises(LimitExceeded, match="this caller has 2 jobs waiting") as refused:
        add(jobs, "alice", 2, room)
    assert (refused.value.field, refused.value.retry_after) == ("jobs_waiting", 7)
    add(jobs, "bob", 0, room)
    with pytest.raises(Overloaded, match="3 jobs wait already"):
        add(jobs, "carol", 0, room)


def test_an_idempotency_key_is_its_owners_and_is_kept_for_a_day(jobs, monkeypatch):
    first = add(jobs, "alice", 0, key=("k", "body"))
    assert add(jobs, "alice", 1, key=("k", "body")).id == first.id
    with pytest.raises(IdempotencyKeyReuse):
        add(jobs, "alice", 2, key=("k", "another"))
    assert add(jobs, "bob", 0, key=("k", "another")).id == "bob0"
    # A full queue does not keep anyone from what is there already.
    assert add(jobs, "alice", 3, Room(1, 1, 1), key=("k", "body")).id == first.id
    later = time.time() + store.KEY_SECONDS + 1
    monkeypatch.setattr(jobs._database, "now", lambda: later)
    assert add(jobs, "alice", 4, key=("k", "another")).id == "alice4"


def test_a_clock_that_is_set_back_keeps_no_webhook_and_no_job_of_a_dead_server(jobs, monkeypatch):
    add(jobs, "alice", 0, webhook_url="https://example.com/")
    add(jobs, "bob", 0)
    later, deliveries = time.time() + 3 * 86_400, Deliveries(jobs._database)
    with monkeypatch.context() as patch:
        patch.setattr(jobs._database, "now", lambda: later)
        assert jobs.beat() == set()
        assert {jobs.claim({}, {}, False).id for _ in range(2)} == {"alice0", "bob0"}
        jobs.finish("alice0", "succeeded")
        deliveries.note("alice0", "pending", "its host answered 500, and not 2xx", 60.0)
        assert deliveries.due(4, 4) == []
        assert jobs.recover(shared=True) == 0
    assert [row.id for row in deliveries.due(4, 4)] == ["alice0"]
    alive_for(monkeypatch, Store(jobs._database, "other"), 40)
    assert jobs.recover(shared=True) == 0  # it has not been able to say that it is alive itself
    other = Store(jobs._database, "another")
    alive_for(monkeypatch, other, 40)
    assert other.recover(shared=True) == 1


def alive_for(monkeypatch, jobs, seconds):
    """Its process says that it is alive every 5 seconds."""
    now = jobs._database.now()
    for after in range(0, seconds, 5):
        monkeypatch.setattr(jobs._database, "now", lambda at=now + after: at)
        jobs.beat()


def test_a_database_that_was_away_takes_no_running_job_from_a_server_that_lives(jobs, monkeypatch):
    here, there, dead = jobs, Store(jobs._database, "there"), Store(jobs._database, "dead")
    add(here, "alice", 0)
    add(here, "bob", 0)
    alive_for(monkeypatch, here, 60)
    for other in (there, dead):
        other.beat()
        assert other.claim({}, {}, False)
    assert here.recover(shared=True) == 0
    away = here.now() + 60  # nobody could say that it is alive
    started_now = Store(here._database, "new")
    monkeypatch.setattr(here._database, "now", lambda: away)
    for first in (here, started_now):
        first.beat()
        assert first.recover(shared=True) == 0
    for after in range(5, 35, 5):  # `there` is back, and `dead` is not
        monkeypatch.setattr(here._database, "now", lambda at=away + after: at)
        for each in (here, there, started_now):
            each.beat()
        assert here.recover(shared=True) == (after == 30)
    assert there.beat() == {"alice0"}


def test_a_job_ends_once(jobs):
    add(jobs, "alice", 0)
    assert jobs.finish("alice0", "cancelled")
    assert not jobs.finish("alice0", "succeeded")
    assert jobs.get("alice0").state == "cancelled"


# ---- Folders


def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path):
    (tmp_path / "jobs.sqlite3").write_bytes(b"something else" * 100)
    with pytest.raises(ConfigurationError, match="is no database, or damaged"):
        SqliteDatabase(tmp_path)
    assert (tmp_path / "jobs.sqlite3").read_bytes() == b"something else" * 100


def damaged(path, damage):
    """A folder of three hundred jobs, whose database has suffered."""
    database = SqliteDatabase(path)
    for i in range(300):
        add(Store(database, "here"), "alice", i, fields=json.dumps({"prompt": "x" * 500}))
    database.close()
    file = path / "jobs.sqlite3"
    data = bytearray(file.read_bytes())
    if damage == "header":
        data[:100] = b"?" * 100
    elif damage == "middle":
        data[len(data) // 4 :] = b"?" * (len(data) - len(data) // 4)
    elif damage == "cut":
        del data[len(data) // 2 :]
    file.write_bytes(data)
    if damage in ("version", "tables"):
        connection = sqlite3.connect(file)
        connection.execute("UPDATE meta SET value = 'x'" if damage == "version" else "DROP TABLE jobs")
        connection.commit()
        connection.close()
    return path


@pytest.mark.parametrize("damage", ["header", "middle", "cut", "version", "tables"])
def test_a_damaged_database_is_refused_at_the_start(tmp_path, damage):
    with pytest.raises(ConfigurationError, match="damaged"):
        Archive(settings(jobs_dir=damaged(tmp_path / "jobs", damage)))
    SqliteDatabase(tmp_path / "another").close()


def test_a_database_that_is_damaged_while_it_is_used_is_said_to_be(tmp_path):
    database = SqliteDatabase(tmp_path)
    database.execute("DROP TABLE jobs")
    with pytest.raises(StoreFailed, match="is damaged"):
        Store(database, "here").waiting()


def test_a_folder_that_cannot_be_is_refused(tmp_path):
    (tmp_path / "images").write_text("")
    with pytest.raises(ConfigurationError, match="IMAGEGEN_JOBS_DIR"):
        FolderFiles(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="IMAGEGEN_JOBS_DIR"):
        SqliteDatabase(tmp_path / "file")


def test_a_folder_belongs_to_one_process(tmp_path):
    first = SqliteDatabase(tmp_path)
    with pytest.raises(ConfigurationError, match="another process uses this folder"):
        SqliteDatabase(tmp_path)
    first.close()
    SqliteDatabase(tmp_path).close()


def test_nobody_else_can_read_what_is_kept(tmp_path):
    database, files = SqliteDatabase(tmp_path / "jobs"), FolderFiles(tmp_path / "jobs")
    add(Store(database, "here"), "alice", 0)
    files.write(input_name("ab", "images.0"), b"x")
    for path in (tmp_path / "jobs").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0 or path.parent != tmp_path, path
    assert stat.S_IMODE((tmp_path / "jobs").stat().st_mode) == 0o700


def test_a_full_database_refuses_and_keeps_what_it_has(tmp_path):
    database = SqliteDatabase(tmp_path)
    jobs = Store(database, "here")
    add(jobs, "alice", 0)
    (pages,) = database.execute("PRAGMA page_count")[0].values()
    database.execute(f"PRAGMA max_page_count = {pages}")

    def fill():
        for i in range(700):
            add(jobs, "bob", i, fields=json.dumps({"prompt": "x" * 4000}))

    with pytest.raises(StoreFailed, match="disk of the store of jobs is full") as refused:
        fill()
    assert refused.value.retry_after
    assert jobs.get("alice0").state == "queued"
    database.execute("PRAGMA max_page_count = 100000")
    assert add(jobs, "carol", 0).state == "queued"


@pytest.mark.slow  # needs root, for a file system of its own
def test_a_full_disk_and_one_that_cannot_be_written_to(tmp_path):
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path], check=True)
    try:
        database, files = SqliteDatabase(tmp_path / "jobs"), FolderFiles(tmp_path / "jobs")
        name = input_name("ab", "images.0")
        with pytest.raises(StoreFailed):
            files.write(name, b"x" * 2_000_000)
        assert files.inputs() == []  # no part of it is left
        files.write(name, b"x")
        database.close()
        subprocess.run(["mount", "-o", "remount,ro", tmp_path], check=True)
        with pytest.raises(ConfigurationError, match="IMAGEGEN_JOBS_DIR"):
            SqliteDatabase(tmp_path / "jobs")
        with pytest.raises(ConfigurationError, match="IMAGEGEN_JOBS_DIR"):
            FolderFiles(tmp_path / "jobs")
        assert files.read(name) == b"x"
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    files = FolderFiles(tmp_path)
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(StoreFailed):
        files.write(input_name("ab", "images.0"), b"x")
    assert files.inputs() == []


def test_what_need_not_outlive_a_power_cut_leaves_the_rest_durable(tmp_path):
    database = SqliteDatabase(tmp_path)
    full = database.execute("PRAGMA synchronous")
    with database.transaction(durable=False):
        pass
    with pytest.raises(StoreFailed), database.transaction(durable=False):
        database.execute("INSERT INTO nowhere VALUES (1)")
    assert database.execute("PRAGMA synchronous") == full == [{"synchronous": 2}]
    database.close()
