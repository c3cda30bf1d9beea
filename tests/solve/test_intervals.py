import numpy as np
import pytest

from mixc.solve.intervals import block_bootstrap


def coverage(series, truth):
    """In how many of the series [n, T] the interval of the mean holds the truth."""
    held = 0
    for seed, values in enumerate(series):
        low, high = block_bootstrap(values[:, None], seed=seed)
        held += low[0] <= truth <= high[0]
    return held / len(series)


def test_covers_the_mean_of_independent_steps_about_19_times_in_20():
    draws = np.random.default_rng(0).standard_normal((400, 400))
    # The blocks' own noise costs a little of the 95%; 400 trials are sure to about 1.2%.
    assert 0.90 < coverage(draws + 3, 3.0) < 0.98


def test_its_width_is_that_of_the_mean():
    values = np.random.default_rng(1).standard_normal((2500, 3)) * [1, 2, 4]
    low, high = block_bootstrap(values, seed=0)
    assert (high - low) / (2 * 1.96 / 50) == pytest.approx([1, 2, 4], rel=0.2)


def autocorrelated(seed, steps, rho):
    """An AR(1) series of unit variance."""
    noise = np.random.default_rng(seed).standard_normal(steps)
    values = [noise[0]]
    for shock in noise[1:]:
        values.append(rho * values[-1] + np.sqrt(1 - rho**2) * shock)
    return np.array(values)


def test_steps_that_are_alike_make_it_wider():
    width = {}
    for rho in (0.0, 0.8):
        series = np.stack([autocorrelated(seed, 2500, rho) for seed in range(8)], axis=1)
        low, high = block_bootstrap(series, seed=0)
        width[rho] = (high - low).mean()
    # The true ratio is sqrt((1 + rho) / (1 - rho)) = 3; blocks of 50 steps see most of it.
    assert 2.4 < width[0.8] / width[0.0] < 3.3


def test_alike_steps_are_covered_far_better_than_by_treating_them_as_independent():
    series = np.stack([autocorrelated(seed, 400, 0.7) for seed in range(200)])
    naive = 1.96 * series.std(axis=1) / 20
    assert (np.abs(series.mean(axis=1)) < naive).mean() < 0.75
    assert coverage(series, 0.0) > 0.82


def test_a_trajectory_that_stands_still_has_no_width():
    low, high = block_bootstrap(np.tile([0.2, 0.3, 0.5], (150, 1)), seed=0)
    assert low == pytest.approx([0.2, 0.3, 0.5], abs=1e-12)
    assert high == pytest.approx(low, abs=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 10])
def test_short_trajectories_stay_in_their_range(steps):
    values = np.random.default_rng(steps).random((steps, 2))
    low, high = block_bootstrap(values, seed=0)
    assert (low >= values.min(axis=0) - 1e-12).all()
    assert (high <= values.max(axis=0) + 1e-12).all()
    assert (low <= high).all()


def test_every_step_counts_the_same():
    # Circular blocks: without them the first and last steps would be drawn less often.
    values = np.zeros((100, 2))
    values[0, 0] = values[50, 1] = 1.0
    low, high = block_bootstrap(values, seed=0)
    assert high[0] == pytest.approx(high[1], abs=0.011)
    assert low.tolist() == [0, 0]


def test_follows_from_the_seed():
    values = np.random.default_rng(0).random((100, 2))
    first, again, other = (block_bootstrap(values, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
