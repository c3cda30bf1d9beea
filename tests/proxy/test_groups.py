import numpy as np
import pytest
import torch

from mixc.proxy.groups import parameter_groups
from mixc.proxy.loss import token_losses
from mixc.proxy.model import Model
from mixc.proxy.presets import LEARNING_RATE, PRESETS, Shape, width_factor

VOCAB, WIDTHS = 64, (64, 128, 256, 512)


def shape_of(width):
    return Shape(layers=2, width=width, heads=width // 32, hidden=2 * width)


def test_every_weight_is_in_one_group():
    model = Model(shape_of(192), VOCAB, seed=0)
    inner, embedding, norms = parameter_groups(model, weight_decay=0.1)
    names = {id(weight): name for name, weight in model.named_parameters()}
    found = [names[id(weight)] for group in (inner, embedding, norms) for weight in group["params"]]
    assert sorted(found) == sorted(names.values())
    assert [names[id(weight)] for weight in embedding["params"]] == ["embedding"]
    assert all(weight.ndim == 1 for weight in norms["params"])
    assert [g["rate_factor"] for g in (inner, embedding, norms)] == [0.5, 1.0, 1.0]
    for group in (inner, embedding):  # what fades in a step at rate 1
        assert group["rate_factor"] * group["weight_decay"] == pytest.approx(0.1)
    assert norms["weight_decay"] == 0.0


def test_nothing_is_scaled_up_to_width_96():
    assert width_factor(shape_of(64)) == width_factor(PRESETS["nano"]) == 1.0
    assert width_factor(PRESETS["large"]) == pytest.approx(1024 / 96)


def sizes_after_training(width, *, scaled):
    """Root mean squares of logits and of the blocks' outputs after four steps.

    Not `scaled`: the same initial scales and rates at any width, the standard parametrisation.
    """
    model = Model(shape_of(width), VOCAB, seed=0)
    groups = parameter_groups(model, weight_decay=0.1)
    factor = width_factor(model.shape)
    if not scaled:
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if weight.ndim > 1 and name != "embedding":
                    weight.mul_(factor if name == "head" else factor**0.5)
    optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.95))
    for group in optimiser.param_groups:
        group["lr"] = 2 * LEARNING_RATE * (group["rate_factor"] if scaled else 1.0)
    tokens = torch.from_numpy(np.random.default_rng(0).integers(VOCAB, size=(4, 33)))
    for _ in range(4):
        losses = token_losses(model(tokens[:, :-1]), model.head, tokens[:, 1:], VOCAB)
        optimiser.zero_grad()
        losses.mean().backward()
        optimiser.step()
    seen = []
    for block in model.blocks:
        block.register_forward_hook(lambda _, __, out: seen.append(out))
    with torch.no_grad():
        seen.append(model(tokens[:, :-1]) @ model.head.T)
    return np.array([one.square().mean().sqrt().item() for one in seen])


def test_activations_are_as_large_at_any_width():
    """The coordinate check of arXiv:2203.03466, appendix D.1."""
    scaled = np.array([sizes_after_training(width, scaled=True) for width in WIDTHS])
    assert (scaled.max(axis=0) / scaled.min(axis=0) < 2).all()
    standard = np.array([sizes_after_training(width, scaled=False) for width in WIDTHS])
    assert (standard[-1] / standard[0] > 5).all()
