"""A drift that is known is found, and undone; one that cannot be known is left alone."""

import numpy as np
import pytest

from imagegen.editing.changes import find_changes
from imagegen.editing.drift import estimate
from tests.editing.photos import drifted, photo

SIDE = 384


def edited(seed):
    """A photo; the same with a disc of another colour; and where that is."""
    random = np.random.default_rng(seed)
    before = np.asarray(photo(SIDE, SIDE, seed))
    rows, columns = np.mgrid[:SIDE, :SIDE]
    x, y, radius = *random.uniform(100, 284, 2), random.uniform(30, 80)
    inside = (columns - x) ** 2 + (rows - y) ** 2 < radius**2
    after = before.copy()
    after[inside] = random.integers(0, 256, 3)
    return before, after, inside


@pytest.mark.parametrize("seed", range(12))
def test_a_drift_is_found_to_half_a_pixel_and_its_tint_undone(seed):
    before, after, inside = edited(seed)
    generated, warp = drifted(after, seed)
    drift = estimate(before, generated, ~inside)
    corners = np.array([[x, y] for x in (0, SIDE - 1) for y in (0, SIDE - 1)])
    errors = (drift.warp[:, :2] - warp[:, :2]) @ corners.T + (drift.warp[:, 2:] - warp[:, 2:])
    assert np.abs(errors).mean() < 0.5
    # Without the edge, which the movement has brought in, and against grain that resampling smooths.
    kept = ~inside
    kept[:16] = kept[-16:] = kept[:, :16] = kept[:, -16:] = False
    left = drift.undo(generated).astype(float)[kept] - before[kept]
    assert np.abs(left.mean(axis=0)).max() < 2


def test_what_has_not_drifted_is_left_as_it_is():
    before, after, inside = edited(3)
    drift = estimate(before, after, ~inside)
    assert np.abs(drift.undo(after)[~inside].astype(int) - before[~inside]).mean() < 0.5


@pytest.mark.parametrize("what", ["flat", "other", "nothing kept"])
def test_a_movement_that_is_not_certain_is_not_undone(what):
    before = np.asarray(photo(128, 128, 1))
    other = np.asarray(photo(128, 128, 2))
    kept = np.ones((128, 128), bool)
    if what == "flat":
        before = other = np.full_like(before, 90)
    if what == "nothing kept":
        kept[:] = False
    drift = estimate(before, other, kept)
    assert drift.warp is None
    if what != "other":
        assert np.array_equal(drift.undo(other), other)


@pytest.mark.parametrize("seed", range(12))
def test_changes_are_told_from_drift(seed):
    before, after, inside = edited(seed)
    generated, _ = drifted(after, seed)
    changes = find_changes(before, generated)
    seen = np.abs(after.astype(int) - before).max(axis=-1) > 40  # what anybody would call a change
    assert (changes.alpha[~inside] == 0).mean() > 0.95
    assert (changes.alpha[inside & seen] < 128).mean() < 0.02


def test_nothing_changed_and_all_changed():
    before = np.asarray(photo(SIDE, SIDE, 1))
    assert not find_changes(before, drifted(before, 1)[0]).alpha[8:-8, 8:-8].any()
    assert find_changes(before, np.asarray(photo(SIDE, SIDE, 2))) is None
