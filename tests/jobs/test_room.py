"""IMAGEGEN_JOBS_MAX_MB: what new jobs may take of the store, and what expires for them."""

from __future__ import annotations

import asyncio
import secrets

import pytest

from imagegen.contract.requests import parse_job
from imagegen.errors import ImageGenError, LimitExceeded, Overloaded, PayloadTooLarge, StoreFailed
from imagegen.jobs.archive import Archive
from imagegen.jobs.rows import NewJob, Room
from tests.support import settings

ROOM = Room(1000, 1000, 7)


@pytest.fixture
def archive():
    """Has room for 1 MB."""
    made = Archive(settings(jobs_max_mb=1))
    yield made
    made.close()


async def add(archive, owner, size, room=ROOM):
    """A job with a reference of so many bytes."""
    request = parse_job({"prompt": "x", "images": ["A" * size]})
    return (await archive.add(NewJob(secrets.token_hex(16), owner, 1), request, room, None))[0]


async def ended(archive, owner, size):
    """A job whose images have so many bytes."""
    row = await add(archive, owner, 10)
    await archive.end(row, "succeeded", result="{}", size=size)
    return await archive.rows(archive.store.get, row.id)


async def states(archive, rows):
    return {(await archive.rows(archive.store.get, row.id)).state for row in rows}


async def is_counted_right(archive):
    return archive.bytes == await archive.rows(archive._expiry.bytes_kept) and archive._coming == 0


@pytest.mark.parametrize(
    ("size", "room", "error"),
    [
        (1_000_001, ROOM, PayloadTooLarge),  # can never have room
        (700_000, ROOM, StoreFailed),  # not even without what has ended: the other 400 KB wait
        (300_000, Room(1000, 1, 7), LimitExceeded),  # its caller's share is full
        (300_000, Room(1000, 1000, 7, 600_000), LimitExceeded),
        (300_000, Room(1, 1000, 7), Overloaded),
    ],
)
def test_a_job_that_is_refused_costs_nobody_an_ended_one(archive, size, room, error):
    async def refused():
        await add(archive, "mallory", 400_000)
        kept = [await ended(archive, "alice", 100_000) for _ in range(5)]
        with pytest.raises(error):
            await add(archive, "mallory", size, room)
        return await states(archive, kept), await is_counted_right(archive)

    assert asyncio.run(refused()) == ({"succeeded"}, True)


def test_a_job_that_is_accepted_costs_no_more_ended_ones_than_it_needs(archive):
    async def accepted():
        kept = [await ended(archive, "alice", 100_000) for _ in range(9)]
        await add(archive, "bob", 150_000)
        return [await states(archive, [row]) for row in kept], await is_counted_right(archive)

    assert asyncio.run(accepted()) == ([{"expired"}] + [{"succeeded"}] * 8, True)


def test_jobs_that_come_at_one_moment_have_no_more_room_together_than_one_after_the_other(archive):
    async def at_once():
        await ended(archive, "alice", 500_000)
        jobs = [add(archive, f"caller{i}", 400_000) for i in range(10)]
        came = await asyncio.gather(*jobs, return_exceptions=True)
        assert await is_counted_right(archive)
        return [type(one) for one in came if isinstance(one, ImageGenError)]

    assert asyncio.run(at_once()) == [StoreFailed] * 8
    assert archive.bytes <= archive.limit


def test_jobs_that_expire_or_are_deleted_twice_at_one_moment_are_counted_once(archive):
    async def twice():
        rows = [await ended(archive, "alice", 50_000) for _ in range(18)]
        archive.limit = 600_000
        await asyncio.gather(archive.make_room(), archive.make_room())
        assert await is_counted_right(archive)
        assert archive.bytes > 500_000  # no more than is needed
        await asyncio.gather(archive.forget(rows[-1]), archive.forget(rows[-1]), archive.forget(rows[0]))
        return await is_counted_right(archive)

    assert asyncio.run(twice())
