"""Where methods train and score small models, on the same rows that builds emit.

Torch is imported when the first model is trained, not before.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
from mixc_kernels.chairman import assign
from numpy.typing import NDArray

from mixc import progress
from mixc.build.counts import row_counts
from mixc.errors import MixcError
from mixc.recipe import Proxy
from mixc.rows.stream import DomainStream
from mixc.store.store import Store

if TYPE_CHECKING:
    from mixc.proxy.model import Model
    from mixc.proxy.train import Batch, Batches, TrainOptions

Weights = NDArray[np.float64]
OnStep = Callable[[str, int, float], None]


class Lab:
    """Small models on the domains of a store, under one set of proxy options."""

    def __init__(self, store: Store, options: Proxy, *, seed: int) -> None:
        self.store, self.options, self.seed = store, options, seed
        self.domains = tuple(store.domains)

    @property
    def batch_rows(self) -> int:
        """Rows of a batch."""
        return max(1, self.options.batch_tokens // self.options.seq_len)

    def train_options(self) -> TrainOptions:
        """The shared training loop's options for this store and these proxy options."""
        from mixc.proxy.presets import PRESETS
        from mixc.proxy.train import TrainOptions

        return TrainOptions(
            shape=PRESETS[self.options.preset],
            vocab_size=self.store.vocab_size,
            seq_len=self.options.seq_len - 1,
            steps=self.options.steps,
            learning_rate=self.options.learning_rate,
            device=self.options.device,
            seed=self.seed,
        )

    def batches(self, weights: Weights) -> Batches:
        """Batches in which every prefix of rows honours `weights` (Tijdeman), from the decks.

        A domain's rows come in the order of its deck, whatever the weights, so that runs under
        different weights see the same rows of a domain in the same order.
        """
        from mixc.proxy.train import Batch

        size = self.batch_rows
        rows = size * self.options.steps
        counts = row_counts(weights, rows, np.full(len(weights), rows))
        labels = assign(counts.rows)
        positions = _positions(labels, len(weights))
        streams = [self._stream(name) for name in self.domains]

        def batch(step: int) -> Batch:
            mine = labels[step * size : (step + 1) * size]
            tokens = np.empty((len(mine), self.options.seq_len), np.int64)
            for domain in np.unique(mine):
                place = np.flatnonzero(mine == domain)
                deck = streams[domain].deck(positions[step * size + place])
                tokens[place] = streams[domain].tokens(deck)
            return Batch(tokens, mine.astype(np.int64))

        return batch

    def _stream(self, domain: str) -> DomainStream:
        stream = DomainStream(self.store, domain, seq_len=self.options.seq_len, seed=self.seed)
        if stream.epoch_tokens == 0:
            raise MixcError(
                "MX051",
                f"domain '{domain}' has no token to train on: all of it is held out",
                help="give it more documents, or lower holdout.fraction",
            )
        return stream

    def bits_per_byte(self, model: Model) -> Weights:
        """The model's loss on each domain's holdout, in bits per UTF-8 byte of text, [K]."""
        from mixc.proxy.evaluate import domain_nats
        from mixc.proxy.train import pick_device

        device = pick_device(self.options.device)
        bits = np.full(len(self.domains), np.nan)
        streams = [self._held_stream(name) for name in self.domains]
        with progress.task("score holdout", sum(len(s) for s, _ in streams), "tokens") as bar:
            for i, (stream, size) in enumerate(streams):
                if size:
                    nats, _ = domain_nats(model, stream, self.options.seq_len - 1, device)
                    bits[i] = nats / np.log(2) / size
                bar.advance(len(stream))
        return bits

    def environment(self) -> dict[str, str]:
        """What training repeats to the bit under."""
        import torch

        from mixc.proxy.train import pick_device

        device = pick_device(self.options.device)
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
        return {
            "torch": torch.__version__,
            "device": f"{device.type} {name}",
            "threads": str(torch.get_num_threads()),
        }

    def _held_stream(self, domain: str) -> tuple[NDArray[np.int64], int]:
        """A domain's held-out documents end to end, and the UTF-8 bytes of their text."""
        held = list(self.store.held_out(domain))
        size = sum(int(one.n_bytes.sum(dtype=np.int64)) for one in held)
        # An end-of-text before the first token, so that it is predicted too.
        stream = np.concatenate([[self.store.eot_id], *(one.tokens for one in held)])
        return stream.astype(np.int64), size

    @contextmanager
    def progress(self, label: str, models: int) -> Iterator[OnStep]:
        """A bar over the training of `models` models."""
        tokens = self.batch_rows * (self.options.seq_len - 1)
        total = models * self.options.steps * tokens
        with progress.task(label, total, "tokens") as bar:
            yield lambda who, _, loss: bar.advance(tokens, f"{who} loss {loss:.3f}")


def _positions(labels: NDArray[np.uint16], domains: int) -> NDArray[np.int64]:
    """Where in its domain's deck each row stands: how many of its domain came before, int64[R]."""
    positions = np.empty(len(labels), np.int64)
    for domain in range(domains):
        mine = np.flatnonzero(labels == domain)
        positions[mine] = np.arange(len(mine))
    return positions
