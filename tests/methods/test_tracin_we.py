from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from method_worlds import EASY, LOOSE, NOISE, TRAIN, sampler
from mixc_kernels.domain_gram import DomainGram
from pydantic import ValidationError

from mixc.methods.tracin_we import (
    Options,
    checkpoint_steps,
    gram_of,
    influence,
    layer_names,
    mean_vote,
    percentiles,
    soft,
    target_gradient,
    token_influence,
)
from mixc.proxy.model import Model
from mixc.proxy.presets import Shape
from mixc.proxy.train import Batch, batch_losses, mean_loss, train

ALL = np.ones(3, bool)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# ---- the rules ----


def test_checkpoints_are_evenly_spaced_and_the_last_is_the_last_step():
    assert checkpoint_steps(100, 4).tolist() == [24, 49, 74, 99]
    assert checkpoint_steps(3, 5).tolist() == [0, 1, 2]


def test_influence_is_a_mean_over_targets_of_products_or_cosines():
    products = np.array([[4.0, 1.0, -2.0], [1.0, 9.0, 3.0], [-2.0, 3.0, np.nan]])
    gram = DomainGram(products, np.array([2.0, 3.0, 4.0]), np.array([1, 1, 1]))
    plain = Options(normalise=False)
    assert influence(gram, ALL, plain) == pytest.approx([1.0, 13 / 3, 0.5])
    cosines = [(1 + 1 / 6 - 2 / 8) / 3, (1 / 6 + 1 + 3 / 12) / 3, (-2 / 8 + 3 / 12) / 2]
    assert influence(gram, ALL, Options()) == pytest.approx(cosines)
    aimed = influence(gram, np.array([False, True, False]), plain)
    assert aimed == pytest.approx([1.0, 9.0, 3.0])
    absent = DomainGram(products, np.array([2.0, 3.0, 0.0]), np.array([1, 1, 0]))
    found = influence(absent, ALL, plain)
    assert np.isnan(found[2])
    assert found[:2] == pytest.approx([2.5, 5.0])


@given(arrays(float, (2, 6), elements=st.floats(-9, 9)))
def test_percentiles_follow_order_alone(values):
    found = percentiles(values)
    assert ((found > 0) & (found < 1)).all()
    assert found.mean(axis=1) == pytest.approx([0.5, 0.5])
    for row, ranks in zip(values, found, strict=True):
        assert (np.diff(ranks[np.argsort(row, kind="stable")]) >= 0).all()


def test_percentiles_and_votes_leave_out_what_is_not_known():
    assert percentiles(np.array([3.0, np.nan, 1.0]))[[0, 2]].tolist() == [0.75, 0.25]
    votes = np.array([[1.0, np.nan, np.nan], [3.0, 5.0, np.nan]])
    assert mean_vote(votes, np.array([3.0, 1.0])).tolist() == [1.5, 5.0, 0.0]


def test_weights_are_a_softmax_over_the_domains_trained_on():
    found = soft(np.array([0.2, 0.4, 9.0]), np.array([True, True, False]), 0.2)
    assert found == pytest.approx([1 / (1 + np.e), np.e / (1 + np.e), 0.0])
    assert soft(np.array([1.0, 2.0, 3.0]), ALL, 1e9) == pytest.approx([1 / 3] * 3)


# ---- T9: influence on a small model ----

SHAPE = Shape(layers=2, width=16, heads=2, hidden=32)


def model_and_batch(rows=4):
    """Three domains: the second has words of its own; the third is a copy of the first."""
    rng = np.random.default_rng(0)
    first = rng.integers(0, 12, (rows, 9))
    tokens = np.concatenate([first, rng.integers(12, 24, (rows, 9)), first])
    return Model(SHAPE, 24, 0), Batch(tokens, np.repeat([0, 1, 2], rows))


def test_t9_disjoint_words_have_no_influence_by_embeddings_but_have_by_other_layers():
    model, batch = model_and_batch()
    products = gram_of(model, "embedding", batch, 3).products
    assert products[0, 1] == products[1, 2] == 0.0
    assert products[0, 2] > 0
    assert gram_of(model, "middle", batch, 3).products[0, 1] != 0
    assert all(weight.requires_grad for weight in model.parameters())


@pytest.mark.parametrize("layer", ["embedding", "middle", "last", "all"])
def test_t9_a_step_on_a_domain_takes_its_influence_off_the_targets_loss(layer):
    model, batch = model_and_batch()
    model.double()
    aim = np.array([False, False, True])  # the copy of the first
    gradient = target_gradient(model, layer, [batch], aim)
    named = dict(model.named_parameters())
    expected = gram_of(model, layer, batch, 3).products[0, 2]

    def loss(domain):
        rows = batch.domain == domain
        return batch_losses(model, Batch(batch.tokens[rows], batch.domain[rows])).double().mean()

    weights = [named[name] for name in layer_names(model, layer)]
    own = torch.autograd.grad(loss(0), weights)
    before, size = loss(2).item(), 1e-2
    with torch.no_grad():
        for weight, grad in zip(weights, own, strict=True):
            weight -= size * grad
    change = (before - loss(2).item()) / size
    assert change == pytest.approx(expected, rel=0.02)
    exact = sum((a * gradient[n]).sum() for n, a in zip(gradient, own, strict=True))
    assert expected == pytest.approx(float(exact), rel=1e-5)


@pytest.mark.parametrize("layer", ["embedding", "all"])
def test_t9_a_documents_influence_is_that_of_its_tokens(layer):
    model, batch = model_and_batch()
    aim = target_gradient(model, layer, [batch], np.array([True, False, False]))
    lab = SimpleNamespace(vocabulary=SimpleNamespace(ids=np.arange(24)))
    tokens = token_influence(lab, model, aim, batch.tokens)
    assert tokens.shape == (12, 8)
    if layer == "embedding":
        assert not tokens[4:8].any()  # no word in common
    row = Batch(batch.tokens[5:6], batch.domain[5:6])
    names = layer_names(model, layer)
    weights = [dict(model.named_parameters())[name] for name in names]
    own = torch.autograd.grad(batch_losses(model, row).mean(), weights)
    exact = sum((grad * aim[name]).sum() for name, grad in zip(names, own, strict=True))
    assert tokens[5].mean() == pytest.approx(float(exact), rel=1e-4, abs=1e-9)


def test_t3_noise_has_no_influence_and_t4_copies_have_the_same():
    sources = (EASY, LOOSE, NOISE)
    batches = sampler(sources, 1)
    model = train(TRAIN, batches, mean_loss).model
    found = []
    for step in range(8):  # rows that it was not trained on, of the second domain twice
        drawn = sampler((EASY, LOOSE, LOOSE, NOISE), 7)(step)
        gram = gram_of(model, "all", drawn, 4)
        found.append(influence(gram, np.ones(4, bool), Options()))
    mean, error = np.mean(found, axis=0), np.std(found, axis=0) / np.sqrt(8)
    assert abs(mean[1] - mean[2]) < 3 * (error[1] + error[2])
    assert mean[3] < mean[1]


def test_options_are_checked():
    for bad in ({"layers": []}, {"layers": ["first"]}, {"checkpoints": 0}, {"temperature": 0}):
        with pytest.raises(ValidationError):
            Options(**bad)
    assert Options(layers=["embedding", "middle"]).layers == ("embedding", "middle")
