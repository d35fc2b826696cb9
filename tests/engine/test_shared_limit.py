"""What callers share: nobody has more than a share, and nobody waits for a share that is not theirs."""

import asyncio

import pytest

from imagegen.engine.shared_limit import SharedLimit
from imagegen.telemetry.metrics import Metrics


@pytest.fixture
def metrics():
    return Metrics()


def test_one_caller_has_its_share_and_the_others_have_the_rest(metrics):
    limit = SharedLimit("places", 4, 3, metrics)
    assert [limit.try_take("a", 1) for _ in range(4)] == [None, None, None, "share"]
    assert limit.try_take("b", 1) is None
    assert limit.try_take("b", 1) == "total"
    limit.give_back("a", 1)
    assert limit.try_take("b", 1) is None
    assert limit.taken == 4


def test_the_only_caller_may_have_everything(metrics):
    limit = SharedLimit("places", 4, 3, metrics)
    assert [limit.try_take(None, 1) for _ in range(5)] == [None] * 4 + ["total"]


def test_refusals_and_what_is_in_use_are_counted(metrics):
    limit = SharedLimit("places", 4, 3, metrics)
    for _ in range(5):
        limit.try_take("a", 1)
    text = metrics.text().decode()
    assert 'imagegen_refused_total{because="share",limit="places"} 2.0' in text
    assert 'imagegen_in_use{limit="places"} 3.0' in text


def test_a_caller_over_its_share_does_not_keep_another_waiting(metrics):
    async def take():
        limit = SharedLimit("decoders", 4, 2, metrics)
        order = []

        async def work(caller, name, done):
            await limit.take(caller, 1)
            order.append(name)
            await done.wait()
            limit.give_back(caller, 1)

        first, rest = asyncio.Event(), asyncio.Event()
        greedy = [asyncio.create_task(work("a", f"a{i}", first if i < 2 else rest)) for i in range(6)]
        await asyncio.sleep(0)
        other = asyncio.create_task(work("b", "b", rest))
        await asyncio.sleep(0)
        assert order == ["a0", "a1", "b"]
        first.set()
        rest.set()
        await asyncio.gather(*greedy, other)
        assert order[3:] == ["a2", "a3", "a4", "a5"]
        assert limit.taken == 0

    asyncio.run(take())


def test_a_large_amount_is_not_passed_by_small_ones_for_ever(metrics):
    async def take():
        limit = SharedLimit("megapixels", 10, 10, metrics)
        await limit.take("a", 6)
        large = asyncio.create_task(limit.take("b", 8))
        await asyncio.sleep(0)
        small = asyncio.create_task(limit.take("c", 3))
        await asyncio.sleep(0)
        assert not small.done()
        limit.give_back("a", 6)
        await large
        await asyncio.sleep(0)
        assert not small.done()
        limit.give_back("b", 8)
        await small

    asyncio.run(take())


def test_a_cancelled_wait_takes_nothing_and_lets_the_next_one_in(metrics):
    async def take():
        limit = SharedLimit("megapixels", 10, 10, metrics)
        await limit.take("a", 6)
        large, small = asyncio.create_task(limit.take("b", 8)), asyncio.create_task(limit.take("c", 3))
        await asyncio.sleep(0)
        large.cancel()
        await small
        assert limit.taken == 9
        # Cancelled in the moment in which it was given
        waiting = asyncio.create_task(limit.take("b", 5))
        await asyncio.sleep(0)
        limit.give_back("a", 6)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert limit.taken == 3

    asyncio.run(take())


@pytest.mark.parametrize("leaves_first", ["holder", "waiting"])
def test_who_leaves_while_it_waits_keeps_nothing_and_nobody_waits_for_it(metrics, leaves_first):
    """A job has something for one reference and waits for it with another, and both are cancelled at once."""

    async def leave():
        limit, caught = SharedLimit("downloads", 2, 1, metrics), []

        async def hold():
            await limit.take("a", 1)
            try:
                await asyncio.sleep(60)
            finally:
                limit.give_back("a", 1)

        holder = asyncio.create_task(hold())
        await asyncio.sleep(0)
        waiting, next_one = asyncio.create_task(hold()), asyncio.create_task(hold())
        await asyncio.sleep(0)
        for task in (holder, waiting) if leaves_first == "holder" else (waiting, holder):
            task.cancel()
        caught += await asyncio.gather(holder, waiting, return_exceptions=True)
        await asyncio.sleep(0)
        assert limit.taken == 1  # by the next one
        next_one.cancel()
        caught += await asyncio.gather(next_one, return_exceptions=True)
        assert {type(error) for error in caught} == {asyncio.CancelledError}
        assert limit.taken == 0
        await asyncio.wait_for(limit.take("a", 1), 1)

    asyncio.run(leave())
