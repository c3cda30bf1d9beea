import numpy as np
import pytest
import torch

from mixc.proxy.adam import adam_scale
from mixc.proxy.checkpoint import State


def test_the_scale_falls_with_the_root_of_the_second_moment():
    model = torch.nn.Linear(2, 2, bias=False)
    optimiser = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.5), lr=0.0)
    state = State(model, optimiser, {}, np.zeros(1))
    assert (adam_scale(state)[model.weight] == 1).all()
    model.weight.grad = torch.tensor([[3.0, 4.0], [0.0, 1.0]])
    optimiser.step()
    root = np.sqrt(0.5) * np.array([[3.0, 4.0], [0.0, 1.0]])
    found = adam_scale(state)[model.weight].numpy()
    assert found == pytest.approx(root.mean() / (root + root.mean()))
    assert found.max() == pytest.approx(1)  # of a weight without a gradient
