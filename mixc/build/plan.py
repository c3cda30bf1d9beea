"""What a mixture will be, decided before any byte of it is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mixc.build.counts import Counts, capacity
from mixc.build.schedule import Asked, Schedule, describe, make_schedule
from mixc.errors import MixcError, located
from mixc.recipe import Recipe
from mixc.registry import WRITERS
from mixc.rows.packing import Layout
from mixc.store.hashes import key_of
from mixc.store.store import Store
from mixc.writers.sequences import StreamSpec

ALGORITHM = 1  # a change of what mixtures hold, from the same store and recipe, raises it
_BLOCK_TOKENS = 1 << 24


@dataclass(frozen=True)
class BuildPlan:
    """The mixture to be built. `domains` is the order of all arrays, [K].

    `room` is the rows that each domain can give at most, `epochs` what it gives.
    """

    domains: tuple[str, ...]
    schedule: Schedule
    room: NDArray[np.int64]
    epochs: NDArray[np.float64]
    seq_len: int
    layout: Layout
    shuffle_block: int
    seed: int
    formats: tuple[str, ...]
    spec: StreamSpec
    key: str

    @property
    def weights(self) -> NDArray[np.float64]:
        """What was asked for over the whole mixture, float64[K]."""
        return self.schedule.weights

    @property
    def counts(self) -> Counts:
        """Rows of each domain."""
        return self.schedule.counts

    @property
    def row_len(self) -> int:
        """Tokens in a row."""
        return self.layout.seq_len

    @property
    def rows(self) -> int:
        """Rows of the mixture."""
        return int(self.counts.rows.sum())

    @property
    def tokens(self) -> int:
        """Tokens of the mixture."""
        return self.rows * self.row_len

    @property
    def block_rows(self) -> int:
        """Rows of an output block: about 16 Mi tokens, whatever their type."""
        return max(1, _BLOCK_TOKENS // self.row_len)

    @property
    def bytes(self) -> int:
        """Bytes of the token stream."""
        return self.tokens * self.spec.dtype.itemsize


@dataclass(frozen=True)
class StageWeights:
    """Weights by domain until a part (0..1) of the rows; `begin`: those that a ramp begins with."""

    until: float
    weights: Mapping[str, float]
    begin: Mapping[str, float] | None = None


def make_plan(recipe: Recipe, store: Store, stages: Sequence[StageWeights]) -> BuildPlan:
    """Decide the rows of each domain and check that every format can hold them.

    Raises MX061 (weights that do not name the store's domains), MX060 (too little data), MX062
    (a format that cannot hold this).
    """
    options, domains = recipe.mixture, tuple(store.domains)
    with located(recipe.place("mixture", "stages" if options.stages else "weights")):
        asked = [_asked(stage, domains) for stage in stages]
    rows = options.row_count
    if rows < 1:
        raise MixcError(
            "MX060",
            f"{options.tokens} tokens do not make one row of {options.row_tokens}",
            place=recipe.place("mixture", "tokens"),
            help="ask for more tokens, or for shorter rows",
        )
    length = options.row_tokens
    layout = Layout(length, recipe.seed, options.packing)
    room, epochs_of = _measure(store, layout, rows, options.max_epochs)
    with located(recipe.place("mixture")):
        schedule = make_schedule(asked, rows, room)
    spec = StreamSpec(
        store.dtype,
        store.vocab_size,
        store.eot_id,
        length,
        rows,
        domains,
        extra=length - options.seq_len,
    )
    with located(recipe.place("mixture", "formats")):
        for name in options.formats:
            WRITERS[name].load().check(spec)
    return BuildPlan(
        domains=domains,
        schedule=schedule,
        room=room,
        epochs=np.array(epochs_of(schedule.counts.rows.tolist()), np.float64),
        seq_len=options.seq_len,
        layout=layout,
        shuffle_block=options.order.shuffle_block,
        seed=recipe.seed,
        formats=tuple(options.formats),
        spec=spec,
        key=_key(recipe, store, schedule),
    )


def _measure(
    store: Store, layout: Layout, rows: int, max_epochs: float | None
) -> tuple[NDArray[np.int64], Callable[[list[int]], list[float]]]:
    """The room of each domain, int64[K], and from rows of each to the epochs that they take."""
    if layout.plain:
        tokens = [domain.training_tokens for domain in store.domains.values()]
        room = capacity(
            np.array(tokens, np.int64), rows=rows, seq_len=layout.seq_len, max_epochs=max_epochs
        )
        return room, lambda counts: [
            count * layout.seq_len / size if size else 0.0
            for count, size in zip(counts, tokens, strict=True)
        ]
    streams = [layout.open(store, name) for name in store.domains]
    cap = np.inf if max_epochs is None else max_epochs
    most = [stream.rows_within(cap, rows) for stream in streams]
    return np.array(most, np.int64), lambda counts: [
        stream.epochs_of(count) for stream, count in zip(streams, counts, strict=True)
    ]


def _key(recipe: Recipe, store: Store, schedule: Schedule) -> str:
    """The key of what is built: equal keys give equal mixtures."""
    options, domains = recipe.mixture, tuple(store.domains)
    return key_of(
        {
            "algorithm": ALGORITHM,
            "store": store.store_hash,
            "name": recipe.name,
            "rows": dict(zip(domains, schedule.counts.rows.tolist(), strict=True)),
            "weights": dict(zip(domains, schedule.weights.tolist(), strict=True)),
            "seq_len": options.seq_len,
            "shuffle_block": options.order.shuffle_block,
            "max_epochs": options.max_epochs,
            "formats": list(options.formats),
            "seed": recipe.seed,
            "recipe": recipe.canonical()["mixture"],
            "overrides": recipe.overrides_of("name", "mixture", "seed"),
        }
        | ({"stages": describe(schedule, domains)} if options.stages else {})
    )


def _asked(stage: StageWeights, domains: tuple[str, ...]) -> Asked:
    ends = [stage.weights, stage.weights if stage.begin is None else stage.begin]
    for weights in ends:
        _check_names(weights, domains)
    end, begin = (np.array([one[name] for name in domains], np.float64) for one in ends)
    return Asked(stage.until, begin, end, stage.begin is not None)


def _check_names(weights: Mapping[str, float], domains: tuple[str, ...]) -> None:
    unknown = sorted(set(weights) ^ set(domains))
    if unknown:
        raise MixcError(
            "MX061",
            "the weights and the store do not name the same domains: " + ", ".join(unknown),
            help="solve again for this store, or name every domain (0 leaves one out)",
        )
