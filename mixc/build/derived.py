"""What follows from a mixture's manifest: the order of its rows and, with its store, their sources.

Where rows come from is a function of the plan and the seed, so a mixture need not write it down.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa

from mixc.build import order
from mixc.build.blocks import BlockTask, make_builder, sources_of
from mixc.build.counts import capacity
from mixc.build.mixture import Mixture, check_algorithm
from mixc.build.provenance import Provenance, Written, block_table, listed
from mixc.build.schedule import Asked, Schedule, asked_of, constant, make_schedule
from mixc.build.supply import make_supply
from mixc.store.store import Store


def schedule_of(mixture: Mixture) -> Schedule:
    """The rows of each domain and stage, from the weights, the cap on epochs, and the tokens."""
    manifest = mixture.manifest
    domains, ledger, total = manifest["domains"], manifest["ledger"], manifest["rows"]
    tokens = [ledger[name]["read"] - ledger[name]["held_out"] for name in domains]
    room = (
        capacity(
            np.array(tokens, np.int64),
            rows=total,
            seq_len=mixture.row_len,
            max_epochs=manifest["max_epochs"],
        )
        if mixture.layout.plain
        else np.array([entry.get("room", 0) for entry in domains.values()], np.int64)
    )
    return make_schedule(_asked(mixture), total, room)


def _asked(mixture: Mixture) -> tuple[Asked, ...]:
    """The stages' weights; earlier manifests list none."""
    if "stages" in mixture.manifest:
        return asked_of(mixture.manifest["stages"])
    domains = mixture.manifest["domains"].values()
    return constant(np.array([entry["weight"] for entry in domains], np.float64))


def labels_of(mixture: Mixture) -> order.Labels:
    """The domain of each row, uint16[R]."""
    said = mixture.manifest
    block = said["order"]["shuffle_block"]
    return order.schedule_order(schedule_of(mixture), shuffle_block=block, seed=said["seed"])


def provenance_of(mixture: Mixture, store: Store | None) -> Provenance | None:
    """Where a mixture's rows come from: as it is written, or else as it follows from the store."""
    if (written := written_of(mixture)) is not None:
        return written
    return None if store is None else Derived(mixture, store)


def written_of(mixture: Mixture) -> Written | None:
    """The provenance that a mixture has written, if it has."""
    said = mixture.manifest["provenance"]
    if "blocks" in said:
        return None
    paths = tuple(mixture.root / one.path for one in listed(said))
    return Written(paths, said.get("part_blocks", mixture.manifest["rows"]))


class Derived:
    """Provenance that is derived again. Raises MX044 if another version laid out the rows."""

    def __init__(self, mixture: Mixture, store: Store) -> None:
        check_algorithm(mixture)
        self._domains = tuple(mixture.manifest["domains"])
        self._labels, self._step = labels_of(mixture), mixture.manifest["block_rows"]
        supply = make_supply(store, self._domains, mixture.layout, mixture.document_weights)
        self._builder = make_builder(store, supply, self._domains, mixture.root, workers=1)

    def tables(self, numbers: Iterable[int] | None = None) -> Iterator[pa.Table]:
        """The tables of blocks, of rising numbers; of all."""
        positions, upto = np.zeros(len(self._domains), np.int64), 0
        for number in range(-(-len(self._labels) // self._step)) if numbers is None else numbers:
            first = number * self._step
            between = self._labels[upto:first]
            positions, upto = positions + np.bincount(between, minlength=len(positions)), first
            labels = self._labels[first : first + self._step]
            task = BlockTask(number, first, labels, positions, None)
            yield block_table(sources_of(self._builder, task), self._domains)
