import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from mixc.proxy import loss as loss_module
from mixc.proxy.loss import scored_losses, token_losses


@pytest.fixture
def case():
    rng = np.random.default_rng(0)
    hidden = torch.from_numpy(rng.normal(size=(3, 7, 8)).astype(np.float32))
    head = torch.from_numpy(rng.normal(size=(11, 8)).astype(np.float32))
    return hidden, head, torch.from_numpy(rng.integers(11, size=(3, 7))), 11


def test_losses_are_minus_the_log_of_the_softmax(case):
    hidden, head, targets, n_vocab = case
    logits = hidden.double() @ head.double().T
    log_p = logits.exp().div(logits.exp().sum(-1, keepdim=True)).log()
    expected = -log_p.gather(-1, targets[..., None])[..., 0]
    losses = token_losses(hidden, head, targets, n_vocab)
    assert losses.shape == targets.shape
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("columns", [1, 4, 10, 11, 100])
def test_chunks_change_nothing(case, columns, monkeypatch):
    whole = token_losses(*case)
    monkeypatch.setattr(loss_module, "_LOGITS_BYTES", columns * 21 * 4)
    with torch.no_grad():
        chunked = token_losses(*case)
    torch.testing.assert_close(chunked, whole, rtol=1e-6, atol=1e-6)


def test_the_cap_on_logits_holds(case, monkeypatch):
    seen, plain = [], torch.mm

    def spy(a, b, *, out):
        seen.append(tuple(out.shape))
        return plain(a, b, out=out)

    monkeypatch.setattr(loss_module, "_LOGITS_BYTES", 21 * 4 * 4)
    monkeypatch.setattr(torch, "mm", spy)
    with torch.no_grad():
        token_losses(*case)
    assert seen == [(21, 4), (21, 4), (21, 3)]


def test_gradients_are_those_of_cross_entropy(case):
    hidden, head, targets, n_vocab = case
    weights = torch.arange(21.0).view(3, 7)
    gradients = []
    for use_ours in (True, False):
        h, w = hidden.clone().requires_grad_(), head.clone().requires_grad_()
        if use_ours:
            losses = token_losses(h, w, targets, n_vocab)
        else:
            losses = F.cross_entropy((h @ w.T).transpose(1, 2), targets, reduction="none")
        gradients.append(torch.autograd.grad((losses * weights).sum(), (h, w)))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_autocast_rounds_hidden_states_and_nothing_else(case, monkeypatch):
    """Else the widest product of a step would be the only one in float32."""
    hidden, head, targets, n_vocab = case
    seen, plain = [], loss_module.fused_linear_ce

    def spy(*inputs, **options):
        seen.extend(one.dtype for one in inputs[:2])
        return plain(*inputs, **options)

    monkeypatch.setattr(loss_module, "fused_linear_ce", spy)
    h, w = hidden.clone().requires_grad_(), head.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        losses = token_losses(h, w, targets, n_vocab)
    assert seen == [torch.bfloat16, torch.float32]
    assert torch.equal(losses, token_losses(hidden.bfloat16(), head, targets, n_vocab))
    losses.sum().backward()
    rounded = hidden.bfloat16().float()
    wanted = torch.autograd.grad(token_losses(rounded, w, targets, n_vocab).sum(), w)[0]
    assert torch.equal(w.grad, wanted)
    assert h.grad.dtype == torch.float32


@pytest.mark.parametrize("recorded", [True, False])
def test_padding_of_the_head_counts_for_nothing(case, recorded):
    hidden, head, targets, n_vocab = case
    padded = torch.cat([head, torch.full((5, 8), 3.0)]).requires_grad_()
    with torch.set_grad_enabled(recorded):
        losses = token_losses(hidden, padded, targets, n_vocab)
    torch.testing.assert_close(losses, token_losses(*case), rtol=1e-6, atol=1e-6)
    if recorded:
        losses.sum().backward()
        assert padded.grad[:n_vocab].abs().sum(dim=1).min() > 0
        assert not padded.grad[n_vocab:].any()


@pytest.mark.parametrize("halved", [False, True])
def test_losses_without_gradients_are_the_same_to_the_bit(case, halved):
    hidden, head, targets, n_vocab = case
    padded = torch.cat([head, torch.full((5, 8), 3.0)]).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=halved):
        scored = scored_losses(hidden, padded, targets, n_vocab)
        assert torch.equal(scored, token_losses(hidden, padded, targets, n_vocab))
    assert not scored.requires_grad
