import itertools
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from method_worlds import EASY, LOOSE, NOISE, SECOND, TRAIN, sampler
from pydantic import ValidationError

from mixc.methods.doremi import (
    Options,
    group_dro,
    mean_alpha,
    new_records,
    update,
    weighted_token_mean,
)
from mixc.methods.odm import gibbs, linear
from mixc.proxy import train as train_module
from mixc.proxy.train import Batch, batch_losses, domain_stats, mean_loss, train
from mixc.rng import Stream
from mixc.solve.documents import tilt
from mixc.solve.intervals import block_bootstrap

# ---- the algebra ----

EXCESS = np.array([0.5, 0.1, -0.4, 0.2, -0.3, -0.1])
DOMAIN = np.array([0, 0, 1, 1, 2, 2])
UNIFORM = np.full(3, 1 / 3)
ALL = np.ones(3, dtype=bool)


def domain_excess(excess, domain, domains):
    """(lambda, present) of tokens above a reference of 1 nat."""
    losses, one = torch.tensor(excess, dtype=torch.float32)[:, None] + 1, np.ones((len(excess), 1))
    batch = Batch(np.zeros((len(excess), 2), np.int64), domain)
    stats = domain_stats(losses, batch, domains, one.astype(np.float32))
    return np.nan_to_num(stats.mean_excess()), stats.present


def test_t1_two_steps_and_their_mean():
    lam, present = domain_excess(EXCESS, DOMAIN, 3)
    assert lam == pytest.approx([0.3, 0.1, 0.0])
    assert present.all()
    first = update(UNIFORM, lam, present, eta=1.0, smoothing=1e-3)
    second = update(first, lam, present, eta=1.0, smoothing=1e-3)
    assert first == pytest.approx([0.3906365, 0.3198865, 0.2894770], abs=5e-8)
    assert second == pytest.approx([0.4504505, 0.3021129, 0.2474366], abs=5e-8)
    assert (first + second) / 2 == pytest.approx([0.42054, 0.31100, 0.26846], abs=5e-6)


def trajectory_of(options, excess, present, steps):
    """Alpha under the same excess at every step [K], without a model: losses of one token a row."""
    records = new_records(steps, len(excess))
    for step in range(steps):
        here = np.flatnonzero(present[step])
        losses = torch.tensor(excess[here, None], dtype=torch.float32)
        reference = np.zeros((len(here), 1), np.float32)
        objective = group_dro(lambda _, r=reference: r, options, records, vocab=512)
        objective(step, losses, Batch(np.zeros((len(here), 2), np.int64), here))
    return records


def test_t1_the_released_codes_mean_begins_with_uniform_weights():
    excess = np.array([0.3, 0.1, 0.0])
    official = Options(variant="official", smoothing=1e-3)
    alpha = trajectory_of(official, excess, np.ones((2, 3), bool), 2)["alpha"]
    assert alpha[1] == pytest.approx([0.4504505, 0.3021129, 0.2474366], abs=5e-8)
    assert mean_alpha(alpha, "official") == pytest.approx([0.39147, 0.31844, 0.29008], abs=1e-5)


@pytest.mark.parametrize("variant", ["paper", "official"])
def test_a_domain_with_no_row_scored_moves_by_its_last_lambda(variant):
    options, records = Options(variant=variant), new_records(3, 3)
    losses, batch = (
        torch.tensor([[0.5], [0.2], [0.1]]),
        Batch(np.zeros((3, 2), np.int64), np.arange(3)),
    )
    places = [np.arange(3), np.array([1]), np.array([], np.int64)]

    def nothing(step):
        return np.zeros((len(places[step]), 1), np.float32)

    objective = group_dro(nothing, options, records, vocab=512, places=places.__getitem__)
    for step, found in enumerate((losses, 2 * losses, 3 * losses)):
        objective(step, found, batch)
    wanted = np.array([[0.5, 0.2, 0.1], [0.5, 0.4, 0.1], [0.5, 0.4, 0.1]])
    assert records["clipped_excess"] == pytest.approx(wanted)
    assert records["present"].tolist() == [[1, 1, 1], [0, 1, 0], [0, 0, 0]]
    smoothing = 1e-3 if variant == "paper" else 1e-4
    for step, before in ((1, records["alpha"][0]), (2, records["alpha"][1])):
        after = update(before, wanted[step], ALL, 1.0, smoothing)
        assert records["alpha"][step] == pytest.approx(after, abs=1e-7)


