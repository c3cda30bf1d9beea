"""The held-out documents, exported in the mixture's formats for validation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mixc.store import commit
from mixc.store.store import Store
from mixc.writers.sequences import Sequences


@dataclass(frozen=True)
class HeldOut:
    """A domain's held-out documents, each text once: sequences staged end to end."""

    documents: int
    tokens: int
    sequences: Sequences


def stage_held_out(store: Store, domain: str, path: Path) -> HeldOut:
    """Stage the documents that a domain holds out, in the store's order."""
    lengths = [np.zeros(0, np.int64)]
    with commit.create(path) as file:
        for documents in store.held_out(domain):
            file.write(documents.tokens.data)
            lengths.append(documents.lengths)
    joined = np.concatenate(lengths)
    return HeldOut(len(joined), int(joined.sum()), Sequences(path, store.dtype, joined))


def stage_together(held: Mapping[str, HeldOut], path: Path) -> Sequences:
    """Stage the held-out documents of all domains end to end: one validation set."""
    lengths: list[NDArray[np.int64]] = [one.sequences.lengths for one in held.values()]
    with commit.create(path) as file:
        for one in held.values():
            file.write(one.sequences.path.read_bytes())
    dtype = next(iter(held.values())).sequences.dtype
    return Sequences(path, dtype, np.concatenate(lengths))
