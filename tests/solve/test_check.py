"""The check of a mix against the simple ones, on runs whose losses are made up."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixc.solve.check import compare, judge, league, paired

DOMAINS = ("code", "prose", "web")
MIXES = {
    "solved": np.array([0.2, 0.5, 0.3]),
    "natural": np.array([0.6, 0.2, 0.2]),
    "uniform": np.full(3, 1 / 3),
}


@dataclass(frozen=True)
class Run:
    bits_per_byte: np.ndarray
    tokens: int = 100
    flops: float = 1e6


def runs(offsets, *, noise=0.0):
    """Losses of 2 bits, each mix's offset, and a part of the seed that all mixes share."""

    def run(name, seed):
        offset = offsets[name]
        own = noise * np.sin(37 * (seed + 1) * (2 + 3000 * offset))
        return Run(2 + 0.3 * np.sin(seed) + offset + own + np.array([0.0, 0.1, 0.2]))

    return run


def check(offsets, seeds=(0, 1, 2), **options):
    return compare(MIXES, DOMAINS, seeds, runs(offsets, **options))


def test_a_mix_that_is_better_with_every_seed_is_better_though_seeds_differ_by_more():
    found = check({"solved": -0.01, "natural": 0.05, "uniform": 0.0}, noise=0.001)
    verdict = judge(found, "solved", ["natural", "uniform"])
    assert (verdict.outcome, verdict.as_good) == ("better", ())
    assert "better than natural and uniform" in verdict.text
    between = found.mean("solved").std()
    assert between > 10 * 0.01


def test_a_simple_mix_that_is_as_good_is_named_and_preferred():
    found = check({"solved": 0.0, "natural": 0.05, "uniform": 0.0005}, noise=0.003)
    verdict = judge(found, "solved", ["natural", "uniform"])
    assert (verdict.outcome, verdict.as_good) == ("tie", ("uniform",))
    assert "prefer uniform" in verdict.text


def test_a_simple_mix_that_is_better_is_said_to_be():
    found = check({"solved": 0.1, "natural": 0.05, "uniform": 0.0}, noise=0.001)
    verdict = judge(found, "solved", ["natural", "uniform"])
    assert (verdict.outcome, verdict.as_good) == ("worse", ("uniform", "natural"))


def test_one_seed_proves_nothing():
    found = check({"solved": -1.0, "natural": 0.05, "uniform": 0.0}, seeds=(5,))
    verdict = judge(found, "solved", ["natural", "uniform"])
    assert verdict.outcome == "tie"
    assert "one seed cannot tell" in verdict.text


def test_the_league_is_in_order_and_counts_what_it_cost():
    found = check({"solved": 0.0, "natural": 0.05, "uniform": 0.02})
    table = league(found)
    assert list(table["mixes"]) == ["solved", "uniform", "natural"]
    assert (table["runs"], table["tokens"], table["flops"]) == (9, 900, 9e6)
    best, last = table["mixes"]["solved"], table["mixes"]["natural"]
    assert (best["over_best"], best["low"], best["high"]) == (0, 0, 0)
    assert last["over_best"] == pytest.approx(0.05)
    assert last["worst_domain"] == "web"
    assert last["worst"] == pytest.approx(last["mean"] + 0.1)
    assert last["weights"] == dict(zip(DOMAINS, MIXES["natural"], strict=True))


def test_a_domain_that_holds_nothing_out_counts_for_nobody():
    def run(name, seed):
        return Run(np.array([1.0, np.nan, 3.0]))

    table = league(compare(MIXES, DOMAINS, (0,), run))
    assert table["mixes"]["solved"]["mean"] == 2
    assert table["mixes"]["solved"]["bits_per_byte"]["prose"] is None
    assert table["mixes"]["natural"]["high"] == 0  # the same to the bit


def test_the_interval_is_students():
    # scipy.stats.t.interval(0.95, 3, loc=2.5, scale=sqrt(5/3)/2)
    found = paired(np.array([1.0, 2.0, 3.0, 4.0]))
    assert (found.mean, found.low, found.high) == pytest.approx((2.5, 0.4457397, 4.5542603))


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=8), st.floats(-1, 1))
def test_intervals_move_with_their_differences(differences, shift):
    found, moved = paired(np.array(differences)), paired(np.array(differences) + shift)
    assert found.low <= found.mean <= found.high
    assert moved.low == pytest.approx(found.low + shift, abs=1e-9)
    assert moved.high == pytest.approx(found.high + shift, abs=1e-9)
