import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydantic import ValidationError

from mixc.methods.doremi import Options, domain_excess, run, update
from mixc.proxy import train as train_module
from mixc.proxy.presets import Shape, flops_per_token
from mixc.proxy.train import Batch, TrainOptions, mean_loss, train
from mixc.solve.trainer import Trainer

# ---- the algebra ----

EXCESS = np.array([0.5, 0.1, -0.4, 0.2, -0.3, -0.1])
DOMAIN = np.array([0, 0, 1, 1, 2, 2])
UNIFORM = np.full(3, 1 / 3)
ALL = np.ones(3, dtype=bool)


def test_t1_two_steps_and_their_mean():
    lam, present = domain_excess(EXCESS, DOMAIN, 3)
    assert lam == pytest.approx([0.3, 0.1, 0.0])
    assert present.all()
    first = update(UNIFORM, lam, present, eta=1.0, smoothing=1e-3)
    second = update(first, lam, present, eta=1.0, smoothing=1e-3)
    assert first == pytest.approx([0.3906365, 0.3198865, 0.2894770], abs=5e-8)
    assert second == pytest.approx([0.4504505, 0.3021129, 0.2474366], abs=5e-8)
    assert (first + second) / 2 == pytest.approx([0.42054, 0.31100, 0.26846], abs=5e-6)


def test_excess_is_clipped_by_token_and_averaged_over_tokens():
    # One domain has three tokens, one has one, one has none.
    excess = np.array([1.0, -5.0, 0.5, 2.0], dtype=np.float32)
    lam, present = domain_excess(excess, np.array([1, 1, 1, 0]), 3)
    assert lam.tolist() == [2.0, 0.5, 0.0]
    assert present.tolist() == [True, True, False]
    assert lam.dtype == np.float64


@st.composite
def steps(draw):
    """(alpha, lambda, present, eta, smoothing) of 1 to 8 domains."""
    K = draw(st.integers(1, 8))
    raw = draw(arrays(float, K, elements=st.floats(1e-6, 1.0)))
    lam = draw(arrays(float, K, elements=st.floats(0.0, 20.0)))
    present = draw(arrays(bool, K))
    return raw / raw.sum(), lam, present, draw(st.floats(0.01, 50)), draw(st.floats(0, 0.5))


@given(steps())
def test_result_is_on_the_simplex_above_the_floor(step):
    alpha, _, _, _, smoothing = step
    result = update(*step)
    assert result.sum() == pytest.approx(1.0, abs=1e-12)
    assert (result >= smoothing / len(alpha) * (1 - 1e-12)).all()


@given(steps(), st.randoms(use_true_random=False))
def test_the_order_of_domains_does_not_matter(step, random):
    alpha, lam, present, eta, smoothing = step
    order = list(range(len(alpha)))
    random.shuffle(order)
    shuffled = update(alpha[order], lam[order], present[order], eta, smoothing)
    assert shuffled == pytest.approx(update(*step)[order], abs=1e-12)


@given(steps())
def test_absent_domains_keep_their_weight_and_present_ones_their_mass(step):
    alpha, lam, present, eta, _ = step
    result = update(alpha, lam, present, eta, 0.0)
    assert np.array_equal(result[~present], alpha[~present])
    assert result[present].sum() == pytest.approx(alpha[present].sum(), abs=1e-12)


@given(st.integers(1, 50), st.floats(0, 30), st.floats(0, 0.9), st.data())
def test_equal_lambdas_leave_uniform_weights_exactly_as_they_are(K, lam, smoothing, data):
    present = data.draw(arrays(bool, K))
    uniform = np.full(K, 1.0 / K)
    result = update(uniform, np.full(K, lam), present, 1.0, smoothing)
    assert np.array_equal(result, uniform)


@given(steps())
def test_zero_lambda_leaves_any_weights_as_they_are(step):
    alpha, lam, present, eta, _ = step
    assert np.array_equal(update(alpha, 0 * lam, present, eta, 0.0), alpha)


