import csv
from pathlib import Path

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from mixc.errors import MixcError
from mixc.solve.surfaces import FAMILIES, MEMBERS, fit_surface, score
from mixc.solve.swarm import plan_swarm

SWARM = "shared/data/pile_swarm_1m"  # beside the repository or above it; not part of it
PILE = next((up / SWARM for up in Path(__file__).parents if (up / SWARM).exists()), None)
NATURAL = np.array([0.4, 0.3, 0.2, 0.1])
MIXES = plan_swarm(NATURAL, 48, seed=1)


def law(mixes, k=4):
    slopes = -np.random.default_rng(k).exponential(2.0, (k, 3))
    return 1 + np.exp(mixes @ slopes)


def rough(mixes):
    """Steps and kinks, which no log-linear law follows."""
    return np.c_[np.abs(mixes[:, 0] - 0.3) + 0.3 * np.sqrt(mixes[:, 1]), mixes[:, 2] > 0.2]


def test_scores():
    truth = np.array([[1.0, 5.0], [2.0, 5.0], [3.0, 5.0], [4.0, 5.0]])
    same = score(truth, truth)
    assert same.spearman[0] == same.r2[0] == 1
    assert np.isnan([same.spearman[1], same.r2[1]]).all()
    assert score(-truth, truth).spearman[0] == pytest.approx(-1)
    flat = score(np.full((4, 2), 2.5), truth)
    assert (flat.spearman[0], flat.r2[0]) == (0, 0)
    tied = score(np.array([[1.0], [1.0], [2.0], [2.0]]), truth[:, :1])
    assert tied.spearman[0] == pytest.approx(2 / 5**0.5)


def test_the_law_is_chosen_where_it_holds_and_left_where_it_does_not():
    simple = fit_surface(MIXES, law(MIXES))
    assert simple.chosen == ("log_linear",) * 3
    assert set(simple.scores) == set(FAMILIES)
    assert (simple.scores["log_linear"].spearman > 0.999).all()
    assert simple.smooth
    other = fit_surface(MIXES, rough(MIXES))
    assert "log_linear" not in other.chosen
    best = max(other.scores[name].r2[0] for name in FAMILIES)
    assert best > other.scores["log_linear"].r2[0] + 0.1


def test_an_ensemble_is_a_convex_mixture_and_no_worse_than_its_members():
    fitted = fit_surface(MIXES, rough(MIXES), family="ensemble")
    assert fitted.shares.sum(axis=0) == pytest.approx(1)
    assert (fitted.shares >= 0).all()
    best = np.max([fitted.scores[name].r2 for name in MEMBERS], axis=0)
    assert (fitted.scores["ensemble"].r2 > best - 0.05).all()


@pytest.mark.parametrize("family", MEMBERS)
def test_one_family_alone(family):
    fitted = fit_surface(MIXES, law(MIXES), family=family)
    assert fitted.chosen == (family,) * 3
    assert list(fitted.scores) == [family]
    assert fitted.smooth == (family != "boosting")
    assert fitted.predict(MIXES).shape == (48, 3)


def test_equal_mixes_are_left_out_together():
    # Were a copy of a run in the other folds, its noise would be predicted.
    mixes = np.repeat(MIXES[:16], 3, axis=0)
    noise = np.repeat(np.random.default_rng(0).normal(size=(16, 1)), 3, axis=0)
    fitted = fit_surface(mixes, noise, family="gaussian")
    assert fitted.scores["gaussian"].r2[0] < 0.3


def test_two_different_mixes_are_too_few():
    with pytest.raises(MixcError) as raised:
        fit_surface(MIXES[[0, 1, 0, 1]], np.arange(4.0)[:, None])
    assert raised.value.code == "MX051"


