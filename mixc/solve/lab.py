"""Where methods train and score small models, on the same rows that builds emit.

Torch is imported when the first model is trained, not before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from mixc_kernels.chairman import assign
from numpy.typing import NDArray

from mixc import progress
from mixc.build.counts import row_counts
from mixc.errors import MixcError
from mixc.recipe import Proxy
from mixc.rows.stream import DomainStream
from mixc.solve import runs
from mixc.solve.runs import MixRun
from mixc.solve.trainer import Trainer, environment
from mixc.store.hashes import key_of
from mixc.store.store import Store

if TYPE_CHECKING:
    from torch import Tensor

    from mixc.proxy.model import Model
    from mixc.proxy.train import (
        Backward,
        Batch,
        Batches,
        Objective,
        Records,
        Trained,
        TrainOptions,
    )

Weights = NDArray[np.float64]
_RUN_ALGORITHM = 1  # a change of what a run on a fixed mix comes to raises it


class Lab:
    """Small models on the domains of a store, under one set of proxy options.

    `staging` is where checkpoints go and `folder` where runs on fixed mixes are kept; without
    them nothing is written. `key` names what trainings depend on beside store and proxy options:
    the method and its options.
    """

    def __init__(
        self,
        store: Store,
        options: Proxy,
        *,
        seed: int,
        staging: Path | None = None,
        folder: Path | None = None,
        key: str = "",
    ) -> None:
        self.store, self.options, self.seed = store, options, seed
        self.staging, self.folder, self.key = staging, folder, key
        self.domains = tuple(store.domains)

    @property
    def batch_rows(self) -> int:
        """Rows of a batch."""
        return max(1, self.options.batch_tokens // self.options.seq_len)

    def train_options(self, **changes: Any) -> TrainOptions:
        """The shared training loop's options for this store and these proxy options.

        `changes` are fields of TrainOptions that shall have other values.
        """
        from mixc.proxy.presets import PRESETS
        from mixc.proxy.train import TrainOptions

        options = TrainOptions(
            shape=PRESETS[self.options.preset],
            vocab_size=self.store.vocab_size,
            seq_len=self.options.seq_len - 1,
            steps=self.options.steps,
            learning_rate=self.options.learning_rate,
            device=self.options.device,
            seed=self.seed,
        )
        return replace(options, **changes)

    @cached_property
    def trainer(self) -> Trainer:
        """What trains the models of this run, under `train_options`."""
        key = key_of([self.key, self.store.store_hash])
        return Trainer(self.train_options(), folder=self.staging, key=key)

    def train(
        self,
        name: str,
        batches: Batches,
        objective: Objective | None = None,
        *,
        backward: Backward | None = None,
        records: Records | None = None,
        init: Mapping[str, Tensor] | None = None,
        seed: int | None = None,
    ) -> Trained:
        """Train a model under a name, with progress and checkpoints. See `Trainer.train`."""
        return self.trainer.train(
            name, batches, objective, backward=backward, records=records, init=init, seed=seed
        )

    def run_mix(self, weights: Weights, *, seed: int | None = None) -> MixRun:
        """Train a model on a fixed mix and score it, or take what an earlier run came to.

        `seed` is that of the model's first weights; rows are the lab's, in deck order, so that
        runs on different mixes are paired.
        """
        options = self.train_options() if seed is None else self.train_options(seed=seed)
        key = key_of(
            {
                "algorithm": _RUN_ALGORITHM,
                "weights": weights.tolist(),
                "options": asdict(options),
                "rows": [self.batch_rows, self.seed],
                "store": self.store.store_hash,
                "environment": environment(options.device),
            }
        )
        path = None if self.folder is None else self.folder / f"{key}.json"
        if path is not None and (known := runs.load(path)) is not None:
            return known
        name = f"mix-{key[:16]}"
        trained = self.train(name, self.batches(weights), seed=seed)
        bits = self.bits_per_byte(trained.model)
        run = MixRun(bits, trained.losses, trained.tokens, trained.flops)
        if path is not None:
            runs.save(path, run)
            self.trainer.forget(name)
        return run

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

    def scheduled_batches(self, policy: Callable[[int], Weights]) -> Batches:
        """Batches under weights that change by step: `policy(t)` holds for step t, float64[K].

        Row by row the domain that is furthest behind its due is drawn, and what is over or short
        is carried into the steps to come. A domain's rows come in the order of its deck. What is
        drawn follows from the weights of all steps so far, which are asked for again where a run
        goes on from a checkpoint.
        """
        from mixc.proxy.train import Batch

        streams = [self._stream(name) for name in self.domains]
        size, count = self.batch_rows, len(self.domains)
        labels: list[NDArray[np.int64]] = []  # of the steps so far
        due, drawn = np.zeros(count), [np.zeros(count, np.int64)]  # before each step, and after

        def draw(step: int) -> None:
            weights, mine = policy(step), np.empty(size, np.int64)
            for row in range(size):
                due[:] += weights
                mine[row] = due.argmax()
                due[mine[row]] -= 1
            labels.append(mine)
            drawn.append(drawn[-1] + np.bincount(mine, minlength=count))

        def batch(step: int) -> Batch:
            for missing in range(len(labels), step + 1):
                draw(missing)
            mine = labels[step]
            tokens = np.empty((size, self.options.seq_len), np.int64)
            for domain in np.unique(mine):
                place = np.flatnonzero(mine == domain)
                deck = streams[domain].deck(drawn[step][domain] + np.arange(len(place)))
                tokens[place] = streams[domain].tokens(deck)
            return Batch(tokens, mine)

        return batch

    def held_losses(self, model: Model) -> list[NDArray[np.float32]]:
        """The model's loss on each token of each domain's holdout, in nats."""
        from mixc.proxy.device import pick_device
        from mixc.proxy.evaluate import stream_losses

        device, length = pick_device(self.options.device), self.options.seq_len - 1
        found: list[NDArray[np.float32]] = []
        streams = [self._held_stream(name)[0] for name in self.domains]
        with progress.task("score holdout", sum(map(len, streams)), "tokens") as bar:
            for stream in streams:
                found.append(stream_losses(model, stream, length, device))
                bar.advance(len(stream))
        return found

    def bits_per_byte(self, model: Model) -> Weights:
        """The model's loss on each domain's holdout, in bits per UTF-8 byte of text, [K]."""
        sizes = np.array([self._held_stream(name)[1] for name in self.domains], np.float64)
        nats = np.array([one.sum(dtype=np.float64) for one in self.held_losses(model)])
        with np.errstate(invalid="ignore"):  # 0 / 0 where nothing is held out
            bits: Weights = nats / np.log(2) / sizes
        return bits

    def environment(self) -> dict[str, str]:
        """What training repeats to the bit under."""
        return environment(self.options.device)

    def _held_stream(self, domain: str) -> tuple[NDArray[np.int64], int]:
        """A domain's held-out documents end to end, and the UTF-8 bytes of their text."""
        held = list(self.store.held_out(domain))
        size = sum(int(one.n_bytes.sum(dtype=np.int64)) for one in held)
        # An end-of-text before the first token, so that it is predicted too.
        stream = np.concatenate([[self.store.eot_id], *(one.tokens for one in held)])
        return stream.astype(np.int64), size


def _positions(labels: NDArray[np.uint16], domains: int) -> NDArray[np.int64]:
    """Where in its domain's deck each row stands: how many of its domain came before, int64[R]."""
    positions = np.empty(len(labels), np.int64)
    for domain in range(domains):
        mine = np.flatnonzero(labels == domain)
        positions[mine] = np.arange(len(mine))
    return positions