def test_a_learned_domain_decays_to_the_floor():
    # alpha[0] falls as the product of 1 / Z until smoothing holds it: a = (1 - c) a / Z + c / K.
    alpha, lam = UNIFORM, np.array([0.0, 1.0, 1.0])
    path = [alpha := update(alpha, lam, ALL, 1.0, 1e-3) for _ in range(60)]
    rest = path[-1][0]
    z = rest + np.e * (1 - rest)
    assert path[0][0] == pytest.approx((1 - 1e-3) / (1 + 2 * np.e) + 1e-3 / 3)
    assert rest == pytest.approx((1 - 1e-3) * rest / z + 1e-3 / 3, rel=1e-9)
    assert 1e-3 / 3 < rest < 2e-3 / 3


def test_weights_at_zero_stay_there_and_nothing_overflows():
    alpha = update(UNIFORM, np.array([0.0, 1e4, 1e4]), ALL, 1.0, 0.0)
    assert alpha.tolist() == pytest.approx([0.0, 0.5, 0.5])
    again = update(alpha, np.array([1e6, 0.0, 0.0]), ALL, 1.0, 0.0)
    assert again.tolist() == pytest.approx([0.0, 0.5, 0.5])
    tiny = np.array([1e-307, 1.0, 0.0])
    assert update(tiny, np.array([1e4, 0.0, 0.0]), ALL, 1.0, 0.0) == pytest.approx([1, 0, 0])


def test_options_are_checked():
    assert Options().model_dump() == {
        "variant": "paper",
        "eta": 1.0,
        "smoothing": 1e-3,
        "reference": "natural",
    }
    bad = ({"eta": 0.0}, {"smoothing": 1.0}, {"smoothing": -0.1}, {"variant": "official"})
    for options in bad:
        with pytest.raises(ValidationError):
            Options(**options)


def test_the_options_are_read_without_torch():
    code = "import sys, mixc.methods.doremi; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---- small models on planted domains, each with 16 tokens of its own ----

LENGTH, OWN, STEPS = 48, 16, 160
TRAIN = TrainOptions(
    shape=Shape(layers=2, width=32, heads=2, hidden=96),
    vocab_size=64,
    seq_len=LENGTH,
    steps=100,
    learning_rate=1e-2,
    device="cpu",
)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny products: threads only get in each other's way
    yield
    torch.set_num_threads(threads)


def chain(place, order, successors):
    """Rows of a Markov chain whose states have `successors` equally likely next tokens."""
    seeded = np.random.default_rng(place)
    follows = np.stack([seeded.permutation(OWN)[:successors] for _ in range(OWN**order)])

    def rows(count, rng):
        tokens = rng.integers(OWN, size=(count, LENGTH + 1))
        choice = rng.integers(successors, size=tokens.shape)
        for t in range(order, LENGTH + 1):
            state = tokens[:, t - 1] + (OWN * tokens[:, t - 2] if order == 2 else 0)
            tokens[:, t] = follows[state, choice[:, t]]
        return tokens + OWN * place

    return rows


EASY, LOOSE, SECOND, NOISE = chain(0, 1, 2), chain(1, 1, 6), chain(2, 2, 2), chain(3, 1, OWN)


def sampler(sources, seed, rows=8, absent=lambda step, domain: False):
    def at(step):
        rng = np.random.default_rng((seed, step))
        drawn = [(k, make(rows, rng)) for k, make in enumerate(sources)]
        drawn = [(k, tokens) for k, tokens in drawn if not absent(step, k)]
        domain = np.repeat([k for k, _ in drawn], rows)
        return Batch(np.concatenate([tokens for _, tokens in drawn]), domain)

    return at


@pytest.fixture(scope="module")
def planted():
    sources = (EASY, LOOSE, SECOND, NOISE)
    options = replace(TRAIN, steps=STEPS)
    return run(Trainer(options), sampler(sources, 1), sampler(sources, 2), 4, Options())


def test_t3_noise_ends_lowest(planted):
    noise, others = planted.alpha_mean[3], planted.alpha_mean[:3]
    assert noise < 0.1
    assert noise < others.min()
    assert (planted.alpha[-25:, 3] < 0.01).all()
    assert (planted.alpha[-25:].argmin(axis=1) == 3).all()


