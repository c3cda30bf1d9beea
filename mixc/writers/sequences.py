"""What writers are given: token sequences end to end in one staged file, and a folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixc.store import commit
from mixc.store.commit import StagedFile


@dataclass(frozen=True)
class StreamSpec:
    """What a format must be able to hold: `rows` rows of `seq_len` ids below `vocab_size`."""

    dtype: np.dtype[Any]
    vocab_size: int
    eot_id: int
    seq_len: int
    rows: int


@dataclass(frozen=True)
class Sequences:
    """Sequences end to end in a staged file of `dtype`, little-endian. `lengths` is int64[n]."""

    path: Path
    dtype: np.dtype[Any]
    lengths: NDArray[np.int64]


@dataclass(frozen=True)
class Folder:
    """Where a writer puts its files. It never learns where they end up."""

    _path: Path

    def link(self, sequences: Sequences, name: str) -> None:
        """Take the flat tokens as they are: formats of equal bytes share one file."""
        commit.link(sequences.path, self._path / name)

    def write(self, name: str, fill: Callable[[StagedFile], None]) -> None:
        """Write a file in order."""
        with commit.create(self._path / name) as file:
            fill(file)
