import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from gram_models import DOMAINS, LENGTH, VOCAB, WEIGHTS, WIDTH, Decoder, batch, found, gradient
from half_gpu import multiply_half
from mixc_kernels import domain_pass, few_logits
from mixc_kernels.domain_grads import DomainGrads, domain_grads_reference
from mixc_kernels.few_logits import FewLogits
from mixc_kernels.linear_ce_torch import Terms
from torch import nn

from mixc.proxy.loss import token_losses
from mixc.proxy.model import Model
from mixc.proxy.presets import Shape

TESTS = Path(__file__).parent.parent


def relative(got, wanted):
    got, wanted = np.asarray(got), np.asarray(wanted)
    return np.linalg.norm(got - wanted) / np.linalg.norm(wanted)


def decoder(*args, dtype=torch.float64):
    return Decoder(*args).to(dtype)


def one_pass(model, tokens, domain, weights=WEIGHTS, domains=DOMAINS, **options):
    max_norm = options.pop("max_norm", None)
    with DomainGrads(model, domain, domains, **options) as grads:
        losses = model(tokens)
    return grads.backward(losses, weights, max_norm=max_norm)


def explicit(model, tokens, domain, domains=DOMAINS):
    return domain_grads_reference(model, model(tokens), domain, domains).double().numpy()


KINDS = [(t, n, b) for t in (False, True) for n in ("layer", "rms") for b in (False, True)]


@pytest.mark.parametrize(("tied", "norm", "bias"), KINDS)
def test_one_pass_gives_what_a_pass_for_each_domain_gives(tied, norm, bias):
    model, (tokens, domain) = decoder(tied, norm, bias), batch(9)
    each = explicit(model, tokens, domain)
    gram = one_pass(model, tokens, domain)
    assert relative(gram.products, each @ each.T) < 1e-12
    assert relative(gram.norms, np.linalg.norm(each, axis=1)) < 1e-12
    assert gram.tokens.tolist() == (np.bincount(domain, minlength=DOMAINS) * LENGTH).tolist()
    assert relative(gradient(model), WEIGHTS @ each) < 1e-12


TERMS = {"z_loss": 0.1, "label_smoothing": 0.2, "ignore_index": 3}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("few", [False, True])
@pytest.mark.parametrize("block_bytes", [1, 1 << 20])
@pytest.mark.parametrize("terms", [{}, TERMS, {"softcap": 2.0, **TERMS}, {"n_vocab": 19}])
def test_a_head_whose_logits_nobody_keeps(tied, few, block_bytes, terms, monkeypatch):
    """Or, if there are few of them, which are kept."""
    if not few:
        monkeypatch.setattr(few_logits, "few_bytes", lambda _: 0)
    tokens, domain = batch(9)
    tokens = tokens % terms.get("n_vocab", VOCAB)
    model = decoder(tied, "layer", False, {"mode": "naive", **terms})
    each = explicit(model, tokens, domain)
    model.fused = terms  # by the operator, which the naive mode is without
    gram = one_pass(model, tokens, domain, block_bytes=block_bytes)
    assert relative(gram.products, each @ each.T) < 1e-12
    assert relative(gradient(model), WEIGHTS @ each) < 1e-12
    one_pass(model, tokens, domain, lambda gram: WEIGHTS, keep_bytes=0)
    assert relative(gradient(model), WEIGHTS @ each) < 1e-12


def test_few_logits_are_within_the_budget():
    x, weight, terms = torch.zeros(8, 4), torch.zeros(32, 4), Terms(32)
    assert FewLogits.fits(x, weight, terms, 8 * 32 * 4)
    assert not FewLogits.fits(x, weight, terms, 8 * 32 * 4 - 1)
    assert not FewLogits.fits(x, weight, Terms(32, softcap=1.0), 1 << 20)
    assert not FewLogits.fits(x.bfloat16(), weight, terms, 1 << 20)
    for rows, few in ((1 << 16, True), ((1 << 16) + 1, False)):  # 256 MiB, whatever the budget
        assert few == FewLogits.fits(torch.zeros(rows, 1), torch.zeros(1024, 1), terms, 1 << 40)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("max_norm", [None, 1e9])  # with one, the mix comes after the products
