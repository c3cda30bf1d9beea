import numpy as np
import pytest
import torch
from gram_models import DOMAINS, Decoder, batch, gradient
from hypothesis import given, settings
from hypothesis import strategies as st
from mixc_kernels.domain_grads import DomainGrads, domain_grads_reference
from mixc_kernels.domain_gram import (
    DomainGram,
    clip_factors,
    gram_flops,
    split_halves,
    unbiased_squares,
)
from mixc_kernels.room import Buffers
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode


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
    assert np.array_equal(halves // 2, domain)
    first, second = np.bincount(halves, minlength=8).reshape(4, 2).T
    assert set((first - second).tolist()) <= {0, 1}
    ordered = np.sort(domain)
    assert np.array_equal(split_halves(ordered, 4), np.sort(halves))


ROWS = [0, 0, 1, 1, 1, 3, 0, 1, 0, 1, 0, 0]  # none of domain 2, one of 3
WEIGHTS = np.array([0.2, 0.3, 0.4, 0.1])


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("fused", [None, {}, {"softcap": 2.0}])
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(
    ("block_bytes", "keep_bytes"), [(1, 0), (1000, 1 << 20), (1 << 20, 1 << 20)]
)
def test_products_of_halves(tied, fused, late, block_bytes, keep_bytes):
    tokens, domain = batch(len(ROWS))
    domain = domain.new_tensor(ROWS)
    model = Decoder(tied, "layer", True, fused).double()
    each, half = explicit(model, tokens, domain)
    wanted = each @ each.T
    np.fill_diagonal(wanted, [half[0] @ half[1], half[2] @ half[3], 0, np.nan])
    options = {"block_bytes": block_bytes, "keep_bytes": keep_bytes, "halves": True}
    with DomainGrads(model, domain, DOMAINS, **options) as grads:
        losses = model(tokens)
    gram = grads.backward(losses, (lambda _: WEIGHTS) if late else WEIGHTS)
    np.testing.assert_allclose(gram.products, wanted, rtol=1e-10)
    np.testing.assert_allclose(gram.norms, np.linalg.norm(each, axis=1), rtol=1e-10)
    assert gram.tokens.tolist() == [30, 25, 0, 5]
    np.testing.assert_allclose(gradient(model).numpy(), WEIGHTS @ each, atol=1e-12)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
def test_products_with_a_sum_of_gradients(tied, halves, scaled):
    tokens, domain = batch(len(ROWS))
    domain, toward = domain.new_tensor(ROWS), np.array([0.5, 1.0, 2.0, 1.5])
    model, rng = Decoder(tied, "rms", True).double(), np.random.default_rng(2)
    scales = {p: torch.from_numpy(rng.uniform(0.1, 9, p.shape)) for p in model.parameters()}
    scale = torch.cat([one.flatten() for one in scales.values()]).numpy() if scaled else 1.0
    each, half = explicit(model, tokens, domain)
    products = (each * scale) @ each.T
    if halves:
        own = [(half[0] * scale) @ half[1], (half[2] * scale) @ half[3], 0, 0]
        np.fill_diagonal(products, own)
    with DomainGrads(
        model,
        domain,
        DOMAINS,
        toward=toward,
        halves=halves,
        precondition=scales if scaled else None,
        block_bytes=1000,
    ) as grads:
        losses = model(tokens)
    gram = grads.backward(losses, WEIGHTS)
    np.testing.assert_allclose(gram.products, products @ toward, rtol=1e-10)
    np.testing.assert_allclose(gram.norms, np.linalg.norm(each, axis=1), rtol=1e-10)
    with pytest.raises(ValueError, match="clipped"):
        gram.clipped(1.0)


@pytest.mark.parametrize("late", [False, True])
def test_buffers_of_an_earlier_pass_change_nothing(late):
    model, buffers, before = Decoder(True, "layer", True).double(), Buffers(), None
    for rows in (9, 5, 12):
        tokens, domain = batch(rows, seed=rows)
        found = []
        for kept in (None, buffers):
            with DomainGrads(model, domain, DOMAINS, halves=True, buffers=kept) as grads:
                losses = model(tokens)
            gram = grads.backward(losses, (lambda _: WEIGHTS) if late else WEIGHTS)
            found.append((gram.products, gradient(model).numpy()))
        assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(*found, strict=True))
        if before is not None:  # what a pass gave is not written by the next
            assert all(torch.equal(one, copy) for one, copy in before)
        before = [(p.grad, p.grad.clone()) for p in model.parameters()]


def test_buffers_grow_and_are_told_apart():
    buffers, like = Buffers(), torch.zeros(0)
    first = buffers.take("a", (2, 3), like)
    first.fill_(1.0)
    assert buffers.take("a", (3, 2), like).eq(1).all()
    assert buffers.take("a", (2,), like).data_ptr() == first.data_ptr()
    assert buffers.take("a", (7,), like).shape == (7,)
    others = [buffers.take("b", (2, 3), like), buffers.take("a", (2, 3), like.double())]
    assert others[1].dtype == torch.float64
    assert len({one.data_ptr() for one in (buffers.take("a", (2, 3), like), *others)}) == 3


def explicit(model, tokens, domain):
    """Gradients of the domains [K, P] and of their halves [2K, P], by a pass for each."""
    slot = domain.new_tensor(split_halves(domain.numpy(), DOMAINS))
    each = domain_grads_reference(model, model(tokens), domain, DOMAINS)
    half = domain_grads_reference(model, model(tokens), slot, 2 * DOMAINS)
    return each.double().numpy(), half.double().numpy()


def test_the_product_of_halves_is_unbiased():
    """Rows are means of noise about a known gradient: the plain diagonal is off by its variance."""
    rng, mean, rows = np.random.default_rng(0), np.array([0.3, -0.2]), 4
    plain, across = [], []
    for _ in range(4000):
        each = mean + rng.normal(size=(rows, 2))
        whole = each.mean(axis=0)
        a, b = each[:2].sum(axis=0) / rows, each[2:].sum(axis=0) / rows
        across.append(unbiased_squares(np.array([a @ b]), np.array([2, 2]))[0])
        plain.append(whole @ whole)
    truth = np.square(mean).sum()
    assert np.mean(across) == pytest.approx(truth, abs=0.05)
    assert np.mean(plain) == pytest.approx(truth + 2 / rows, abs=0.05)


class Operations(TorchDispatchMode):
    """Counts floating-point operations, but for the products that make gradients (baddbmm)."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in {"mm", "bmm"}:
            self.count += 2 * args[0].numel() * args[1].shape[-1]
        elif name == "linalg_vector_norm":
            self.count += 2 * args[0].numel()
        elif name in {"add", "mul", "mul_", "sum"}:
            self.count += args[0].numel()
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("domains", [3, 8])
@pytest.mark.parametrize("toward", [False, True])
@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize("precondition", [False, True])
def test_operations_are_those_that_torch_makes(domains, toward, halves, precondition):
    model = nn.Linear(200, 200, bias=False)
    domain, numbers = torch.arange(2 * domains) // 2, model.weight.numel()
    with DomainGrads(
        model,
        domain,
        domains,
        toward=np.ones(domains) if toward else None,
        halves=halves,
        precondition={model.weight: torch.rand(200, 200)} if precondition else None,
    ) as grads:
        losses = model(torch.randn(2 * domains, 1, 200)).square().mean(-1)
    with Operations() as made:
        grads.backward(losses, np.ones(domains))
    told = gram_flops(domains, numbers, toward=toward, halves=halves, precondition=precondition)
    room = 5 * domains * numbers if precondition else 0
    assert 0.99 * made.count <= told <= made.count + room
