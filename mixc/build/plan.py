"""What a mixture will be, decided before any byte of it is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mixc.build.counts import Counts
from mixc.build.schedule import Asked, Schedule, describe, make_schedule
from mixc.build.supply import Supply, make_supply
from mixc.errors import MixcError, located
from mixc.recipe import Recipe
from mixc.registry import WRITERS
from mixc.rows.packing import Layout
from mixc.rows.weights import DocumentWeights, read_weights
from mixc.store.hashes import key_of
from mixc.store.store import Store
from mixc.writers.sequences import StreamSpec

ALGORITHM = 2  # a change of what mixtures hold, from the same store and recipe, raises it
_BLOCK_TOKENS = 1 << 24
_PROVENANCE_BYTES = 16  # of a row that is cut from a single document


@dataclass(frozen=True)
class BuildPlan:
    """The mixture to be built. `domains` is the order of all arrays, [K].

    `room` is the rows that each domain can give at most, int64[K]; `provenance`, whether it is
    written where rows come from.
    """

    domains: tuple[str, ...]
    schedule: Schedule
    supply: Supply
    room: NDArray[np.int64]
    seq_len: int
    shuffle_block: int
    seed: int
    provenance: bool
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
    def layout(self) -> Layout:
        """How documents are laid in rows."""
        return self.supply.layout

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
        return self.spec.bytes

    @property
    def linked(self) -> bool:
        """Whether a format may take the staged stream as its file, so that it is there to stay."""
        return any(self._takes_stream(name) for name in self.formats)

    @property
    def read_again(self) -> bool:
        """Whether a format is written from the staged stream."""
        return not all(self._takes_stream(name) for name in self.formats)

    def _takes_stream(self, name: str) -> bool:
        return bool(getattr(WRITERS[name].load(), "LINKS", False))

    def disk_bytes(self) -> dict[str, int]:
        """What is staged, at least: the stream, provenance, and what formats take beside."""
        formats = {name: int(WRITERS[name].load().disk_bytes(self.spec)) for name in self.formats}
        provenance = self.provenance * _PROVENANCE_BYTES * self.rows
        return {"stream": self.bytes, "provenance": provenance, **formats}


@dataclass(frozen=True)
class StageWeights:
    """Weights by domain until a part (0..1) of the rows; `begin`: those that a ramp begins with."""

    until: float
    weights: Mapping[str, float]
    begin: Mapping[str, float] | None = None


def make_plan(
    recipe: Recipe,
    store: Store,
    stages: Sequence[StageWeights],
    document_weights: Path | None = None,
) -> BuildPlan:
    """Decide the rows of each domain and check that every format can hold them.

    `document_weights` is the file of the documents' weights, where the recipe asks for any.
    Raises MX061 (weights that do not fit the store's domains or documents), MX060 (too little
    data), MX062 (a format that cannot hold this).
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
    supply = _supply(recipe, store, document_weights)
    room = supply.room(rows, options.max_epochs)
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
        supply=supply,
        room=room,
        seq_len=options.seq_len,
        shuffle_block=options.order.shuffle_block,
        seed=recipe.seed,
        provenance=options.provenance,
        formats=tuple(options.formats),
        spec=spec,
        key=_key(recipe, store, schedule, supply.weights),
    )


def _supply(recipe: Recipe, store: Store, path: Path | None) -> Supply:
    options = recipe.mixture
    layout = Layout(options.row_tokens, recipe.seed, options.packing, path is not None)
    with located(recipe.place("mixture", "document_weights")):
        weights = None if path is None else read_weights(path)
        return make_supply(store, tuple(store.domains), layout, weights)


def _key(recipe: Recipe, store: Store, schedule: Schedule, weights: DocumentWeights | None) -> str:
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
        | ({} if weights is None else {"document_weights": weights.digest()})
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
