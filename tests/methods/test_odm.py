import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydantic import ValidationError

from mixc.methods.odm import (
    Options,
    bandit,
    compile_stages,
    exploration,
    gibbs,
    linear,
    new_records,
    policy,
    remember,
)
from mixc.proxy.train import Batch
from mixc.rng import Stream

# ---- the rules ----


def test_exploration_falls_from_uniform_as_the_root_of_time():
    assert [exploration(t, 22) == 1 / 22 for t in (0, 1, 67, 68, 69)] == [True] * 4 + [False]
    assert 22 * exploration(1000, 22) == pytest.approx(0.261, abs=5e-4)
    assert 22 * exploration(10_000, 22) == pytest.approx(0.0825, abs=5e-4)
    assert exploration(2000, 22) == pytest.approx(0.0084, abs=5e-5)
    assert exploration(5, 1) == 0.0


@given(
    st.integers(1, 8).flatmap(lambda n: arrays(float, n, elements=st.floats(0, 1e4))),
    st.integers(1, 10**6),
    st.sampled_from([gibbs, linear]),
)
def test_policies_lie_on_the_simplex_at_least_eps_and_follow_the_estimates(estimate, step, rule):
    estimate = estimate + 1e-3
    found = rule(estimate, step)
    assert found.sum() == pytest.approx(1, abs=1e-12)
    assert (found >= exploration(step, len(found)) * (1 - 1e-12)).all()
    assert (np.diff(found[np.argsort(estimate)]) >= -1e-12).all()
    order = np.arange(len(estimate))[::-1]
    assert rule(estimate[order], step) == pytest.approx(found[order], abs=1e-12)


def test_an_estimate_moves_where_its_domain_was_drawn():
    drawn = np.array([True, False])
    found = remember(np.array([2.0, 3.0]), np.array([4.0, 0.0]), drawn, 0.9)
    assert found == pytest.approx([0.9 * 2 + 0.1 * 4, 3.0])


# ---- T7: a bandit over domains whose losses do not move, 8 draws a step ----

LOSSES = np.linspace(1.2, 3.2, 22)


def simulate(rule, gain_of, steps, draws=8):
    """Policies of the last thousand steps."""
    lots = Stream(3, "bandit").uniforms(steps * draws).reshape(steps, draws)
    estimate, pi, kept = np.zeros(22), np.full(22, 1 / 22), []
    for step in range(1, steps + 1):
        drawn = np.zeros(22, bool)
        drawn[np.minimum(np.searchsorted(np.cumsum(pi), lots[step - 1]), 21)] = True
        estimate = remember(estimate, gain_of(pi), drawn, 0.9)
        pi = rule(estimate, step)
        kept.append(pi)
    return np.array(kept[-1000:])


def test_t7_the_papers_policy_flattens():
    ratios = []
    for steps in (1000, 10_000, 30_000):
        mean = simulate(gibbs, lambda pi: LOSSES / pi, steps).mean(axis=0)
        ratios.append(mean.max() / mean.min())
    assert ratios[0] > ratios[1] > ratios[2]
    assert ratios[2] == pytest.approx(1.09, abs=0.02)


def test_t7_the_released_codes_policy_is_proportional_to_perplexity():
    perplexity, steps = np.exp(LOSSES), 10_000
    last = simulate(linear, lambda _: perplexity, steps)[-1]
    eps = exploration(steps, 22)
    assert last == pytest.approx((1 - 22 * eps) * perplexity / perplexity.sum() + eps, rel=1e-3)
    assert 5.5 < last.max() / last.min() < np.exp(2.0)  # the ratio of perplexities, but for eps


# ---- the run: what a policy reads, and what an objective records ----


def play(options, losses, steps=20, rows=8):
    """Records of a run without a model: each domain's loss is fixed, rows follow the policy."""
    K = len(losses)
    records = new_records(steps, K)
    weights = policy(options, records, np.full(K, 1 / K))
    objective = bandit(options, records, weights)
    for step in range(steps):
        domain = np.repeat(np.arange(K), rows)
        objective(step, torch.tensor(losses).float()[domain, None], Batch(np.zeros((1, 1)), domain))
    return records


def test_t5_in_the_released_codes_way_a_learnt_domain_falls_to_eps():
    losses = np.array([0.01, 6.0, 6.0])
    last = play(Options(variant="official", warmup=0.2), losses, 100)["alpha"][-1]
    assert last[0] == pytest.approx(exploration(99, 3), abs=0.003)
    assert last[1] == pytest.approx(last[2])


def test_t3_noise_takes_the_largest_weight():
    losses = np.array([1.5, 2.0, np.log(64)])  # the last: nothing to learn
    for variant in ("paper", "official"):
        last = play(Options(variant=variant), losses, 100)["alpha"][-1]
        assert last.argmax() == 2
    assert last[2] > 0.6


def test_the_warm_up_is_on_the_initial_mix_and_its_last_step_begins_the_estimates():
    options = Options(variant="official", warmup=0.25)
    records = play(options, np.array([1.0, 2.0]))
    assert (records["alpha"][:5] == 0.5).all()
    assert not records["estimate"][:4].any()
    assert records["estimate"][4] == pytest.approx(0.1 * np.exp([1.0, 2.0]))
    assert (records["alpha"][5:, 1] > 0.5).all()
    assert records["reward"].tolist() == [[1.0, 2.0]] * 20


def test_a_rare_domains_first_reward_counts_as_if_it_were_explored():
    # 1 / pi of a warm-up on a natural mix has no bound; eps bounds it as in all later steps.
    records = new_records(3, 2)
    initial = np.array([1 - 1e-9, 1e-9])
    objective = bandit(Options(), records, policy(Options(), records, initial))
    objective(0, torch.ones(2, 1), Batch(np.zeros((2, 2)), np.array([0, 1])))
    assert records["estimate"][0] == pytest.approx([0.1, 0.1 / 0.5])


def test_a_step_reads_nothing_but_the_records():
    options = Options(variant="official")
    whole = play(options, np.array([1.0, 2.0, 0.5]))
    half = {name: np.where(np.arange(20)[:, None] < 9, v, 0) for name, v in whole.items()}
    weights = policy(options, half, np.full(3, 1 / 3))
    assert np.array_equal(weights(9), whole["alpha"][9])


# ---- the schedule ----


@given(st.integers(1, 60), st.integers(1, 12))
def test_stages_are_the_policys_means_and_their_mean_is_its_mean(steps, stages):
    weights = np.random.default_rng(steps).dirichlet(np.ones(3), steps)
    found = compile_stages(weights, stages)
    ends = [end for end, _ in found]
    assert len(found) == min(stages, steps)
    assert ends[-1] == 1.0
    assert ends == sorted(set(ends))
    parts = np.diff([0.0, *ends])
    mean = sum(part * one for part, (_, one) in zip(parts, found, strict=True))
    assert mean == pytest.approx(weights.mean(axis=0), abs=1e-12)


def test_options_are_checked():
    for bad in ({"memory": 1.0}, {"warmup": 1.0}, {"stages": 0}, {"variant": "exp3"}):
        with pytest.raises(ValidationError):
            Options(**bad)
