from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from method_worlds import EASY, LOOSE, NOISE, TRAIN, sampler
from mixc_kernels.domain_grads import domain_grads_reference
from mixc_kernels.domain_gram import DomainGram, split_halves
from pydantic import ValidationError

from mixc.errors import MixcError
from mixc.methods.doge import (
    Options,
    Slots,
    aligned,
    alignment,
    damping,
    mirror_descent,
    new_records,
    official_alignment,
    replay,
    roles_of,
)
from mixc.proxy.model import Model
from mixc.proxy.train import Batch, batch_losses, mean_loss, peak_rate, rate_at, train
from mixc.solve.roles import Roles

NAMES = ("a", "b", "c")


def gram_of(gradients, tokens=None):
    """The products of gradients [S, P], of a token each unless told otherwise."""
    products = gradients @ gradients.T
    tokens = np.ones(len(gradients), np.int64) if tokens is None else np.array(tokens)
    return DomainGram(products, np.sqrt(np.diag(products)), tokens)


# ---- roles ----


def test_without_a_target_all_domains_are_trained_on_and_aimed_at():
    who = roles_of(NAMES, Options())
    assert who.trained.all()
    assert who.target.all()


def test_a_target_is_not_trained_on_unless_asked_for():
    who = roles_of(NAMES, Options(target=("b",)))
    assert who.trained.tolist() == [True, False, True]
    assert who.target.tolist() == [False, True, False]
    both = roles_of(NAMES, Options(target=("b",), train_target=True))
    assert both.trained.all()
    assert both.target.tolist() == [False, True, False]


@pytest.mark.parametrize(("target", "code"), [(("x",), "MX008"), (NAMES, "MX009")])
def test_wrong_targets(target, code):
    with pytest.raises(MixcError) as raised:
        roles_of(NAMES, Options(target=target))
    assert raised.value.code == code


# ---- the algebra ----


def test_alignment_sums_products_with_the_targets():
    products = np.array([[4.0, 1.0, -2.0], [1.0, 9.0, 3.0], [-2.0, 3.0, np.nan]])
    assert alignment(products, np.array([True, True, True])).tolist() == [3.0, 13.0, 1.0]
    assert alignment(products, np.array([False, True, False])).tolist() == [1.0, 9.0, 3.0]


def test_the_released_codes_score():
    # Gradients clipped to norm 5; a target slot of its own; divided by the mean norm, cut to 0..5.
    gradients = np.array([[5.0, 0.0], [0.0, 3.0], [-1.0, 0.0], [4.0, 2.0]])
    who = Roles(np.ones(3, bool), np.ones(3, bool))
    found = official_alignment(gram_of(gradients), who, clip=5.0)
    mean = (5 + 3 + 1) / 3
    assert found == pytest.approx([5.0, 6 / mean, 0.0], rel=1e-6)  # 20 / 3 is cut to 5
    # Out of domain, the mean is over those trained on, and a target is no slot of its own.
    who = Roles(np.array([True, True, False]), np.array([False, False, True]))
    found = official_alignment(gram_of(gradients[[0, 1, 3]]), who, clip=50.0)
    assert found[:2] == pytest.approx([5.0, 6 / 4], rel=1e-6)


def step_of(options, gram, who=None, records=None, step=0, rate=0.1):
    who = who or roles_of(NAMES, options)
    records = new_records(4, 3) if records is None else records
    weights = mirror_descent(options, who, records, lambda _: rate, rate)(step, gram)
    return weights, records


