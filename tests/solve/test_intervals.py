import numpy as np
import pytest

from mixc.solve.intervals import block_bootstrap, block_jackknife


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


# ---- weights that add up what steps measure ----

DRIFT = 0.01 * np.array([1, 0, -1]) * np.exp(-np.arange(200) / 80)[:, None]


def softmax_of_sums(signal):
    """The trajectory of exponentiated gradient, [T, K]."""
    raised = np.exp(np.cumsum(signal, axis=0))
    return raised / raised.sum(axis=1, keepdims=True)


def answer(signal):
    return softmax_of_sums(signal).mean(axis=0)


@pytest.mark.parametrize(("drift", "noise"), [(0.0, 0.03), (1.0, 0.03), (2.0, 0.01)])
def test_a_jackknife_covers_weights_that_add_up_noise(drift, noise):
    normals = np.random.default_rng(0).standard_normal((200, 200, 3))
    signals = drift * DRIFT + noise * normals
    spread = np.std([answer(signal) for signal in signals], axis=0)
    truth = answer(drift * DRIFT)
    low, high = np.array([block_jackknife(signal, answer) for signal in signals]).swapaxes(0, 1)
    assert (((low <= truth) & (truth <= high)).mean(axis=0) > 0.86).all()
    assert (high - low).mean(axis=0) == pytest.approx(2 * 2.36 * spread, rel=0.25)


def test_a_bootstrap_of_sums_is_far_too_narrow():
    normals = np.random.default_rng(0).standard_normal((60, 200, 3))
    resampled = [block_bootstrap(softmax_of_sums(0.03 * one), seed=0) for one in normals]
    low, high = np.array(resampled).swapaxes(0, 1)
    assert ((low <= 1 / 3) & (high >= 1 / 3)).mean() < 0.3


def test_a_jackknife_takes_a_trend_for_no_noise():
    low, high = block_jackknife(np.linspace(0, 1, 400)[:, None] * [[0.01, 0.0]], answer)
    assert (high / low < 1.02).all()


def test_a_jackknife_without_noise_or_beside_zeros_has_no_width():
    for steps in (1, 2, 3, 50):
        low, high = block_jackknife(np.ones((steps, 2)), answer)
        assert low == pytest.approx(high, abs=1e-12)
    low, high = block_jackknife(
        np.random.default_rng(0).standard_normal((50, 2)), lambda signal: np.array([1.0, 0.0])
    )
    assert low.tolist() == high.tolist() == [1.0, 0.0]


def test_a_jackknife_goes_with_the_order_of_domains():
    signal = np.random.default_rng(0).standard_normal((60, 3))
    plain, turned = block_jackknife(signal, answer), block_jackknife(signal[:, [2, 0, 1]], answer)
    for one, other in zip(plain, turned, strict=True):
        assert other == pytest.approx(one[[2, 0, 1]], abs=1e-12)
