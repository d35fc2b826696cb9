import threading

import pytest
import torch

from imagegen.model.caches import PromptCache


def embeddings(value: float = 0.0) -> torch.Tensor:
    return torch.full((1, 10, 25), float(value))  # 1,000 bytes


def test_what_was_kept_comes_back_and_is_nobody_elses_to_change():
    cache, made = PromptCache(10_000), embeddings(1)
    assert cache.get("a") is None
    cache.put("a", made)
    made.zero_()
    assert torch.equal(cache.get("a"), embeddings(1))


def test_the_one_asked_for_longest_ago_makes_room():
    cache = PromptCache(3_000)
    for prompt in "abc":
        cache.put(prompt, embeddings())
    assert cache.get("a") is not None
    cache.put("d", embeddings())
    assert [prompt for prompt in "abcd" if cache.get(prompt) is not None] == ["a", "c", "d"]
    assert cache.size == (3, 3_000)
    cache.put("d", embeddings(4))  # the same prompt again takes no more room
    assert cache.size == (3, 3_000)
    assert torch.equal(cache.get("d"), embeddings(4))


@pytest.mark.parametrize("limit", [0, 999])
def test_what_is_larger_than_the_cache_is_not_kept(limit):
    cache = PromptCache(limit)
    cache.put("a", embeddings())
    assert cache.get("a") is None
    assert cache.size == (0, 0)


def test_threads_do_not_break_the_count():
    cache = PromptCache(5_000)

    def work(seed: int) -> None:
        for i in range(300):
            prompt = str((i * 7 + seed) % 11)
            if (kept := cache.get(prompt)) is not None:
                assert kept[0, 0, 0] == int(prompt)
            cache.put(prompt, embeddings(int(prompt)))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cache.size == (5, 5_000)