@pytest.mark.parametrize("keep_bytes", [0, 1 << 20])
def test_under_autocast_products_and_mixes_stay_float32(tied, max_norm, keep_bytes):
    """As in a step of the proxy, where all runs in bfloat16 that autocast finds."""
    model, (tokens, domain) = Decoder(tied, "rms", False, {"n_vocab": VOCAB}), batch(9)
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(tokens)
    each = domain_grads_reference(model, losses, domain, DOMAINS).double().numpy()
    with torch.autocast("cpu", torch.bfloat16):
        gram = one_pass(model, tokens, domain, max_norm=max_norm, keep_bytes=keep_bytes)
    assert relative(gram.products, each @ each.T) < 1e-2  # weights' own are bfloat16 in torch
    assert relative(gradient(model), WEIGHTS @ each) < 1e-2
    grads = DomainGrads(model, domain, DOMAINS, keep_bytes=keep_bytes)
    with grads, torch.autocast("cpu", torch.bfloat16):
        losses = model(tokens)
    outside = grads.backward(losses, WEIGHTS, max_norm=max_norm)
    assert np.array_equal(gram.products, outside.products)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("keep_bytes", [0, 1 << 20])
def test_products_of_half_precision_as_on_a_gpu(tied, keep_bytes, monkeypatch):
    model, (tokens, domain) = Decoder(tied, "rms", False, {"n_vocab": VOCAB}), batch(9)
    monkeypatch.setattr(few_logits, "few_bytes", lambda _: 0)  # the head's products, too
    weights = lambda gram: WEIGHTS  # noqa: E731
    found = []
    for half in (False, True):
        with monkeypatch.context() as patch:
            if half:
                multiply_half(patch, domain_pass)
            grads = DomainGrads(model, domain, DOMAINS, keep_bytes=keep_bytes)
            with grads, torch.autocast("cpu", torch.bfloat16):
                losses = model(tokens)
            found.append((grads.backward(losses, weights).products, gradient(model)))
    (products, mixed), (half_products, half_mixed) = found
    assert 0 < relative(half_products, products) < 2e-2
    assert 0 < relative(half_mixed, mixed) < 1e-2


@pytest.mark.parametrize("rows", [1, 2, 3, 8])
@pytest.mark.parametrize("block_bytes", [1, 1000, 1 << 20])
def test_blocks_and_rows_change_nothing(rows, block_bytes):
    model, (tokens, domain) = decoder(True, "layer", True), batch(rows)
    each = explicit(model, tokens, domain)
    gram = one_pass(model, tokens, domain, block_bytes=block_bytes)
    assert relative(gram.products, each @ each.T) < 1e-12
    assert np.allclose(gradient(model), WEIGHTS @ each, rtol=0, atol=1e-12)


def test_an_absent_domain_has_zeros():
    model, (tokens, _) = decoder(), batch(5)
    domain = torch.tensor([3, 0, 3, 0, 0])
    gram = one_pass(model, tokens, domain)
    assert gram.present.tolist() == [True, False, False, True]
    assert not gram.products[1:3].any() and not gram.products[:, 1:3].any()
    assert not gram.norms[1:3].any() and gram.products[0, 3] != 0


def test_targets_are_domains_without_weight():
    """Two domains to mix, and validation rows, one of one target and three of another."""
    model, (tokens, _) = decoder(True), batch(8)
    domain = torch.tensor([2, 0, 1, 3, 0, 3, 1, 3])
    gram = one_pass(model, tokens, domain, np.array([0.3, 0.7, 0, 0]))
    each = explicit(model, tokens, domain)
    assert relative(gram.products[:2, 2:], each[:2] @ each[2:].T) < 1e-12
    mixed = gradient(model)
    train = domain < 2
    one_pass(model, tokens[train], domain[train], np.array([0.3, 0.7]), domains=2)
    assert relative(mixed, gradient(model)) < 1e-12


