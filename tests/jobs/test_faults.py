"""What must not lose a job, nor tell a secret: a store that fails while it is needed, and another server's doing."""

import asyncio
from types import SimpleNamespace

import pytest

from imagegen.errors import ConfigurationError, InvalidInput, StoreFailed
from imagegen.jobs import runner as runner_module
from imagegen.jobs.bfl import secret_of
from imagegen.jobs.events import Signal
from imagegen.jobs.limits import KeyLimits, Reserved
from imagegen.jobs.postgres import PostgresDatabase
from imagegen.jobs.runner import Runner

ANSWER = SimpleNamespace(width=64, height=64, seeds=[1])
ROW = SimpleNamespace(id="a" * 32, owner="key-1", starts=1)


class Archive:
    """Fails as often as it is told, and keeps what was stored and ended."""

    outlives = shared = False

    def __init__(self, failures=0):
        self.failures, self.saved, self.ended = failures, [], []

    def _fail(self):
        if self.failures:
            self.failures -= 1
            raise StoreFailed("no space left")

    async def save(self, row, answer, events):
        self._fail()
        self.saved.append(row.id)

    async def make_room(self):
        self._fail()

    async def end(self, row, state, **_):
        self.ended.append(state)

    async def request_of(self, row):
        self._fail()
        return row.id


def runner(archive):
    made = Runner(archive, SimpleNamespace(fatal=None), Signal())
    made.logs[ROW.id] = SimpleNamespace(to_json=lambda: "[]")
    return made


def test_an_image_is_stored_once_the_store_works_again(monkeypatch):
    monkeypatch.setattr(runner_module, "_PAUSE", 0.001)
    archive = Archive(failures=4)  # two tries to store it, and two to make room for it
    asyncio.run(runner(archive)._save(ROW, SimpleNamespace()))
    assert archive.saved == [ROW.id]


@pytest.mark.parametrize("failures", [0, 1, 2, 3])
def test_references_that_cannot_be_read_for_a_moment_are_read_again(monkeypatch, failures):
    monkeypatch.setattr(runner_module, "_READ_AGAIN", (0.001, 0.001))
    reading = runner(Archive(failures))._request_of(ROW)
    if failures < 3:
        assert asyncio.run(reading) == ROW.id
    else:
        with pytest.raises(StoreFailed):
            asyncio.run(reading)


def test_an_image_is_answered_where_its_megapixels_cannot_be_counted():
    class Uncounted(Archive):
        store = SimpleNamespace(use=None, now=None)

        async def rows(self, statement, *_):
            self._fail()

    async def counted(failures):
        limits = KeyLimits(Uncounted(failures), None, None)
        limits.reserve = lambda *_: asyncio.sleep(0, Reserved(1.0, 0))
        return await limits.counted("alice", None, asyncio.sleep(0, ANSWER))

    for failures in (0, 1):
        assert asyncio.run(counted(failures)) is ANSWER


@pytest.mark.parametrize("rounds", range(12))
def test_whoever_leaves_whenever_has_no_megapixels_counted_that_were_not_made(rounds):
    counts = []

    class Counting(Archive):
        store = SimpleNamespace(use=lambda name, limit, day, change, most: counts.append(change))

        async def rows(self, statement, *arguments):
            """In a thread, which ends what it has begun."""
            await asyncio.get_running_loop().run_in_executor(None, statement, *arguments)

    class Limits(KeyLimits):
        async def reserve(self, name, request):
            await self._archive.rows(self._archive.store.use, name, "", 0, 1.0, None)
            return Reserved(1.0, 0)

    async def leave():
        limits, work = Limits(Counting(), None, None), asyncio.sleep(60, ANSWER)
        task = asyncio.create_task(limits.counted("alice", None, work))
        for _ in range(rounds % 6):
            await asyncio.sleep(0)
        task.cancel()
        if rounds > 5:  # DELETE, and then the client leaves too
            await asyncio.sleep(0)
            task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        work.close()  # where not even its limits had begun
        while limits.settling:
            await asyncio.sleep(0.001)

    asyncio.run(leave())
    assert sum(counts) == 0


@pytest.mark.parametrize("fails", ["nothing", "the claim", "putting it back"])
def test_a_job_that_is_claimed_as_the_server_ends_waits_again_and_the_server_ends(fails):
    back = []

    def claim(*_):
        if fails == "the claim":
            raise StoreFailed("no connection")
        return ROW

    def put_back(job, begun):
        if fails == "putting it back":
            raise StoreFailed("no connection")
        back.append((job, begun))

    class Claiming(Archive):
        store = SimpleNamespace(claim=claim, put_back=put_back)

        async def rows(self, statement, *arguments):
            return await asyncio.get_running_loop().run_in_executor(None, lambda: statement(*arguments))

    async def end():
        ending = Runner(Claiming(), SimpleNamespace(runner=SimpleNamespace(jobs_at_once=1)), Signal())
        ending._loaded = True
        claiming = asyncio.create_task(ending._next())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        claiming.cancel()
        await asyncio.gather(claiming, return_exceptions=True)
        assert claiming.cancelled()

    asyncio.run(end())
    assert back == [(ROW.id, False)] * (fails == "nothing")


@pytest.mark.parametrize(("taken_over", "ended"), [(True, []), (False, ["cancelled"])])
def test_a_job_that_another_server_has_taken_over_is_not_ended_by_this_one(taken_over, ended):
    async def cancelled():
        archive = Archive()
        mine = runner(archive)
        task = mine._tasks[ROW.id] = asyncio.create_task(asyncio.sleep(60))
        running = asyncio.create_task(mine._run(ROW, task))
        await asyncio.sleep(0)
        assert mine.cancel(ROW.id)
        if taken_over:
            mine._gone.add(ROW.id)
        await running
        return archive.ended

    assert asyncio.run(cancelled()) == ended


def test_an_address_that_is_none_is_an_error_without_a_part_of_its_password():
    with pytest.raises(ConfigurationError, match="must be postgresql://USER:PASSWORD@HOST:PORT/NAME") as caught:
        PostgresDatabase("postgresql://u:se/cret@host/db")
    assert "cret" not in str(caught.value)
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("secret", ["\ud800", 3, False, "x" * 10_000])
def test_a_secret_that_is_none_is_an_error_of_its_field(secret):
    with pytest.raises(InvalidInput, match="webhook_secret: must be a text"):
        secret_of(secret)


@pytest.mark.parametrize("rounds", range(4))
def test_who_is_cancelled_just_as_it_is_woken_is_cancelled(rounds):
    """asyncio.wait_for, until Python 3.12, lost such a cancellation, and its task went on for ever."""

    async def wake():
        signal = Signal()
        waiting = asyncio.create_task(signal.wait(60))
        await asyncio.sleep(0.01)
        signal.fire()
        for _ in range(rounds):
            await asyncio.sleep(0)
        cancelled = waiting.cancel()  # False where it had ended
        await asyncio.wait({waiting})
        assert waiting.cancelled() == cancelled

    asyncio.run(wake())
