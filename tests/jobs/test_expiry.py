"""What is forgotten where there is too much: of those callers who have the most, so that none pushes out another's."""

from __future__ import annotations

import pytest

from imagegen.errors import LimitExceeded
from imagegen.jobs import expiry
from imagegen.jobs.deliveries import Deliveries
from imagegen.jobs.expiry import Expiry
from imagegen.jobs.rows import Room
from tests.jobs.test_store import add, jobs  # noqa: F401 - a fixture

HOUR = 3600.0


def test_a_caller_with_many_keys_forgets_its_own(jobs, monkeypatch):  # noqa: F811
    monkeypatch.setattr(expiry, "_MOST_KEYS", 10)
    for i in range(3):
        add(jobs, "alice", i, key=(f"k{i}", "body"))
    for i in range(30):
        add(jobs, "mallory", i, key=(f"k{i}", "body"))
    add(jobs, "bob", 0, key=("k0", "body"))
    Expiry(jobs._database).drop_expired(HOUR)
    assert [jobs.find("alice", f"k{i}", "body").id for i in range(3)] == ["alice0", "alice1", "alice2"]
    assert jobs.find("bob", "k0", "body").id == "bob0"
    left = [i for i in range(30) if jobs.find("mallory", f"k{i}", "body")]
    assert left == list(range(24, 30))  # the newest


def test_a_caller_with_many_expired_jobs_forgets_its_own(jobs, monkeypatch):  # noqa: F811
    monkeypatch.setattr(expiry, "_MOST_EXPIRED", 5)
    for owner, count in (("alice", 2), ("mallory", 20)):
        for i in range(count):
            add(jobs, owner, i)
            jobs.finish(f"{owner}{i}", "succeeded")
            Expiry(jobs._database).expire([f"{owner}{i}"])
    Expiry(jobs._database).drop_expired(HOUR)
    assert len(jobs.page("alice", 50, None)) == 2
    assert [row.id for row in jobs.page("mallory", 50, None)] == ["mallory19", "mallory18", "mallory17"]


def test_a_caller_with_many_bytes_makes_room(jobs):  # noqa: F811
    for owner, sizes in (("alice", [30, 30]), ("bob", [10]), ("mallory", [40] * 5)):
        for i, size in enumerate(sizes):
            add(jobs, owner, i)
            jobs.finish(f"{owner}{i}", "succeeded", size=size)
    make_room = Expiry(jobs._database).to_make_room
    assert [row.id for row in make_room(70, 100)] == ["mallory0", "mallory1"]
    assert [row.id for row in make_room(70, 1)] == ["mallory0"]
    assert [row.id for row in make_room(170, 100)] == ["mallory0", "mallory1", "mallory2", "mallory3", "alice0"]
    assert len(make_room(10_000, 100)) == 8
    assert make_room(10_000, 100, whole=True) == []


def test_callers_with_equal_shares_lose_no_more_jobs_than_are_needed(jobs, monkeypatch):  # noqa: F811
    for i in range(20):
        add(jobs, f"caller{i}-", 0)
        jobs.finish(f"caller{i}-0", "succeeded", size=1000)
    database, asked = jobs._database, []
    execute = database.execute
    monkeypatch.setattr(database, "execute", lambda text, values=(): asked.append(text) or execute(text, values))
    make_room = Expiry(database).to_make_room
    for missing, count in ((1, 1), (1000, 1), (1001, 2), (5500, 6), (20_000, 20)):
        assert len({row.owner for row in make_room(missing, 100)}) == count, missing
    asked.clear()
    assert len(make_room(20_000, 3)) == 3
    assert len(asked) == 4  # the owners' sums, and three owners' jobs


def test_a_callers_waiting_references_do_not_fill_the_store(jobs):  # noqa: F811
    room = Room(1000, 750, 7, bytes=100)
    add(jobs, "alice", 0, room, bytes=150)  # one job may always wait
    with pytest.raises(LimitExceeded, match="would have 151 bytes with this one, and 100 are allowed") as refused:
        add(jobs, "alice", 1, room, bytes=1)
    assert (refused.value.field, refused.value.retry_after) == ("jobs_waiting", 7)
    add(jobs, "bob", 0, room, bytes=50)
    add(jobs, "bob", 1, room, bytes=50)


def test_a_webhook_is_still_delivered_once_its_job_has_expired(jobs, monkeypatch):  # noqa: F811
    add(jobs, "alice", 0, webhook_url="https://example.com/", webhook_secret="x")
    jobs.finish("alice0", "succeeded", size=10)
    kept = Expiry(jobs._database)
    kept.expire(["alice0"])
    later = jobs.now() + 30 * 86_400
    monkeypatch.setattr(jobs._database, "now", lambda: later)
    kept.drop_expired(HOUR)
    due = Deliveries(jobs._database)
    assert [(row.id, row.state, row.webhook_secret) for row in due.due(4, 4)] == [("alice0", "expired", "x")]
    due.note("alice0", "delivered")
    kept.drop_expired(HOUR)
    assert jobs.get("alice0") is None


def test_what_is_asked_for_each_new_job_reads_no_ended_ones(jobs, monkeypatch):  # noqa: F811
    database, asked = jobs._database, []
    execute = database.execute
    monkeypatch.setattr(
        database, "execute", lambda text, values=(): asked.append((text, values)) or execute(text, values)
    )
    add(jobs, "alice", 0)
    plans = [execute(f"EXPLAIN QUERY PLAN {text}", values) for text, values in asked if text.startswith("SELECT")]
    details = [row["detail"] for plan in plans for row in plan if " jobs " in row["detail"]]
    assert len(details) >= 2
    allowed = ("INDEX jobs_waiting", "INDEX sqlite_autoindex_jobs_1 (id=?)")  # of those that wait, and of one id
    assert [detail for detail in details if not any(index in detail for index in allowed)] == []