@pytest.mark.parametrize("keep_bytes", [0, 1 << 20])
@pytest.mark.parametrize("tied", [False, True])
def test_weights_that_the_products_give(keep_bytes, tied):
    model, (tokens, domain) = decoder(tied, "layer", True), batch(9)
    each = explicit(model, tokens, domain)
    seen = []

    def weights(gram):
        seen.append(gram)
        return gram.products.sum(axis=0)

    gram = one_pass(model, tokens, domain, weights, keep_bytes=keep_bytes, block_bytes=1000)
    assert seen == [gram]
    assert relative(gradient(model), (each @ each.T).sum(axis=0) @ each) < 1e-12


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("keep_bytes", [0, 1 << 20])
def test_each_gradient_is_clipped(keep_bytes, late):
    model, (tokens, domain) = decoder(), batch(9)
    each = explicit(model, tokens, domain)
    norms = np.linalg.norm(each, axis=1)
    max_norm = float(np.median(norms))
    clipped = each * np.minimum(1, max_norm / norms)[:, None]
    weights = (lambda gram: WEIGHTS) if late else WEIGHTS
    options = {"keep_bytes": keep_bytes, "max_norm": max_norm}
    gram = one_pass(model, tokens, domain, weights, **options)
    assert relative(gram.products, clipped @ clipped.T) < 1e-12
    assert relative(gram.norms, norms) < 1e-12
    assert relative(gradient(model), WEIGHTS @ clipped) < 1e-12


@pytest.mark.parametrize("tied", [False, True])
def test_products_with_a_preconditioner(tied):
    model, (tokens, domain) = decoder(tied, "rms", True), batch(9)
    rng = np.random.default_rng(2)
    scales = {p: torch.from_numpy(rng.uniform(0.1, 9, p.shape)) for p in model.parameters()}
    each = explicit(model, tokens, domain)
    flat = torch.cat([scale.flatten() for scale in scales.values()]).numpy()
    gram = one_pass(model, tokens, domain, precondition=scales, block_bytes=1000)
    assert relative(gram.products, (each * flat) @ each.T) < 1e-12
    assert relative(gram.norms, np.linalg.norm(each, axis=1)) < 1e-12
    assert relative(gradient(model), WEIGHTS @ each) < 1e-12


