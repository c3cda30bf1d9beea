"""The held-out documents, exported in the mixture's formats for validation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixc.store import commit
from mixc.store.store import Store
from mixc.writers.sequences import Sequences, copy_tokens, label_dtype


@dataclass(frozen=True)
class HeldOut:
    """A domain's held-out documents, each text once: sequences staged end to end."""

    documents: int
    tokens: int
    sequences: Sequences


def stage_held_out(store: Store, domain: str, folder: Path) -> HeldOut:
    """Stage the documents that a domain holds out, in the store's order."""
    path = folder / f"{domain}.bin"
    lengths = [np.zeros(0, np.int64)]
    with commit.create(path) as file:
        for documents in store.held_out(domain):
            file.write(documents.tokens.data)
            lengths.append(documents.lengths)
    joined = np.concatenate(lengths)
    number = list(store.domains).index(domain)
    labels = np.full(len(joined), number, label_dtype(len(store.domains)))
    sequences = staged_sequences(path, store.dtype, joined, labels, tuple(store.domains))
    return HeldOut(len(joined), int(joined.sum()), sequences)


def staged_sequences(
    path: Path,
    dtype: np.dtype[Any],
    lengths: NDArray[np.int64],
    labels: NDArray[Any],
    domains: tuple[str, ...],
) -> Sequences:
    """Sequences whose tokens are staged at `path`; their labels are staged beside it."""
    labels_path = path.with_suffix(".domains")
    commit.write_file(labels_path, labels.tobytes())
    return Sequences(path, dtype, lengths, labels, labels_path, domains)


def stage_together(held: Mapping[str, HeldOut], path: Path) -> Sequences:
    """Stage the held-out documents of all domains end to end: one validation set."""
    parts = [one.sequences for one in held.values()]
    with commit.create(path) as file:
        for one in parts:
            copy_tokens(file, one.tokens())
    lengths = np.concatenate([one.lengths for one in parts])
    labels = np.concatenate([one.labels for one in parts])
    return staged_sequences(path, parts[0].dtype, lengths, labels, parts[0].domains)
