"""What a mixture will be, decided before any byte of it is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mixc.build.counts import Counts, capacity, row_counts
from mixc.errors import MixcError, located
from mixc.recipe import Recipe
from mixc.registry import WRITERS
from mixc.store.hashes import key_of
from mixc.store.store import Store
from mixc.writers.sequences import StreamSpec

ALGORITHM = 1  # a change of what mixtures hold, from the same store and recipe, raises it
_BLOCK_TOKENS = 1 << 24


@dataclass(frozen=True)
class BuildPlan:
    """The mixture to be built. `domains` is the order of all arrays, [K]."""

    domains: tuple[str, ...]
    weights: NDArray[np.float64]
    counts: Counts
    seq_len: int
    shuffle_block: int
    seed: int
    formats: tuple[str, ...]
    spec: StreamSpec
    key: str

    @property
    def rows(self) -> int:
        """Rows of the mixture."""
        return int(self.counts.rows.sum())

    @property
    def tokens(self) -> int:
        """Tokens of the mixture."""
        return self.rows * self.seq_len

    @property
    def block_rows(self) -> int:
        """Rows of an output block: about 16 Mi tokens, whatever their type."""
        return max(1, _BLOCK_TOKENS // self.seq_len)

    @property
    def bytes(self) -> int:
        """Bytes of the token stream."""
        return self.tokens * self.spec.dtype.itemsize


def make_plan(recipe: Recipe, store: Store, weights: Mapping[str, float]) -> BuildPlan:
    """Decide the rows of each domain and check that every format can hold them.

    Raises MX061 (weights that do not name the store's domains), MX060 (too little data), MX062
    (a format that cannot hold this).
    """
    options, domains = recipe.mixture, tuple(store.domains)
    with located(recipe.place("mixture", "weights")):
        _check_names(weights, domains)
    asked = np.array([weights[name] for name in domains], np.float64)
    rows = options.row_count
    if rows < 1:
        raise MixcError(
            "MX060",
            f"{options.tokens} tokens do not make one row of {options.seq_len}",
            place=recipe.place("mixture", "tokens"),
            help="ask for more tokens, or for shorter rows",
        )
    tokens = np.array([domain.training_tokens for domain in store.domains.values()], np.int64)
    room = capacity(tokens, rows=rows, seq_len=options.seq_len, max_epochs=options.max_epochs)
    with located(recipe.place("mixture")):
        counts = row_counts(asked, rows, room)
    spec = StreamSpec(store.dtype, store.vocab_size, store.eot_id, options.seq_len, rows, domains)
    with located(recipe.place("mixture", "formats")):
        for name in options.formats:
            WRITERS[name].load().check(spec)
    key = key_of(
        {
            "algorithm": ALGORITHM,
            "store": store.store_hash,
            "name": recipe.name,
            "rows": dict(zip(domains, counts.rows.tolist(), strict=True)),
            "weights": dict(zip(domains, asked.tolist(), strict=True)),
            "seq_len": options.seq_len,
            "shuffle_block": options.order.shuffle_block,
            "max_epochs": options.max_epochs,
            "formats": list(options.formats),
            "seed": recipe.seed,
            "recipe": recipe.canonical()["mixture"],
            "overrides": recipe.overrides_of("name", "mixture", "seed"),
        }
    )
    return BuildPlan(
        domains=domains,
        weights=asked,
        counts=counts,
        seq_len=options.seq_len,
        shuffle_block=options.order.shuffle_block,
        seed=recipe.seed,
        formats=tuple(options.formats),
        spec=spec,
        key=key,
    )


def _check_names(weights: Mapping[str, float], domains: tuple[str, ...]) -> None:
    unknown = sorted(set(weights) ^ set(domains))
    if unknown:
        raise MixcError(
            "MX061",
            "the weights and the store do not name the same domains: " + ", ".join(unknown),
            help="solve again for this store, or name every domain (0 leaves one out)",
        )
