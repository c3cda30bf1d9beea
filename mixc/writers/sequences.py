"""What writers are given: token sequences end to end in one staged file, and a folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixc.errors import MixcError
from mixc.store import commit
from mixc.store.commit import StagedFile

_PIECE_TOKENS = 1 << 20


@dataclass(frozen=True)
class StreamSpec:
    """What a format must be able to hold: `rows` rows of `seq_len` ids below `vocab_size`.

    `domains` are the names that labels count.
    """

    dtype: np.dtype[Any]
    vocab_size: int
    eot_id: int
    seq_len: int
    rows: int
    domains: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sequences:
    """Sequences end to end in a staged file of `dtype`, little-endian.

    `lengths` is int64[n]; `labels` the number of each one's domain, uint8[n] or, of more than
    256 domains, uint16[n]; `labels_path` the same as a staged file; `domains` are their names.
    """

    path: Path
    dtype: np.dtype[Any]
    lengths: NDArray[np.int64]
    labels: NDArray[Any]
    labels_path: Path
    domains: tuple[str, ...]

    def tokens(self) -> NDArray[Any]:
        """All tokens, mapped."""
        if not len(self.lengths):
            return np.empty(0, self.dtype)
        return np.memmap(self.path, self.dtype, mode="r")

    def pieces(self, most: int) -> Iterator[tuple[int, int]]:
        """Runs of at least one sequence, [first, stop), of at most `most` tokens if of several."""
        ends = np.cumsum(self.lengths)
        first = begin = 0
        while first < len(ends):
            stop = max(first + 1, int(np.searchsorted(ends, begin + most, side="right")))
            yield first, stop
            first, begin = stop, int(ends[stop - 1])

    def shards(self, about: int) -> Iterator[NDArray[Any]]:
        """All tokens, mapped, in parts of whole sequences, about `about` tokens each.

        Parts are as even as sequences allow, so that the last is no small rest.
        """
        ends, tokens = np.cumsum(self.lengths), self.tokens()
        count = -(-len(tokens) // about)
        marks = [len(tokens) * (i + 1) // count for i in range(count)]
        borders = ends[np.unique(np.searchsorted(ends, marks))].tolist()
        for begin, end in pairwise([0, *borders]):
            yield tokens[begin:end]


def label_dtype(domains: int) -> np.dtype[Any]:
    """The type of labels that count so many domains."""
    return np.dtype(np.uint8 if domains <= 256 else np.uint16)


@dataclass(frozen=True)
class Folder:
    """Where a writer puts its files. It never learns where they end up.

    `hashes` has the XXH3-128 of each file that was written, by its name.
    """

    _path: Path
    hashes: dict[str, str] = field(default_factory=dict)

    def link(self, staged: Path, name: str) -> None:
        """Take a staged file as it is: formats of equal bytes share one file."""
        commit.link(staged, self._path / name)

    def write(self, name: str, fill: Callable[[StagedFile], None]) -> None:
        """Write a file in order."""
        with commit.create(self._path / name) as file:
            fill(file)
        self.hashes[name] = file.record("").xxh3


def copy_tokens(file: StagedFile, tokens: NDArray[Any]) -> None:
    """Write tokens, a piece at a time, so that none of them stays in memory."""
    for start in range(0, len(tokens), _PIECE_TOKENS):
        file.write(np.ascontiguousarray(tokens[start : start + _PIECE_TOKENS]).data)


def flat_rows(
    path: Path, spec: StreamSpec, first: int, count: int, *, header: int = 0
) -> NDArray[Any]:
    """Rows `first` to `first + count` of a file of nothing but tokens behind a header."""
    width = spec.seq_len * spec.dtype.itemsize
    raw = np.fromfile(path, spec.dtype, count * spec.seq_len, offset=header + first * width)
    return raw.reshape(-1, spec.seq_len)


def rows_across(
    paths: Sequence[Path], spec: StreamSpec, first: int, count: int, *, header: int
) -> NDArray[Any]:
    """Rows `first` to `first + count` of files of whole rows, in order, each behind a header."""
    width = spec.seq_len * spec.dtype.itemsize
    parts = [np.empty((0, spec.seq_len), spec.dtype)]
    for path in paths:
        held = (path.stat().st_size - header) // width
        if count and first < held:
            parts.append(flat_rows(path, spec, first, min(count, held - first), header=header))
            count -= len(parts[-1])
        first = max(0, first - held)
    return np.concatenate(parts)


def refuse(writer: str, what: str, value: int, most: int) -> None:
    """Raise MX062 if a value is over what a format can hold."""
    if value > most:
        raise MixcError(
            "MX062",
            f"{writer} holds {what} up to {most}, and {value} does not fit",
            help=f"leave {writer} out of mixture.formats, or build several mixtures",
        )
