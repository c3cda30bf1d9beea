"""Gradients by domain in one pass on a GPU, beside a backward pass for each domain."""

import numpy as np
import pytest
import torch
from mixc_kernels.domain_grads import DomainGrads, domain_grads_reference

from mixc.proxy.device import computing_in
from mixc.proxy.loss import token_losses
from mixc.proxy.model import Model
from mixc.proxy.presets import Shape

DOMAINS, VOCAB = 5, 3000
WEIGHTS = np.array([0.1, 0.4, 0.0, 0.2, 0.3])


def relative(got, wanted):
    return np.linalg.norm(got - wanted) / np.linalg.norm(wanted)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(
    ("precision", "allowed"), [(torch.float32, 1e-4), (torch.bfloat16, 3e-2)], ids=["fp32", "bf16"]
)
def test_one_pass_gives_what_a_pass_for_each_domain_gives(precision, allowed, late):
    device = torch.device("cuda")
    model = Model(Shape(layers=2, width=128, heads=2, hidden=256), VOCAB, seed=0).to(device)
    rng = np.random.default_rng(0)
    tokens = torch.from_numpy(rng.integers(VOCAB, size=(16, 65))).to(device)
    domain = torch.from_numpy(rng.permutation(np.arange(16) % DOMAINS)).to(device)

    def losses(kind):
        with computing_in(kind, device):
            hidden = model(tokens[:, :-1])
            return token_losses(hidden, model.head, tokens[:, 1:], VOCAB)

    each = domain_grads_reference(model, losses(torch.float32), domain, DOMAINS)
    each = each.double().cpu().numpy()
    with DomainGrads(model, domain, DOMAINS) as grads:
        found = losses(precision)
    gram = grads.backward(found, (lambda _: WEIGHTS) if late else WEIGHTS)
    assert relative(gram.products, each @ each.T) < allowed
    assert gram.tokens.tolist() == (64 * torch.bincount(domain)).tolist()
    mixed = torch.cat([weight.grad.flatten() for weight in model.parameters()])
    assert relative(mixed.double().cpu().numpy(), WEIGHTS @ each) < allowed
