import numpy as np
import pytest
import torch
from gram_models import LENGTH, Decoder, batch
from mixc_kernels.grad_dot import grad_dot, grad_dot_reference

from mixc.proxy.loss import token_losses
from mixc.proxy.model import Model
from mixc.proxy.presets import Shape


def direction_of(model, seed=0, names=None):
    rng = np.random.default_rng(seed)
    return {
        name: torch.from_numpy(rng.normal(size=p.shape)).to(p.dtype)
        for name, p in model.named_parameters()
        if names is None or name in names
    }


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("norm", ["layer", "rms"])
@pytest.mark.parametrize("names", [None, {"embedding.weight"}, {"norms.1.weight", "qkv.0.bias"}])
@pytest.mark.parametrize("rows", [1, 3])
def test_each_tokens_product_is_that_of_its_own_gradient(tied, norm, names, rows):
    model, (tokens, _) = Decoder(tied, norm, True).double(), batch(rows)
    direction = direction_of(model, names=names)
    found = grad_dot(model, lambda m: m(tokens), direction)
    wanted = grad_dot_reference(model, lambda m: m(tokens), direction)
    assert found.shape == (rows, LENGTH) and not found.requires_grad
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12 * wanted.abs().max().item())
    assert all(p.grad is None for p in model.parameters())


def test_the_proxy_with_the_gradient_of_a_validation_batch():
    model = Model(Shape(2, 32, 2, 96), 64, seed=0)
    tokens = torch.from_numpy(np.random.default_rng(0).integers(64, size=(4, 9)))

    def losses(m, chosen=tokens[:3]):
        return token_losses(m(chosen[:, :-1]), m.head, chosen[:, 1:], m.vocab)

    losses(model, tokens[3:]).mean().backward()
    direction = {name: p.grad for name, p in model.named_parameters()}
    found = grad_dot(model, losses, direction)
    wanted = grad_dot_reference(model, losses, direction)
    assert (found - wanted).norm() < 1e-5 * wanted.norm()


@pytest.mark.parametrize("budget", [1, 1 << 20])
@pytest.mark.parametrize("terms", [{}, {"softcap": 2.0, "z_loss": 0.1, "label_smoothing": 0.2}])
def test_losses_whose_logits_nobody_keeps(budget, terms):
    model, (tokens, _) = Decoder(False, "rms", False, {"mode": "naive", **terms}).double(), batch(3)
    direction = direction_of(model)
    wanted = grad_dot_reference(model, lambda m: m(tokens), direction)
    model.fused = {"budget_bytes": budget, **terms}
    found = grad_dot(model, lambda m: m(tokens), direction)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12 * wanted.abs().max().item())


def test_an_operator_without_forward_derivative_is_refused():
    model, (tokens, _) = Decoder(), batch(3)
    weighted = torch.ones(tokens[:, 1:].numel())
    model.fused = {"mode": "hybrid", "token_weight": weighted}
    with pytest.raises(TypeError, match="linear_ce_weighted"):
        grad_dot(model, lambda m: m(tokens), direction_of(model))


def test_directions_that_are_not_the_models():
    model, (tokens, _) = Decoder(), batch(2)
    for wrong in ({"nothing": torch.ones(1)}, {"head.weight": torch.ones(2, 2)}):
        with pytest.raises(ValueError, match="no parameters"):
            grad_dot(model, lambda m: m(tokens), wrong)
    assert not grad_dot(model, lambda m: m(tokens), {}).any()
