import math

import numpy as np
import pytest
import torch

from mixc.proxy import evaluate
from mixc.proxy.evaluate import row_losses, stream_losses
from mixc.proxy.model import Model
from mixc.proxy.presets import Shape
from mixc.proxy.train import Batch, batch_losses

VOCAB = 32


@pytest.fixture(scope="module")
def model():
    model = Model(Shape(layers=1, width=32, heads=2, hidden=64), VOCAB, seed=0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(4)
    return model


def stream_of(length):
    return np.random.default_rng(length).integers(VOCAB, size=length)


def directly(model, stream, seq_len):
    """Each target by itself, from the tokens of its window before it."""
    total = 0.0
    for at in range(1, len(stream)):
        first = (at - 1) // seq_len * seq_len
        with torch.no_grad():
            hidden = model(torch.from_numpy(stream[None, first:at]))[0, -1]
        total -= (model.head[:VOCAB] @ hidden).double().log_softmax(0)[stream[at]].item()
    return total


@pytest.mark.parametrize("length", [0, 1, 2, 7, 8, 9, 10, 16, 17, 18, 50])
def test_equals_a_direct_computation(model, length):
    stream = stream_of(length)
    losses = stream_losses(model, stream, 8, "cpu")
    assert losses.dtype == np.float32
    assert len(losses) == max(0, length - 1)
    assert losses.sum(dtype=np.float64) == pytest.approx(
        directly(model, stream, 8), rel=1e-5, abs=1e-9
    )


@pytest.mark.parametrize("length", [1, 2, 99, 100, 101, 1234])
@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.int64])
def test_every_token_but_the_first_is_predicted_once(length, dtype):
    blank = Model(Shape(layers=1, width=8, heads=1, hidden=8), VOCAB, seed=0)
    with torch.no_grad():
        blank.head.zero_()  # log V for every prediction
    losses = stream_losses(blank, stream_of(length).astype(dtype), 10, "cpu")
    assert losses == pytest.approx(np.full(length - 1, math.log(VOCAB)))


def test_batches_change_nothing(model, monkeypatch):
    stream = stream_of(333)
    whole = stream_losses(model, stream, 8, "cpu")
    monkeypatch.setattr(evaluate, "_BATCH_TOKENS", 24)
    assert stream_losses(model, stream, 8, "cpu") == pytest.approx(whole, rel=1e-5)


def test_losses_of_rows_are_those_of_training(model):
    tokens = stream_of(45).reshape(5, 9)
    wanted = batch_losses(model, Batch(tokens, np.zeros(5, np.int64))).detach().numpy()
    assert np.array_equal(row_losses(model, tokens), wanted)