def test_a_step_of_the_papers_variant():
    options = Options(diagonal="biased", mu=0.5)
    gradients = np.array([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    weights, records = step_of(options, gram_of(gradients))
    score = gradients @ gradients.sum(axis=0)
    expected = np.exp(0.1 * score / 0.5)
    assert weights == pytest.approx(expected / expected.sum(), rel=1e-12)
    assert records["alpha"][0] == pytest.approx(weights)
    assert records["alignment"][0] == pytest.approx(score)
    again, _ = step_of(options, gram_of(gradients), records=records, step=1)
    assert again == pytest.approx(expected**2 / (expected**2).sum(), rel=1e-12)


def test_the_official_steps_are_bounded():
    # At a rate of 5e-4 and mu 0.01 no weight rises by more than exp(0.25) against another.
    options = Options(variant="official")
    gradients = np.array([[1e3, 0.0], [-1e3, 0.0], [0.0, 1.0], [1e3, 0.0]])
    weights, records = step_of(options, gram_of(gradients), rate=5e-4)
    alpha = records["alpha"][0]
    assert alpha[0] / alpha[1] == pytest.approx(np.exp(0.25))
    assert alpha[1] == alpha[2]
    assert weights.tolist() == [*alpha.tolist(), 0.0]  # the target's rows train nothing


def test_damping_goes_with_the_learning_rate():
    found = [
        damping(options, 5e-4, targets=3)
        for options in (
            Options(),
            Options(variant="official"),
            Options(variant="official", target=("a",)),
            Options(mu=0.2),
        )
    ]
    assert found == pytest.approx([0.15, 0.01, 0.05, 0.2])
    assert damping(Options(), 3e-3, targets=1) == pytest.approx(0.3)


def test_the_official_variant_needs_rows_of_every_domain():
    gram = gram_of(np.ones((4, 2)), tokens=[1, 1, 0, 1])
    with pytest.raises(MixcError) as raised:
        step_of(Options(variant="official"), gram)
    assert raised.value.code == "MX007"


def test_an_absent_domain_keeps_its_weight_in_the_papers_variant():
    gram = gram_of(np.array([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]]), tokens=[1, 1, 0])
    weights, records = step_of(Options(diagonal="biased"), gram)
    assert weights[2] == records["alpha"][0, 2] == 1 / 3
    assert records["present"][0].tolist() == [1, 1, 0]


def test_products_with_the_targets_sum_are_taken_as_they_are():
    gradients = np.random.default_rng(0).normal(size=(3, 5))
    options = Options(target=("b", "c"), train_target=True)
    full = gram_of(gradients)
    summed = replace(full, products=full.products[:, 1:].sum(axis=1))
    (weights, records), (wanted, known) = step_of(options, summed), step_of(options, full)
    assert weights == pytest.approx(wanted)
    assert records["alignment"] == pytest.approx(known["alignment"])


@pytest.mark.parametrize("target", [(), ("d1",)])
def test_a_step_in_halves_is_that_of_explicit_gradients(target):
    """The recorded alignment, by hand: but for the diagonal, which is the halves' product."""
    options = Options(target=target, train_target=True, mu=0.1)
    records, _ = trained((EASY, LOOSE, NOISE), options, 1)
    model = Model(TRAIN.shape, TRAIN.vocab_size, TRAIN.seed)
    batch = sampler((EASY, LOOSE, NOISE), 5)(0)
    losses = batch_losses(model, batch)
    slot = split_halves(batch.domain, 3)
    half = domain_grads_reference(model, losses, torch.from_numpy(slot), 6).double().numpy()
    share = np.bincount(slot, minlength=6).reshape(3, 2) / np.bincount(batch.domain)[:, None]
    whole = (half.reshape(3, 2, -1) * share[..., None]).sum(axis=1)
    products = whole @ whole.T
    np.fill_diagonal(products, (half[::2] * half[1::2]).sum(axis=1))
    aimed = [1] if target else [0, 1, 2]
    assert records["alignment"][0] == pytest.approx(products[:, aimed].sum(axis=1), rel=1e-4)
    assert records["norm"][0] == pytest.approx(np.linalg.norm(whole, axis=1), rel=1e-5)


def test_the_universal_target_takes_its_share_of_rows_and_leaves_each_domain_one():
    slots = Slots(Options(variant="official"), NAMES, seed=0)
    domain = np.repeat([0, 1, 2], 4)
    taken = np.zeros(3)
    for step in range(300):
        slot = slots.of(domain, step)
        assert (slot == 3).sum() == 3
        assert set(slot) == {0, 1, 2, 3}
        assert ((slot == domain) | (slot == 3)).all()
        taken += np.bincount(domain[slot == 3], minlength=3)
    assert taken / taken.sum() == pytest.approx(np.full(3, 1 / 3), abs=0.05)
    # It follows from the names of the domains' streams, not from their order.
    turned = Slots(Options(variant="official"), ("c", "a", "b"), seed=0)
    other = turned.of(np.array([1, 2, 0])[domain], 5)
    assert np.array_equal(other == 3, slots.of(domain, 5) == 3)


# ---- T6: quadratic worlds, l_i = |theta - mu_i|^2 / 2, without a model ----


def descend(options, who, centres, *, steps, rate, noise=0.0, start=None):
    """DoGE on a quadratic world: the mean of alpha, and where theta ends."""
    K, dim = centres.shape
    records, rng = new_records(steps, K), np.random.default_rng(0)
    weigh = mirror_descent(options, who, records, lambda _: rate, rate)
    theta = np.zeros(dim) if start is None else start
    for step in range(steps):
        gradients = theta - centres + noise * rng.normal(size=(K, dim))
        if options.variant == "official" and not options.target:
            gradients = np.concatenate([gradients, gradients.mean(axis=0, keepdims=True)])
        gram = gram_of(gradients)
        if options.variant == "official":
            gram = gram.clipped(options.clip)
        theta = theta - rate * weigh(step, gram) @ gradients
    return records["alpha"], theta


CENTRES = np.array([[0.0, 0.0, 1.0], [2.0, 0.0, 0.0], [0.0, 3.0, 0.0]])


@pytest.mark.parametrize("variant", ["paper", "official"])
def test_t6_a_target_inside_the_hull_gets_its_barycentric_weights(variant):
    beta = np.array([0.2, 0.5, 0.3])
    centres = np.concatenate([CENTRES, beta @ CENTRES[None]])
    options = Options(variant=variant, target=("t",), diagonal="biased", mu=0.2)
    who = roles_of((*NAMES, "t"), options)
    alpha, theta = descend(options, who, centres, steps=6000, rate=0.02)
    assert (alpha[:, 3] == 0).all()
    assert alpha.mean(axis=0)[:3] == pytest.approx(beta, abs=0.03)
    assert theta == pytest.approx(beta @ CENTRES, abs=0.05)


@pytest.mark.parametrize("variant", ["paper", "official"])
def test_t6_for_all_domains_alike_the_best_is_uniform(variant):
    options = Options(variant=variant, diagonal="biased", mu=0.5)
    alpha, theta = descend(options, roles_of(NAMES, options), CENTRES, steps=6000, rate=0.02)
    assert alpha.mean(axis=0) == pytest.approx(np.full(3, 1 / 3), abs=0.04)
    assert theta == pytest.approx(CENTRES.mean(axis=0), abs=0.15)


def test_t6_the_bilevel_optimum_by_a_grid_over_the_simplex():
    beta = np.array([0.2, 0.5, 0.3])
    grid = np.array([(i, j, 20 - i - j) for i in range(21) for j in range(21 - i)]) / 20
    loss = (((grid - beta) @ CENTRES) ** 2).sum(axis=1) / 2  # of theta*(alpha) = alpha mu
    assert grid[loss.argmin()] == pytest.approx(beta, abs=1e-12)


def test_t5_a_learnt_domain_pulls_nowhere():
    gradients = np.array([[0.0, 0.0], [1.0, 0.5], [0.5, 1.0]])
    _, records = step_of(Options(diagonal="biased"), gram_of(gradients))
    assert records["alignment"][0, 0] == 0
    assert records["alpha"][0, 0] < 1 / 3


# ---- small models on planted domains ----


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def trained(sources, options, steps=60):
    """Records of a run on sources, and the model."""
    names = tuple(f"d{k}" for k in range(len(sources)))
    records, who = new_records(steps, len(names)), roles_of(names, options)
    settings = replace(TRAIN, steps=steps)
    rate = partial(rate_at, options=settings)
    weigh = mirror_descent(options, who, records, rate, peak_rate(settings))
    backward = aligned(options, Slots(options, names, 0), roles_of(names, options), weigh)
    model = train(
        settings, sampler(sources, 5), mean_loss, backward=backward, records=records
    ).model
    return records, model


@pytest.fixture(scope="module")
def planted():
    """A domain that is soon learnt, another twice, and noise."""
    return trained((EASY, LOOSE, LOOSE, NOISE), Options())[0]


def test_t3_noise_gets_the_least(planted):
    assert planted["alpha"][-1].argmin() == 3
    late = planted["alignment"][-20:].mean(axis=0)
    assert late[3] < late[1:3].min()


@pytest.mark.parametrize("variant", ["paper", "official"])
def test_a_replay_of_what_a_run_recorded_is_its_trajectory(variant):
    options, sources = Options(variant=variant, target=("d2",)), (EASY, LOOSE, NOISE)
    records, _ = trained(sources, options, steps=8)
    who, settings = roles_of(("d0", "d1", "d2"), options), replace(TRAIN, steps=8)
    rates = np.array([rate_at(step, settings) for step in range(8)])
    sizes = rates / damping(options, peak_rate(settings), 1)
    path = replay(records["alignment"], sizes, (records["present"] > 0) & who.trained, who)
    assert path == pytest.approx(records["alpha"], abs=1e-12)
    assert np.ptp(path[:, 0]) > 1e-4


def test_t3_a_biased_diagonal_lifts_every_domain_by_its_gradients_noise(planted):
    biased = trained((EASY, LOOSE, LOOSE, NOISE), Options(diagonal="biased"))[0]
    gain = biased["alignment"][-20:] - planted["alignment"][-20:]
    assert (gain.mean(axis=0) > 0.05).all()


def test_t4_copies_of_a_domain_get_the_same_weight(planted):
    mean = planted["alpha"].mean(axis=0)
    assert abs(mean[1] - mean[2]) < 0.1 * mean[1]


@pytest.mark.parametrize("variant", ["paper", "official"])
def test_t14_other_numbers_for_the_domains_of_the_same_batches_permute_alpha(variant):
    options, order = Options(variant=variant), np.array([2, 0, 1])
    plain, other = (new_records(4, 3), new_records(4, 3))
    settings, batches = replace(TRAIN, steps=4), sampler((EASY, LOOSE, NOISE), 5)

    def renamed(step):
        return Batch(batches(step).tokens, order[batches(step).domain])

    for names, drawn, records in (
        (("e", "l", "n"), batches, plain),
        (("l", "n", "e"), renamed, other),
    ):
        weigh = mirror_descent(options, roles_of(names, options), records, lambda _: 1e-2, 1e-2)
        backward = aligned(options, Slots(options, names, 0), roles_of(names, options), weigh)
        train(settings, drawn, mean_loss, backward=backward, records=records)
    assert other["alpha"][:, order] == pytest.approx(plain["alpha"], abs=1e-6)


@pytest.mark.parametrize("gradient", ["sgd", "adam"])
def test_recorded_products_are_those_of_explicit_gradients(gradient):
    options = Options(diagonal="biased", gradient=gradient, mu=0.1)
    sources, steps = (EASY, LOOSE), 2
    records, _ = trained(sources, options, steps)
    # The first step by hand; before it AdamW has no moments.
    model = Model(TRAIN.shape, TRAIN.vocab_size, TRAIN.seed)
    batch = sampler(sources, 5)(0)
    losses = batch_losses(model, batch)
    domain = torch.from_numpy(batch.domain)
    gradients = domain_grads_reference(model, losses, domain, 2).detach().double().numpy()
    expected = gradients @ gradients.sum(axis=0)
    assert records["alignment"][0] == pytest.approx(expected, rel=1e-4)
    if gradient == "adam":
        plain, _ = trained(sources, Options(diagonal="biased", mu=0.1), steps)
        assert records["alignment"][1] != pytest.approx(plain["alignment"][1], rel=0.5)


def test_options_are_checked():
    for bad in ({"mu": 0}, {"clip": 0.0}, {"diagonal": "x"}, {"target": "a"}, {"gradient": "sgdm"}):
        with pytest.raises(ValidationError):
            Options(**bad)