@settings(deadline=None, max_examples=4, phases=[Phase.generate])
@given(st.permutations(range(4)), st.sampled_from([law, rough]), st.integers(0, 3))
def test_neither_places_of_domains_nor_the_order_of_runs_matter(order, losses, seed):
    order = np.array(order)
    rows = np.random.default_rng(seed).permutation(len(MIXES))
    metrics = losses(MIXES)
    weights = np.full(metrics.shape[1], 1 / metrics.shape[1])
    cap = np.array([0.5, 0.6, 0.7, 0.8])
    plain = fit_surface(MIXES, metrics, seed=seed)
    moved = fit_surface(MIXES[rows][:, order], metrics[rows], seed=seed)
    assert moved.chosen == plain.chosen
    assert moved.predict(MIXES[:, order]) == pytest.approx(plain.predict(MIXES), abs=1e-6)
    for kl in (0.0, 0.1):
        found = plain.minimise(weights, natural=NATURAL, kl=kl, cap=cap, seed=seed)
        assert found.sum() == pytest.approx(1, abs=1e-9)
        assert (found <= cap + 1e-9).all()
        same = moved.minimise(weights, natural=NATURAL[order], kl=kl, cap=cap[order], seed=seed)
        assert same == pytest.approx(found[order], abs=1e-6)


def test_a_surface_of_steps_is_lowest_where_simulated_mixes_are():
    fitted = fit_surface(MIXES, law(MIXES), family="boosting")
    found = fitted.minimise(np.full(3, 1 / 3), natural=NATURAL)
    assert found.sum() == pytest.approx(1)
    values = fitted.predict(plan_swarm(NATURAL, 2000, seed=7)).mean(axis=1)
    assert fitted.predict(found[None]).mean() <= np.quantile(values, 0.02)


def test_any_function_of_metrics_can_be_lowered():
    fitted = fit_surface(MIXES, law(MIXES), family="log_linear")
    worst = fitted.minimise(lambda metrics: metrics.max(axis=1), natural=NATURAL)
    mean = fitted.minimise(lambda metrics: metrics.mean(axis=1), natural=NATURAL)
    exact = fitted.minimise(np.full(3, 1 / 3), natural=NATURAL)
    assert fitted.predict(worst[None]).max() <= fitted.predict(exact[None]).max() + 1e-6
    assert fitted.predict(mean[None]).mean() == pytest.approx(
        fitted.predict(exact[None]).mean(), abs=2e-3
    )


def test_without_trees_only_the_smooth_part_is_left():
    fitted = fit_surface(MIXES, rough(MIXES), family="ensemble")
    smooth = fitted.without_trees()
    assert smooth.smooth
    assert smooth.shares.sum(axis=0) == pytest.approx(1)
    trees = fit_surface(MIXES, rough(MIXES), family="boosting")
    assert trees.without_trees() is trees


def test_readings_are_the_smooth_part_and_its_members():
    losses = law(MIXES)[:, :2] + 0.3 * rough(MIXES)
    fitted = fit_surface(MIXES, losses, family="ensemble")
    smooth, *alone = fitted.readings()
    assert (smooth.predict(MIXES) == fitted.without_trees().predict(MIXES)).all()
    assert len(alone) == len(smooth.members) == 2
    for member, one in zip(smooth.members, alone, strict=True):
        assert (one.predict(MIXES) == member.predict(MIXES[:, fitted.order])).all()
    assert len(fit_surface(MIXES, losses, family="gaussian").readings()) == 1


def test_domains_that_the_natural_mix_lacks_get_nothing():
    natural = np.array([0.5, 0.5, 0.0, 0.0])
    fitted = fit_surface(MIXES, law(MIXES), family="log_linear")
    assert fitted.minimise(np.full(3, 1 / 3), natural=natural)[2:].tolist() == [0, 0]


# ---- 512 public runs on the Pile ----


def table(name):
    with (PILE / name).open(newline="") as file:
        header, *rows = csv.reader(file)
    return header[1:], np.array(rows, float)[:, 1:]


@pytest.fixture(scope="module")
def pile():
    if PILE is None:
        pytest.skip(f"the public swarm is not here: {SWARM}")
    _, ratios = table("ratios.csv")
    names, losses = table("metrics.csv")
    return ratios / ratios.sum(axis=1, keepdims=True), losses, names


def test_t15_ranks_of_512_public_runs(pile):
    ratios, losses, names = pile
    found = fit_surface(ratios, losses).scores["ensemble"].spearman
    web = next(i for i, name in enumerate(names) if "pile_cc" in name)
    assert found[web] >= 0.985
    assert found.mean() >= 0.98


def test_t15_an_eighth_of_the_runs_ranks_the_others(pile):
    ratios, losses, _ = pile
    fitted = fit_surface(ratios[:64], losses[:64])
    others = score(fitted.predict(ratios[64:]), losses[64:]).spearman
    assert others.mean() >= 0.96