def test_two_ranks_are_as_one(tmp_path):
    line = [sys.executable, str(TESTS / "gram_models.py")]
    ends = [str(2), str(tmp_path / "ranks")]
    running = [
        subprocess.Popen([*line, str(rank), *ends], stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    lines = [process.communicate(timeout=120)[0].splitlines() for process in running]
    assert lines[0] == lines[1]
    for line, tied in zip(lines[0], (False, True), strict=True):
        wanted = found(Decoder(tied, "layer", True), *batch(8))
        for name, ours in json.loads(line).items():
            for got, one in zip(ours, wanted[name], strict=True):
                assert relative(got, one) < 1e-6, name


def proxy_losses(model, tokens):
    return token_losses(model(tokens[:, :-1]), model.head, tokens[:, 1:], model.vocab)


@pytest.mark.parametrize(("dtype", "most"), [(torch.float64, 1e-12), (torch.float32, 5e-6)])
@pytest.mark.parametrize("ordered", [False, True])
def test_the_proxy(dtype, most, ordered, monkeypatch):
    if dtype == torch.float64:
        monkeypatch.setattr(torch.Tensor, "float", lambda x: x)  # logits stay in float64
    domains, rng = 7, np.random.default_rng(0)
    model = Model(Shape(2, 64, 2, 192), 512, seed=0).to(dtype)
    tokens = torch.from_numpy(rng.integers(512, size=(21, 33)))
    domain = torch.from_numpy(np.arange(21) % domains)
    domain = domain.sort().values if ordered else domain
    each = domain_grads_reference(model, proxy_losses(model, tokens), domain, domains)
    each = each.double().numpy()
    with DomainGrads(model, domain, domains) as grads:
        losses = proxy_losses(model, tokens)
    weights = np.arange(1.0, 8)
    gram = grads.backward(losses, weights)
    assert relative(gram.products, each @ each.T) < most
    assert relative(gradient(model), weights @ each) < most


class Misuse(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.how = how
        self.embedding = nn.Embedding(VOCAB, WIDTH, padding_idx=0 if how == "padding" else None)
        self.weight = nn.Parameter(torch.full((VOCAB, WIDTH), 0.1))
        self.gain = nn.Parameter(torch.ones(WIDTH))

    def forward(self, tokens):
        x = self.embedding(tokens[:, :-1])
        if self.how == "gain":
            x = x * self.gain
        weight = self.weight[:] if self.how == "view" else self.weight
        logits = x @ weight.T if self.how == "matmul" else F.linear(x, weight)
        if self.how == "twice":
            logits = logits + (x @ weight.T)
        return F.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")


@pytest.mark.parametrize(
    ("how", "name"),
    [
        ("gain", "gain"),
        ("view", "weight"),
        ("matmul", "weight"),
        ("twice", "weight"),
        ("padding", "embedding.weight"),
    ],
)
def test_a_use_that_is_not_understood_is_an_error(how, name):
    model = Misuse(how)
    with pytest.raises(ValueError, match=f"^{name} is used in a way"):
        one_pass(model, *batch(4))
    assert all(p.grad is None for p in model.parameters())


def test_what_was_read_must_not_change():
    model = nn.Linear(WIDTH, VOCAB)
    x, domain = torch.ones(2, LENGTH, WIDTH), torch.tensor([0, 1])
    with DomainGrads(model, domain, 2) as grads:
        losses = model(x).square().mean(-1)
    x.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        grads.backward(losses, np.ones(2))


@pytest.mark.parametrize("shape", [(LENGTH, 3, WIDTH), (LENGTH, WIDTH), (3, WIDTH)])
def test_layers_that_read_other_than_the_batchs_rows(shape):
    model = nn.Linear(WIDTH, 1)
    with DomainGrads(model, torch.tensor([0, 1, 0]), 2) as grads:
        losses = model(torch.ones(shape)).mean() + torch.zeros(3, LENGTH)
    with pytest.raises(ValueError, match="rows"):
        grads.backward(losses, np.ones(2))


def test_a_position_embedding_belongs_to_no_row():
    model = nn.Embedding(LENGTH, WIDTH)
    with DomainGrads(model, torch.tensor([0, 1, 0]), 2) as grads:
        losses = model(torch.arange(LENGTH)).mean(-1).expand(3, LENGTH)
    with pytest.raises(ValueError, match="rows"):
        grads.backward(losses, np.ones(2))


def test_wrong_domains_and_losses_are_refused():
    model, (tokens, domain) = decoder(), batch(4)
    for wrong in (domain - 4, domain + 4):
        with pytest.raises(ValueError, match="a domain is not in"):
            DomainGrads(model, wrong, DOMAINS)
    with DomainGrads(model, domain, DOMAINS) as grads:
        losses = model(tokens)
    for wrong in (losses.flatten(), losses[:2], losses.mean()):
        with pytest.raises(ValueError, match="are not"):
            grads.backward(wrong, WEIGHTS)


def test_frozen_and_unused_parameters_get_no_gradient():
    model, (tokens, domain) = decoder(False, "layer", True), batch(6)
    model.spare = nn.Linear(2, 2)
    frozen = model.qkv[0].weight
    frozen.requires_grad_(False)
    model.spare.weight.grad = torch.ones(2, 2)
    one_pass(model, tokens, domain)
    assert frozen.grad is None and model.spare.weight.grad is None
    mixed = gradient(model)
    frozen.requires_grad_(True)
    each = explicit(model, tokens, domain)
    counts = np.cumsum([0] + [p.numel() for p in model.parameters()])
    place = [p is frozen for p in model.parameters()].index(True)
    wanted = WEIGHTS @ each
    wanted[counts[place] : counts[place + 1]] = 0
    assert relative(mixed, wanted) < 1e-12


def test_a_use_without_bearing_on_the_losses():
    model, (tokens, domain) = decoder(True), batch(6)
    each = explicit(model, tokens, domain)
    with DomainGrads(model, domain, DOMAINS) as grads:
        losses = model(tokens)
        model(tokens.flip(0))
    gram = grads.backward(losses, WEIGHTS)
    assert relative(gram.products, each @ each.T) < 1e-12
    assert relative(gradient(model), WEIGHTS @ each) < 1e-12


def test_forward_passes_outside_are_untouched():
    model, (tokens, domain) = decoder(), batch(6)
    before = model(tokens)
    with DomainGrads(model, domain, DOMAINS):
        inside = model(tokens)
    assert torch.equal(inside, before)
    model(tokens).mean().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_bias_of_one_number_for_all_is_refused():
    model = nn.Linear(WIDTH, VOCAB, bias=False)
    model.shared = nn.Parameter(torch.ones(1))
    with DomainGrads(model, torch.tensor([0, 1]), 2) as grads:
        losses = F.linear(torch.ones(2, LENGTH, WIDTH), model.weight, model.shared).mean(-1)
    with pytest.raises(ValueError, match="were added to"):
        grads.backward(losses, np.ones(2))


def test_halves_are_not_of_several_ranks():
    model, (_, domain) = decoder(), batch(4)
    with pytest.raises(ValueError, match="ranks know but their own"):
        DomainGrads(model, domain, DOMAINS, halves=True, group=object())
