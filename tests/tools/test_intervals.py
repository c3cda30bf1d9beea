"""The tool that tells how often regression's intervals hold the best mix."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import intervals


@pytest.mark.parametrize("law", intervals.LAWS)
def test_the_best_mix_is_lower_than_any_near_it(law):
    truth = intervals.make_truth(intervals.LAWS[law], 5, seed=3)
    least = truth.losses(truth.best[None]).mean()
    lots = np.random.default_rng(0)
    far = lots.dirichlet(np.ones(5), 2000)
    near = truth.best + 0.01 * (far - truth.best)
    for mixes in (far, near):
        assert (truth.losses(mixes).mean(axis=1) >= least - 1e-9).all()
    assert truth.gain(truth.best) == pytest.approx(1)
    assert truth.gain(truth.natural) == pytest.approx(0)


def test_without_an_error_the_law_that_is_fitted_is_found():
    truth = intervals.make_truth(intervals.LAWS["log-linear"], 4, seed=1)
    found = intervals.solve(truth, 0.0, seed=1)
    assert truth.gain(found.weights) > 0.97
    assert (found.low <= found.weights).all() and (found.weights <= found.high).all()


def test_a_row_counts_the_intervals_that_hold_the_best(monkeypatch):
    truth = intervals.make_truth(intervals.LAWS["power"], 4, seed=0)
    low, high = truth.best - 0.1, truth.best + 0.1
    low[0] = truth.best[0] + 0.05
    found = intervals.Solution(truth.best, low, high)
    monkeypatch.setattr(intervals, "solve", lambda *_: found)
    row = intervals.measure("power", 4, 0.1, 1)
    assert row[:7] == ["power", "4", "0.1", "0.75", "0.16", "0.00", "1.00"]
