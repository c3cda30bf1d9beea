"""A tiny model, and rows that it can learn."""

import numpy as np
import torch

from mixc.proxy.presets import Shape
from mixc.proxy.train import Batch, TrainOptions

VOCAB, LENGTH = 32, 32
OPTIONS = TrainOptions(
    shape=Shape(layers=2, width=32, heads=2, hidden=96),
    vocab_size=VOCAB,
    seq_len=LENGTH,
    steps=8,
    learning_rate=1e-2,
    device="cpu",
)


def chain(rows, length, rng):
    """A Markov chain with two equally likely successors a state: log 2 nats a token."""
    step = np.array([3, 7])
    tokens = np.empty((rows, length), dtype=np.int64)
    tokens[:, 0] = rng.integers(VOCAB, size=rows)
    for t in range(1, length):
        tokens[:, t] = (5 * tokens[:, t - 1] + step[rng.integers(2, size=rows)]) % VOCAB
    return tokens


def batches(step):
    rng = np.random.default_rng((1, step))
    return Batch(chain(16, LENGTH + 1, rng), np.zeros(16, dtype=np.int64))


def same_weights(a, b):
    a, b = a.state_dict(), b.state_dict()
    return all(torch.equal(a[name], b[name]) for name in a)