def test_smoothing_is_the_variants_own_unless_given():
    excess, present = np.array([5.0, 0.0]), np.ones((40, 2), bool)
    for options, floor in (
        (Options(), 1e-3),
        (Options(variant="official"), 1e-4),
        (Options(variant="official", smoothing=0.2), 0.2),
    ):
        alpha = trajectory_of(options, excess, present, 40)["alpha"]
        assert alpha[-1, 1] == pytest.approx(floor / 2, rel=0.1)


def test_in_the_released_code_an_absent_domain_moves_by_its_last_lambda_or_log_v():
    present = np.array([[True, True, False], [True, True, True], [False, True, True]])
    excess = np.array([1.0, 0.5, 0.25])
    found = trajectory_of(Options(variant="official", smoothing=0.0), excess, present, 3)
    lam = found["clipped_excess"]
    assert lam[0].tolist() == [1.0, 0.5, np.log(512)]
    assert lam[1].tolist() == lam[2].tolist() == [1.0, 0.5, 0.25]
    first = np.exp(lam[0]) / np.exp(lam[0]).sum()
    assert found["alpha"][0] == pytest.approx(first)
    assert first[2] > 0.99  # absent from the first batch, it takes all
    # The paper's variant leaves it as it is.
    paper = trajectory_of(Options(smoothing=0.0), excess, present, 3)
    assert paper["alpha"][0, 2] == 1 / 3
    assert paper["clipped_excess"][0, 2] == 0


def test_the_released_codes_loss_is_a_mean_over_tokens():
    losses = torch.tensor([[1.0, 3.0], [5.0, 7.0], [0.0, 2.0]])
    batch = Batch(np.zeros((3, 3), np.int64), np.array([0, 0, 1]))
    weights = np.array([0.25, 0.5, 0.25])
    found = weighted_token_mean(losses, batch, weights).item()
    assert found == pytest.approx((0.25 * 16 + 0.5 * 2) / (4 * 0.25 + 2 * 0.5))


def test_excess_is_clipped_by_token_and_averaged_over_tokens():
    # One domain has three tokens, one has one, one has none.
    excess = np.array([1.0, -5.0, 0.5, 2.0], dtype=np.float32)
    lam, present = domain_excess(excess, np.array([1, 1, 1, 0]), 3)
    assert lam.tolist() == [2.0, 0.5, 0.0]
    assert present.tolist() == [True, True, False]


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
        "smoothing": None,
        "reference": "natural",
        "scored": 0.25,
        "rounds": 1,
        "tolerance": 1e-3,
    }
    bad = (
        {"eta": 0.0},
        {"smoothing": 1.0},
        {"smoothing": -0.1},
        {"rounds": 0},
        {"scored": 0},
        {"scored": 1.1},
        {"variant": "other"},
    )
    for options in bad:
        with pytest.raises(ValidationError):
            Options(**options)


# ---- T2: unigram domains, each with a posterior mean of its own (the paper's appendix D) ----

UNIGRAMS = np.array([(1, 0, 0), (0.7, 0.2, 0.1), (1 / 3, 1 / 3, 1 / 3)])
PUBLISHED = np.array([0.39, 0.61, 0.0])  # the paper's answer, of one run
PERMUTED = list(itertools.permutations(range(3)))


