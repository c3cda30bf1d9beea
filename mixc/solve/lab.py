"""Where methods train and score small models, on rows that are cut as builds cut them.

Nothing hangs on what domains are called, or on their numbers. Torch is imported when the first
model is trained, not before.
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
from mixc.proxy.names import Name, names_of, order_of
from mixc.proxy.presets import PRESETS, compact_vocab, flops_per_token, parameters
from mixc.proxy.repetition import matched_rows
from mixc.recipe import Proxy
from mixc.rows.stream import DomainStream
from mixc.solve import runs
from mixc.solve.problem import Schedule
from mixc.solve.runs import MixRun
from mixc.solve.trainer import QUIETLY, Running, Trainer, environment
from mixc.store.hashes import key_of
from mixc.store.store import Store

if TYPE_CHECKING:
    from torch import Tensor

    from mixc.proxy.model import Model
    from mixc.proxy.sampler import Counts, Decks, Sampler
    from mixc.proxy.train import Backward, Batches, Objective, Records, Trained, TrainOptions
    from mixc.proxy.vocabulary import Vocabulary

Weights = NDArray[np.float64]
_RUN_ALGORITHM = 3  # a change of what a run on a fixed mix comes to raises it


class Lab:
    """Small models on the domains of a store, under one set of proxy options.

    `staging` is where checkpoints go and `folder` where what may serve later solves is kept: runs
    on fixed mixes, losses of reference models; without them nothing is written. `key` names what
    trainings depend on beside store and proxy options: the method and its options. With the
    `target_tokens` of the mixture, models see so little of each domain that they repeat it as
    often as the mixture does. `domains` are the store's, or some of them; `names` as `names_of`
    gives them, if they are known.
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
        target_tokens: int | None = None,
        running: Running = QUIETLY,
        domains: tuple[str, ...] | None = None,
        names: Mapping[str, Name] | None = None,
    ) -> None:
        self.store, self.options, self.seed = store, options, seed
        self.target_tokens, self.running = target_tokens, running
        self.staging, self.folder, self.key = staging, folder, key
        self.domains = tuple(store.domains) if domains is None else domains
        self._names, self._others = names, dict[int, Lab]()

    @cached_property
    def names(self) -> dict[str, Name]:
        """What the random streams of each domain are named by: its documents, not its name."""
        found = self._names or names_of(self.store)
        return {domain: found[domain] for domain in self.domains}

    @cached_property
    def order(self) -> NDArray[np.int64]:
        """The domains' numbers in the order of these names, int64[K]: what breaks ties."""
        return order_of(self.names)

    @property
    def batch_rows(self) -> int:
        """Rows of a batch."""
        return max(1, self.options.batch_tokens // self.options.seq_len)

    def train_options(self, **changes: Any) -> TrainOptions:
        """The shared training loop's options for this store and these proxy options.

        `changes` are fields of TrainOptions that shall have other values.
        """
        from mixc.proxy.train import TrainOptions

        options = TrainOptions(
            shape=PRESETS[self.options.preset],
            vocab_size=self.vocab_size,
            seq_len=self.options.seq_len - 1,
            steps=self.options.steps,
            learning_rate=self.options.learning_rate,
            device=self.options.device,
            precision=self.options.precision,
            compile=self.options.compile,
            seed=self.seed,
        )
        return replace(options, **changes)

    @cached_property
    def trainer(self) -> Trainer:
        """What trains the models of this run, under `train_options`."""
        return Trainer(
            self.train_options(),
            folder=self.staging,
            key=key_of([self.key, self.store.store_hash, self.domains, self.batch_rows, self.seed]),
            domains=self.domains,
            running=self.running,
        )

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

    def run_mix(
        self,
        weights: Weights,
        *,
        seed: int | None = None,
        schedule: Schedule | None = None,
        label: str | None = None,
    ) -> MixRun:
        """Train a model on a mix and score it, or take what an earlier run came to.

        The mix is fixed, or follows a schedule. `seed`, by default the lab's, is that of the
        model's first weights and of the order of each domain's rows: runs of one seed on different
        mixes are paired, and several seeds show what either does. `label` is what people see of it.
        """
        if seed is not None and seed != self.seed:
            return self._seeded(seed).run_mix(weights, schedule=schedule, label=label)
        path, key = self._kept_run(weights, schedule)
        if path is not None and (known := runs.load(path)) is not None:
            return known
        batches = self.batches(weights) if schedule is None else self._staged_batches(schedule)
        trained = self.trainer.train(f"mix-{key[:16]}", batches, label=label)
        run = self._score(trained, path)
        if path is not None:
            self.trainer.forget(f"mix-{key[:16]}")
        return run

    def score_run(
        self, weights: Weights, trained: Trained, *, schedule: Schedule | None = None
    ) -> MixRun:
        """Score a model that was trained on this lab's batches of a mix, and keep what it came to.

        `run_mix` then finds it, and trains no other.
        """
        return self._score(trained, self._kept_run(weights, schedule)[0])

    def _score(self, trained: Trained, path: Path | None) -> MixRun:
        bits = self.bits_per_byte(trained.model)
        run = MixRun(bits, trained.losses, trained.tokens, trained.flops)
        if path is not None:
            runs.save(path, run)
        return run

    def _kept_run(self, weights: Weights, schedule: Schedule | None) -> tuple[Path | None, str]:
        """Where what a run on a mix came to is kept, if anywhere, and the key of the run."""
        options = self.train_options()
        key = key_of(
            {
                "algorithm": _RUN_ALGORITHM,
                "drawn": self._drawn(weights).tolist(),
                "options": asdict(options),
                "rows": [self.batch_rows, self.seed],
                "kept_rows": None if self.kept_rows is None else self.kept_rows.tolist(),
                "vocabulary": self.vocabulary.key,
                "store": self.store.store_hash,
                "domains": self.domains,
                "environment": environment(options),
            }
        )
        if schedule is not None:
            key = key_of([key, [[until, mix.tolist()] for until, mix in schedule]])
        return self._place(f"runs/{key}.json"), key

    def of(self, domains: tuple[str, ...]) -> Lab:
        """The lab of some of the domains."""
        return self._again(self.seed, domains)

    def _seeded(self, seed: int) -> Lab:
        """The lab as it is under another seed."""
        if seed not in self._others:
            self._others[seed] = self._again(seed, self.domains)
        return self._others[seed]

    def _again(self, seed: int, domains: tuple[str, ...]) -> Lab:
        return Lab(
            self.store,
            self.options,
            seed=seed,
            staging=self.staging,
            folder=self.folder,
            key=self.key,
            target_tokens=self.target_tokens,
            running=self.running,
            domains=domains,
            names=self.names,
        )

    def _drawn(self, weights: Weights) -> NDArray[np.int64]:
        """The rows of each deck that a run on a fixed mix reads, int64[K]: they are the run."""
        rows = self.batch_rows * self.options.steps
        return row_counts(weights[self.order], rows, np.full(len(weights), rows)).rows

    def batches(self, weights: Weights) -> Sampler:
        """Batches in which every prefix of rows honours `weights` (Tijdeman), from the decks."""
        from mixc.proxy.sampler import counts_of

        steps = counts_of(assign(self._drawn(weights)), self.batch_rows, len(weights))
        return self._sampler(steps, known_steps=self.options.steps)

    def scheduled_batches(self, policy: Callable[[int], Weights]) -> Sampler:
        """Batches under weights that change by step: `policy(t)` holds for step t, float64[K].

        Row by row the domain that is furthest behind its due is drawn, and what is over or short
        is carried into the steps to come. What is drawn follows from the weights of all steps so
        far, which are asked for again where a run goes on from a checkpoint.
        """
        from mixc.proxy.sampler import scheduled_counts

        return self._sampler(
            scheduled_counts(lambda step: policy(step)[self.order], self.batch_rows)
        )

    def _sampler(self, counts: Counts, known_steps: int | None = None) -> Sampler:
        """Batches of so many rows of each deck."""
        from mixc.proxy.sampler import Sampler

        return Sampler(self.decks, counts, self._ids, known_steps, numbers=self.order)

    def _staged_batches(self, schedule: Schedule) -> Sampler:
        """Batches that follow a schedule over the run's steps."""
        ends = np.array([until for until, _ in schedule]) * self.options.steps

        def policy(step: int) -> Weights:
            return schedule[min(int(np.searchsorted(ends, step, "right")), len(ends) - 1)][1]

        return self.scheduled_batches(policy)

    @cached_property
    def decks(self) -> Decks:
        """The rows of the domains, which stand in the order of their documents' names.

        Raises MX051 if a domain has nothing to train on.
        """
        from mixc.proxy.sampler import Decks

        streams = [self._stream(self.domains[number]) for number in self.order]
        kept = None if self.kept_rows is None else self.kept_rows[self.order]
        return Decks(streams, seed=self.seed, prefix_rows=kept)

    @cached_property
    def kept_rows(self) -> NDArray[np.int64] | None:
        """The rows of each domain that models may see, int64[K]; None: all."""
        rows = self.batch_rows * self.options.steps
        if self.target_tokens is None or self.target_tokens <= rows * self.options.seq_len:
            return None
        tokens = [self.store.domains[name].training_tokens for name in self.domains]
        return matched_rows(
            np.array(tokens, np.int64),
            seq_len=self.options.seq_len,
            run_rows=rows,
            target_tokens=self.target_tokens,
        )

    @property
    def vocab_size(self) -> int:
        """Ids of the models' vocabulary."""
        asked, full = self.options.vocab, self.store.vocab_size
        if asked == "auto":
            return compact_vocab(PRESETS[self.options.preset], full)
        return full if asked == "full" else min(asked, full)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """What the store's ids are to the models.

        Losses of training are those of the models' ids; `held_losses` and `bits_per_byte` count
        also what tells the store's ids apart.
        """
        from mixc.proxy.vocabulary import Vocabulary, frequencies

        if self.vocab_size == self.store.vocab_size:
            return Vocabulary.full(self.vocab_size)
        found = frequencies(self.store, self._place("vocabulary"))
        return Vocabulary.compact(found, self.vocab_size, self.store.eot_id)

    @property
    def _ids(self) -> NDArray[np.int64] | None:
        return None if self.vocab_size == self.store.vocab_size else self.vocabulary.ids

    def _place(self, name: str) -> Path | None:
        return None if self.folder is None else self.folder / name

    def _stream(self, domain: str) -> DomainStream:
        stream = DomainStream(
            self.store,
            domain,
            seq_len=self.options.seq_len,
            seed=self.seed,
            name=str(self.names[domain]),
        )
        if stream.epoch_tokens == 0:
            raise MixcError(
                "MX051",
                f"domain '{domain}' has no token to train on: all of it is held out",
                help="give it more documents, or lower holdout.fraction",
            )
        return stream

    def reference_losses(
        self, model: Model, batches: Batches, name: str
    ) -> Callable[[int], NDArray[np.float32]]:
        """A frozen model's loss on each token but the first of each row of a step's batch, in nats.

        Returns a function from the step to float32[B, L - 1]. Batches of this lab at fixed weights
        are scored now, `name` is shown meanwhile, and what was found is kept on disk: whoever comes
        by the same rows with the same model finds it. Other batches, and all where several ranks
        share the work, are scored as they come.
        """
        from mixc.proxy import ranks
        from mixc.proxy.device import pick_device, pick_precision
        from mixc.proxy.reference import cached_losses, uncached_losses
        from mixc.proxy.sampler import Sampler

        precision = pick_precision(self.options.precision, pick_device(self.options.device))
        folder = self._place("reference") if ranks.count() == 1 else None
        if folder is None or not isinstance(batches, Sampler) or batches.known_steps is None:
            return uncached_losses(model, batches, precision=precision)
        key = {
            "tokenizer": self.store.manifest["tokenizer"]["sha256"],
            "store": self.store.store_hash,
            "domains": self.domains,
            "rows": {"seq_len": self.options.seq_len, "packing": "concat", "seed": self.seed},
            "vocabulary": self.vocabulary.key,
            "environment": self.environment(),
        }
        return cached_losses(model, batches, folder, key, name=name, precision=precision)

    def scored_share(self, weights: Weights, share: float = 1.0) -> float:
        """The part of a run's rows, at fixed weights, that `reference_losses` scores, at most.

        `share` of each domain's (`Sampler.part`); of rows that models see again and again each is
        scored once, where losses can be kept.
        """
        from mixc.proxy import ranks
        from mixc.proxy.sampler import rows_of_part

        drawn = self._drawn(weights)
        scored = rows_of_part(drawn, share)  # of each deck
        if self.kept_rows is not None and self.folder is not None and ranks.count() == 1:
            scored = np.minimum(scored, self.kept_rows[self.order])
        return float(scored.sum() / drawn.sum())

    @property
    def run_flops(self) -> float:
        """Floating-point operations of a plain run: forward and backward over all its tokens."""
        tokens = self.options.steps * self.batch_rows * (self.options.seq_len - 1)
        return 3 * self.forward_flops(tokens)

    @property
    def parameters(self) -> int:
        """Numbers that a model is made of."""
        return parameters(PRESETS[self.options.preset], self.vocab_size)

    def forward_flops(self, tokens: int) -> float:
        """Floating-point operations of a forward pass over so many tokens."""
        per_token = flops_per_token(
            PRESETS[self.options.preset], self.vocab_size, self.options.seq_len - 1
        )
        return per_token * tokens

    def held_losses(self, model: Model, *, quiet: bool = False) -> list[NDArray[np.float32]]:
        """The model's loss on each token of each domain's holdout, in nats.

        `quiet`, for the midst of a training, shows no progress of its own.
        """
        from mixc.proxy.device import pick_device
        from mixc.proxy.evaluate import stream_losses

        device, length = pick_device(self.options.device), self.options.seq_len - 1
        found: list[NDArray[np.float32]] = []
        streams = [self._held_stream(name)[0] for name in self.domains]
        with progress.task("score holdout", sum(map(len, streams)), "tokens", quiet=quiet) as bar:
            for stream in streams:
                losses = stream_losses(model, self.vocabulary.ids[stream], length, device)
                found.append(losses + self.vocabulary.extra[stream[1:]].astype(np.float32))
                bar.advance(len(stream))
        return found

    def bits_per_byte(self, model: Model, *, quiet: bool = False) -> Weights:
        """The model's loss on each domain's holdout, in bits per UTF-8 byte of text, [K]."""
        held = self.held_losses(model, quiet=quiet)
        nats = np.array([one.sum(dtype=np.float64) for one in held])
        with np.errstate(invalid="ignore"):  # 0 / 0 where nothing is held out
            bits: Weights = nats / np.log(2) / self.held_bytes
        return bits

    @cached_property
    def held_bytes(self) -> Weights:
        """UTF-8 bytes of the text of each domain's holdout, float64[K]."""
        return np.array([self._held_stream(name)[1] for name in self.domains], np.float64)

    @property
    def held_tokens(self) -> int:
        """Tokens of all domains' holdouts."""
        return sum(self.store.domains[name].held_tokens for name in self.domains)

    def need_holdout(self, what: str, otherwise: str = "") -> None:
        """Raise MX051 if no domain holds anything out, and `what` cannot be scored."""
        if not self.held_bytes.any():
            message = f"no domain holds anything out, so there is nothing to score {what} by"
            hint = f"raise holdout.fraction{otherwise and ', ' + otherwise}"
            raise MixcError("MX051", message, help=hint)

    def environment(self) -> dict[str, str]:
        """What training repeats to the bit under."""
        return environment(self.train_options())

    def _held_stream(self, domain: str) -> tuple[NDArray[np.int64], int]:
        """A domain's held-out documents end to end, and the UTF-8 bytes of their text."""
        held = list(self.store.held_out(domain))
        size = sum(int(one.n_bytes.sum(dtype=np.int64)) for one in held)
        # An end-of-text before the first token, so that it is predicted too.
        stream = np.concatenate([[self.store.eot_id], *(one.tokens for one in held)])
        return stream.astype(np.int64), size