def test_t3_clipping_leaves_noise_a_lambda_above_its_excess(planted):
    excess, lam = planted.excess[-25:].mean(axis=0), planted.lam[-25:].mean(axis=0)
    bias = (planted.lam - np.maximum(planted.excess, 0))[-25:].mean(axis=0)
    assert (planted.lam >= planted.excess - 1e-12).all()
    assert excess[3] < 0.25  # starved, it is learnt slowly; then there is nothing more
    assert lam[3] > excess[3]
    assert (bias > 0).all()


def test_the_answer_is_the_mean_of_a_trajectory_on_the_simplex(planted):
    assert planted.alpha.shape == planted.lam.shape == planted.excess.shape == (STEPS, 4)
    assert planted.present.all()
    assert planted.alpha.sum(axis=1) == pytest.approx(np.ones(STEPS), abs=1e-12)
    assert (planted.alpha >= 1e-3 / 4 * (1 - 1e-12)).all()
    assert np.array_equal(planted.alpha_mean, planted.alpha.mean(axis=0))
    first = update(np.full(4, 0.25), planted.lam[0], planted.present[0], 1.0, 1e-3)
    assert np.array_equal(planted.alpha[0], first)  # the mean has no alpha_0 in it


def test_cost_counts_the_references_pass_beside_the_proxy(planted):
    each = STEPS * 32 * LENGTH
    assert planted.tokens == 2 * each
    assert planted.flops == 7 * flops_per_token(TRAIN.shape, TRAIN.vocab_size, LENGTH) * each


def test_t5_a_domain_both_models_know_decays_towards_the_floor():
    options = replace(TRAIN, steps=240)
    known = train(options, sampler((EASY,), 9, rows=16), mean_loss).model.state_dict()
    sources = (EASY, LOOSE, SECOND)
    result = run(
        Trainer(replace(TRAIN, steps=60, learning_rate=3e-3)),
        sampler(sources, 1),
        sampler(sources, 2),
        3,
        Options(),
        reference_init=known,
        proxy_init=known,
    )
    assert result.alpha_mean[0] < 0.02
    assert result.alpha_mean[0] < result.alpha_mean[1:].min() / 10
    assert result.alpha[:, 0].min() < 1.2 * 1e-3 / 3  # the floor is c / K


@pytest.mark.parametrize("absent", [lambda step, k: False, lambda step, k: step % 3 == k])
def test_a_proxy_that_equals_its_reference_keeps_uniform_weights_to_the_bit(absent):
    still = replace(TRAIN, steps=6, learning_rate=0.0)
    sources = (EASY, LOOSE, NOISE)
    result = run(
        Trainer(still),
        sampler(sources, 1),
        sampler(sources, 2, absent=absent),
        3,
        Options(smoothing=0.1),
    )
    assert np.array_equal(result.alpha, np.full((6, 3), 1 / 3))
    assert not result.excess.any()


def test_absent_domains_get_no_update_in_a_run():
    options = replace(TRAIN, steps=5)
    sources = (EASY, LOOSE, SECOND)
    proxy = sampler(sources, 2, rows=2, absent=lambda step, k: step < 3 and k == 1)
    result = run(Trainer(options), sampler(sources, 1, rows=2), proxy, 3, Options(smoothing=0.0))
    assert (result.alpha[:3, 1] == 1 / 3).all()
    assert result.present[:, 1].tolist() == [False] * 3 + [True] * 2
    assert result.alpha[3, 1] != 1 / 3


def test_the_loss_of_a_step_is_weighted_by_that_steps_alpha(monkeypatch):
    seen, plain = [], train_module.weighted_loss

    def spy(losses, batch, weights):
        seen.append(weights)
        return plain(losses, batch, weights)

    monkeypatch.setattr(train_module, "weighted_loss", spy)
    sources = (EASY, SECOND)
    result = run(
        Trainer(replace(TRAIN, steps=4)),
        sampler(sources, 1, 2),
        sampler(sources, 2, 2),
        2,
        Options(),
    )
    assert np.array_equal(np.stack(seen), result.alpha)


def test_two_runs_agree_to_the_bit():
    def once():
        sources = (EASY, NOISE)
        trainer = Trainer(replace(TRAIN, steps=6))
        return run(trainer, sampler(sources, 1, 2), sampler(sources, 2, 2), 2, Options())

    first, second = once(), once()
    assert np.array_equal(first.alpha, second.alpha)
    assert np.array_equal(first.lam, second.lam)
