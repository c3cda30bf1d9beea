"""Planted domains for tests of methods: Markov chains that a very small model learns in seconds."""

import numpy as np

from mixc.proxy.presets import Shape
from mixc.proxy.train import Batch, TrainOptions

LENGTH, OWN = 48, 16  # tokens of a row, and of a domain's own
TRAIN = TrainOptions(
    shape=Shape(layers=2, width=32, heads=2, hidden=96),
    vocab_size=64,
    seq_len=LENGTH,
    steps=100,
    learning_rate=1e-2,
    device="cpu",
)


def chain(place, order, successors):
    """Rows of a Markov chain whose states have `successors` equally likely next tokens."""
    seeded = np.random.default_rng(place)
    follows = np.stack([seeded.permutation(OWN)[:successors] for _ in range(OWN**order)])

    def rows(count, rng):
        tokens = rng.integers(OWN, size=(count, LENGTH + 1))
        choice = rng.integers(successors, size=tokens.shape)
        for t in range(order, LENGTH + 1):
            state = tokens[:, t - 1] + (OWN * tokens[:, t - 2] if order == 2 else 0)
            tokens[:, t] = follows[state, choice[:, t]]
        return tokens + OWN * place

    return rows


EASY, LOOSE, SECOND, NOISE = chain(0, 1, 2), chain(1, 1, 6), chain(2, 2, 2), chain(3, 1, OWN)


def sampler(sources, seed, rows=8, absent=lambda step, domain: False):
    def at(step):
        rng = np.random.default_rng((seed, step))
        drawn = [(k, make(rows, rng)) for k, make in enumerate(sources)]
        drawn = [(k, tokens) for k, tokens in drawn if not absent(step, k)]
        domain = np.repeat([k for k, _ in drawn], rows)
        return Batch(np.concatenate([tokens for _, tokens in drawn]), domain)

    return at