def unigram_weights(seed, steps=500, eta=0.5, scored=30):
    """Mean alpha of 500 steps of one token each, as the appendix tells it.

    A model is the mean of a posterior: 1/3 of a token of each kind before, and the tokens seen,
    which count for their domain's alpha with the proxy and as 1 with the reference. Excesses are
    those of 30 other tokens, ten of each domain. No smoothing is named there.
    """
    stream = Stream(seed, "unigrams").uniforms(2 * steps + scored)
    domains = (3 * stream[:steps]).astype(np.int64)
    kinds = kinds_of(domains, stream[steps : 2 * steps])
    asked = np.repeat(np.arange(3), scored // 3)
    seen = kinds_of(asked, stream[2 * steps :])
    reference, counts = np.full((3, 3), 1 / 3), np.full((3, 3), 1 / 3)
    np.add.at(reference, (domains, kinds), 1)
    reference /= reference.sum(axis=1, keepdims=True)
    alpha, path = UNIFORM, []
    for domain, kind in zip(domains, kinds, strict=True):
        proxy = counts / counts.sum(axis=1, keepdims=True)
        excess = np.maximum(np.log(reference / proxy)[asked, seen], 0)
        alpha = update(alpha, excess.reshape(3, -1).mean(axis=1), ALL, eta, 0.0)
        counts[domain, kind] += alpha[domain]
        path.append(alpha)
    return np.mean(path, axis=0)


def kinds_of(domains, uniforms):
    """A token of each of these domains."""
    return (uniforms[:, None] >= np.cumsum(UNIGRAMS, axis=1)[domains, :2]).sum(axis=1)


def error(n):
    """Squared error of each domain's mean posterior of n tokens: (n H + D) / (n + 1)^2."""
    noise, off = 1 - (UNIGRAMS**2).sum(axis=1), ((UNIGRAMS - 1 / 3) ** 2).sum(axis=1)
    return (n * noise + off) / (n + 1) ** 2


def test_t2_the_best_split_gives_what_the_prior_knows_nothing():
    splits = np.array([(i, j, 500 - i - j) for i in range(501) for j in range(501 - i)])
    assert splits[error(splits).sum(axis=1).argmin()].tolist() == [79, 421, 0]
    # That lies behind a hill: a first token makes the third domain's error, and it comes down only
    # with hundreds. On that side of the hill, at equal n, the third needs the most, not the least.
    assert error(np.zeros(3))[2] == 0
    assert error(np.ones(3)) == pytest.approx(1 / 6, abs=1e-3)
    assert (np.diff(error(np.full(3, 50.0))) > 0).all()


def test_t2_the_second_domain_first_and_the_third_last():
    """The paper's order, 2 > 1 > 3, is that of the median run and of about half of all, where
    chance would give a sixth; its weights, of one run, are among what runs give.

    One token a step is loud. The first domain has no noise and is as good as its reference soon;
    of the others one takes off. Where the third does, its proxy, which began with the truth, is
    fed what spoils it, and lags behind its reference as long as the second would.
    """
    runs = np.array([unigram_weights(seed) for seed in range(200)])
    assert np.argsort(-np.median(runs, axis=0)).tolist() == [1, 0, 2]
    orders, count = np.unique(np.argsort(-runs, axis=1), axis=0, return_counts=True)
    often = np.argsort(-count)
    assert orders[often[0]].tolist() == [1, 0, 2]
    assert 0.4 < count[often[0]] / len(runs) < 0.6
    assert count[often[0]] > 1.5 * count[often[1]]
    near = [np.abs(runs - PUBLISHED[list(order)]).max(axis=1) < 0.05 for order in PERMUTED]
    assert near[0].sum() > 3 * max(one.sum() for one in near[1:])


def test_t2_what_goes_by_the_loss_puts_the_third_first():
    losses = -(UNIGRAMS * np.log(np.maximum(UNIGRAMS, 1e-300))).sum(axis=1)
    for rule in (gibbs, linear):  # ODM
        assert np.argsort(-rule(np.exp(losses), 1000)).tolist() == [2, 1, 0]
    assert np.argsort(-tilt(UNIFORM, losses, 16.0)).tolist() == [2, 1, 0]  # IR-DRO


# ---- small models on planted domains, each with 16 tokens of its own ----

STEPS = 160


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny products: threads only get in each other's way
    yield
    torch.set_num_threads(threads)


def run(
    train_options,
    reference_batches,
    proxy_batches,
    domains,
    options,
    *,
    reference_init=None,
    proxy_init=None,
):
    """Reference and proxy, and what the proxy's run recorded."""
    reference = train(train_options, reference_batches, mean_loss, init=reference_init).model

    def frozen(step):
        with torch.no_grad():
            return batch_losses(reference, proxy_batches(step)).numpy()

    records = new_records(train_options.steps, domains)
    objective = group_dro(frozen, options, records, vocab=train_options.vocab_size)
    train(train_options, proxy_batches, objective, records=records, init=proxy_init)
    mean = mean_alpha(records["alpha"], options.variant)
    return SimpleNamespace(mean=mean, lam=records["clipped_excess"], **records)


@pytest.fixture(scope="module")
def planted():
    sources = (EASY, LOOSE, SECOND, NOISE)
    options = replace(TRAIN, steps=STEPS)
    return run(options, sampler(sources, 1), sampler(sources, 2), 4, Options())


def test_t3_noise_ends_lowest(planted):
    noise, others = planted.mean[3], planted.mean[:3]
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
    assert np.array_equal(planted.mean, planted.alpha.mean(axis=0))
    first = update(np.full(4, 0.25), planted.lam[0], planted.present[0] > 0, 1.0, 1e-3)
    assert np.array_equal(planted.alpha[0], first)  # the mean has no alpha_0 in it


def test_t5_a_domain_both_models_know_decays_towards_the_floor():
    options = replace(TRAIN, steps=240)
    known = train(options, sampler((EASY,), 9, rows=16), mean_loss).model.state_dict()
    sources = (EASY, LOOSE, SECOND)
    result = run(
        replace(TRAIN, steps=60, learning_rate=3e-3),
        sampler(sources, 1),
        sampler(sources, 2),
        3,
        Options(),
        reference_init=known,
        proxy_init=known,
    )
    assert result.mean[0] < 0.02
    assert result.mean[0] < result.mean[1:].min() / 10
    assert result.alpha[:, 0].min() < 1.2 * 1e-3 / 3  # the floor is c / K


def test_t4_copies_of_a_domain_get_the_same_weight():
    sources = (EASY, LOOSE, LOOSE)  # other rows of the same chain
    result = run(
        replace(TRAIN, steps=60), sampler(sources, 1), sampler(sources, 2), 3, Options(eta=0.2)
    )
    low, high = block_bootstrap(result.alpha[:, [1]] - result.alpha[:, [2]], seed=0)
    assert low[0] - 0.02 < 0 < high[0] + 0.02
    assert abs(result.mean[1] - result.mean[2]) < 0.05


@pytest.mark.parametrize("absent", [lambda step, k: False, lambda step, k: step % 3 == k])
def test_a_proxy_that_equals_its_reference_keeps_uniform_weights_to_the_bit(absent):
    still = replace(TRAIN, steps=6, learning_rate=0.0)
    sources = (EASY, LOOSE, NOISE)
    result = run(
        still,
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
    result = run(options, sampler(sources, 1, rows=2), proxy, 3, Options(smoothing=0.0))
    assert (result.alpha[:3, 1] == 1 / 3).all()
    assert result.present[:, 1].tolist() == [0] * 3 + [1] * 2
    assert result.alpha[3, 1] != 1 / 3


def test_the_loss_of_a_step_is_weighted_by_that_steps_alpha(monkeypatch):
    seen, plain = [], train_module.weighted_loss

    def spy(losses, batch, weights):
        seen.append(weights)
        return plain(losses, batch, weights)

    monkeypatch.setattr(train_module, "weighted_loss", spy)
    sources = (EASY, SECOND)
    result = run(
        replace(TRAIN, steps=4),
        sampler(sources, 1, 2),
        sampler(sources, 2, 2),
        2,
        Options(),
    )
    assert np.array_equal(np.stack(seen), result.alpha)


def test_two_runs_agree_to_the_bit():
    def once():
        sources = (EASY, NOISE)
        options = replace(TRAIN, steps=6)
        return run(options, sampler(sources, 1, 2), sampler(sources, 2, 2), 2, Options())

    first, second = once(), once()
    assert np.array_equal(first.alpha, second.alpha)
    assert np.array_equal(first.lam, second.lam)


def test_t14_other_numbers_for_the_domains_of_the_same_batches_permute_alpha():
    order = np.array([2, 0, 1])

    def renamed(batches):
        return lambda step: Batch(batches(step).tokens, order[batches(step).domain])

    options = replace(TRAIN, steps=6)
    first, second = sampler((EASY, LOOSE, SECOND), 1, 2), sampler((EASY, LOOSE, SECOND), 2, 2)
    for variant in ("paper", "official"):
        method = Options(variant=variant)
        plain = run(options, first, second, 3, method)
        other = run(options, renamed(first), renamed(second), 3, method)
        assert other.alpha[:, order] == pytest.approx(plain.alpha, abs=1e-6)
