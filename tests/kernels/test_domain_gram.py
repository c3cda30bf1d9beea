import numpy as np
import pytest
from gram_models import DOMAINS, Decoder, batch
from hypothesis import given, settings
from hypothesis import strategies as st
from mixc_kernels.domain_grads import DomainGrads, domain_grads_reference
from mixc_kernels.domain_gram import (
    DomainGram,
    clip_factors,
    fold_halves,
    half_weights,
    split_halves,
)


def gram_of(grads, tokens):
    products = grads @ grads.T
    return DomainGram(products, np.sqrt(np.diag(products)), np.asarray(tokens))


@settings(deadline=None)
@given(st.lists(st.floats(0, 100), min_size=1, max_size=5), st.floats(0.01, 100))
def test_clipped_gradients_are_no_longer_than_asked(norms, most):
    factors = clip_factors(np.array(norms), most)
    assert np.all(factors * norms <= most * (1 + 1e-12))
    assert all(f == 1 for f, norm in zip(factors, norms, strict=True) if norm <= most)
    gram = gram_of(np.diag(norms), np.ones(len(norms), int)).clipped(most)
    assert np.allclose(np.sqrt(np.diag(gram.products)), factors * norms)
    assert np.allclose(gram.norms, norms)


@settings(deadline=None)
@given(st.lists(st.integers(0, 3), max_size=30))
def test_halves_differ_by_a_row_at_most(domain):
    domain = np.array(domain, np.int64)
    halves = split_halves(domain, 4)
    assert np.array_equal(halves % 4, domain)
    first, second = np.bincount(halves, minlength=8).reshape(2, 4)
    assert set((first - second).tolist()) <= {0, 1}


def test_halves_fold_to_the_domains():
    rows = 12
    tokens, domain = batch(rows)
    domain[:] = domain.new_tensor([0, 0, 1, 1, 1, 3, 0, 1, 0, 1, 0, 0])  # 2 absent, one row of 3
    model, weights = Decoder().double(), np.array([0.2, 0.3, 0.4, 0.1])
    halves = split_halves(domain.numpy(), DOMAINS)
    each = domain_grads_reference(model, model(tokens), domain, DOMAINS).double().numpy()
    half = domain_grads_reference(model, model(tokens), domain.new_tensor(halves), 2 * DOMAINS)
    half = half.double().numpy()
    with DomainGrads(model, domain.new_tensor(halves), 2 * DOMAINS) as grads:
        losses = model(tokens)
    gram = fold_halves(grads.backward(losses, half_weights(weights, halves)))
    wanted = each @ each.T
    np.fill_diagonal(wanted, [*(half[k] @ half[k + DOMAINS] for k in (0, 1)), 0, np.nan])
    np.testing.assert_allclose(gram.products, wanted, rtol=1e-10)
    np.testing.assert_allclose(gram.norms, np.linalg.norm(each, axis=1), rtol=1e-10)
    assert gram.tokens.tolist() == [30, 25, 0, 5]
    mixed = np.concatenate([p.grad.flatten().numpy() for p in model.parameters()])
    np.testing.assert_allclose(mixed, weights @ each, atol=1e-12)


def test_the_folded_diagonal_is_unbiased():
    """Rows are means of noise about a known gradient: the plain diagonal is off by its variance."""
    rng, mean, rows = np.random.default_rng(0), np.array([0.3, -0.2]), 4
    plain, folded = [], []
    for _ in range(4000):
        each = mean + rng.normal(size=(rows, 2))
        halves = np.stack([each[::2].mean(axis=0), each[1::2].mean(axis=0)])
        folded.append(fold_halves(gram_of(halves, [2, 2])).products[0, 0])
        plain.append(np.square(each.mean(axis=0)).sum())
    truth = np.square(mean).sum()
    assert np.mean(folded) == pytest.approx(truth, abs=0.05)
    assert np.mean(plain) == pytest.approx(truth + 2 / rows, abs=0.05)
