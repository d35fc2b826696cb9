"""Whose job is next on the GPU."""

import pytest

from imagegen.engine.fair_queue import OVERTAKEN, FairQueue


def put(queue, *items):
    for arrival, (caller, name) in enumerate(items):
        queue.put(caller, arrival, name)


def drain(queue, count):
    return [queue.get() for _ in range(count)]


def test_a_caller_s_items_come_in_the_order_of_their_arrival_not_of_their_readiness():
    queue = FairQueue()
    for arrival in (3, 1, 2):
        queue.put(None, arrival, arrival)
    assert drain(queue, 3) == [1, 2, 3]


def test_a_single_item_waits_for_at_most_one_of_each_other_caller():
    queue = FairQueue()
    put(queue, *(("a", f"a{i}") for i in range(10)), *(("c", f"c{i}") for i in range(10)))
    assert drain(queue, 4) == ["a0", "c0", "a1", "c1"]
    queue.put("b", 99, "b")
    assert "b" in drain(queue, 3)


def test_who_was_served_last_comes_behind_a_newcomer():
    queue = FairQueue()
    put(queue, ("a", "a0"))
    assert queue.get() == "a0"
    put(queue, ("a", "a1"), ("b", "b"))
    assert drain(queue, 2) == ["b", "a1"]


def test_one_who_always_comes_again_keeps_nobody_out():
    queue = FairQueue()
    put(queue, *(("a", f"a{i}") for i in range(5)))
    got = []
    for i in range(9):
        queue.put("b", 10 + i, f"b{i}")
        got.append(queue.get())
    assert [item for item in got if item.startswith("a")] == [f"a{i}" for i in range(5)]


def test_nothing_is_kept_of_callers_that_are_gone():
    queue = FairQueue()
    for i in range(1000):
        queue.put(f"caller {i}", i, i)
        assert queue.get() == i
    assert len(queue._last) + len(queue._items) + len(queue._turns) <= 2
    with pytest.raises(IndexError):
        queue.get()


def test_items_of_a_group_come_one_after_another():
    queue = FairQueue()
    for arrival, group in enumerate("abab"):
        queue.put(None, arrival, f"{group}{arrival}", group)
    assert drain(queue, 4) == ["a0", "a2", "b1", "b3"]


def test_no_item_is_overtaken_more_often_than_the_bound():
    queue = FairQueue()
    queue.put("x", 0, "x", "a")
    queue.put("y", 1, "y", "b")
    for number in range(20):
        queue.put(f"z{number}", 2 + number, f"z{number}", "a")
    served = drain(queue, 22)
    assert served.index("y") == 1 + OVERTAKEN
    assert sorted(served) == sorted(["x", "y", *(f"z{number}" for number in range(20))])


def test_who_overtakes_takes_no_turn_of_those_overtaken():
    queue = FairQueue()
    queue.put("x", 0, "x0", "a")
    queue.put("y", 1, "y0", "b")
    queue.put("x", 2, "x1", "a")
    assert drain(queue, 2) == ["x0", "x1"]
    queue.put("new", 3, "new", "c")
    assert drain(queue, 2) == ["y0", "new"]


def test_nothing_is_overtaken_where_nothing_is_gained():
    queue = FairQueue()
    for number, group in enumerate([None, "a", None, "a", None]):
        queue.put(None, number, number, group)
    assert [queue.get() for _ in range(5)] == [0, 1, 2, 3, 4]
    for number, group in enumerate(["a", "b", None, "a"]):
        queue.put(None, number, number, group)
    assert [queue.get() for _ in range(4)] == [0, 3, 1, 2]
