"""What writers are given: token sequences end to end in one staged file, and a folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mixc.engine.threads import in_order
from mixc.errors import MixcError
from mixc.store import commit
from mixc.store.commit import StagedFile

Result = TypeVar("Result")
_PIECE_TOKENS = 1 << 20


@dataclass(frozen=True)
class StreamSpec:
    """What a format must be able to hold: `rows` rows of `seq_len` ids below `vocab_size`.

    `domains` are the names that labels count. The last `extra` tokens of a row are targets alone.
    """

    dtype: np.dtype[Any]
    vocab_size: int
    eot_id: int
    seq_len: int
    rows: int
    domains: tuple[str, ...]
    extra: int = 0

    @property
    def bytes(self) -> int:
        """Bytes of all rows."""
        return self.rows * self.seq_len * self.dtype.itemsize


@dataclass(frozen=True)
class Sequences:
    """Sequences end to end in a staged file of `dtype`, little-endian.

    `lengths` is int64[n]; `labels` the number of each one's domain, uint8[n] or, of more than
    256 domains, uint16[n]; `labels_path` the same as a staged file. `domains` are the names that
    labels count. `row_len` is the length of every sequence if they are rows of one length, and
    None if they are documents.
    """

    path: Path
    dtype: np.dtype[Any]
    lengths: NDArray[np.int64]
    labels: NDArray[Any]
    labels_path: Path
    domains: tuple[str, ...]
    row_len: int | None = None

    def tokens(self) -> NDArray[Any]:
        """All tokens, mapped."""
        if not len(self.lengths):
            return np.empty(0, self.dtype)
        return np.memmap(self.path, self.dtype, mode="r")

    def pieces(self, most: int) -> Iterator[tuple[int, int]]:
        """Runs of at least one sequence, [first, stop), of at most `most` tokens if of several."""
        if self.row_len is not None:
            count, each = len(self.lengths), max(1, most // self.row_len)
            yield from ((first, min(first + each, count)) for first in range(0, count, each))
            return
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
        for _, _, tokens in self.runs(about):
            yield tokens

    def runs(self, about: int) -> Iterator[tuple[int, NDArray[np.int64], NDArray[Any]]]:
        """`shards`, each as its first sequence's number, where in it sequences end, its tokens."""
        tokens = self.tokens()
        count = -(-len(tokens) // about)
        marks = np.array([len(tokens) * (i + 1) // count for i in range(count)], np.int64)
        first = begin = 0
        for last in np.unique(self._holding(marks)).tolist():
            ends = np.cumsum(self.lengths[first : last + 1])
            stop = begin + int(ends[-1])
            yield first, ends, tokens[begin:stop]
            first, begin = last + 1, stop

    def _holding(self, ends: NDArray[np.int64]) -> NDArray[np.int64]:
        """The first sequences that end at these tokens or later; of rows nothing is summed up."""
        if self.row_len is not None:
            return -(-ends // self.row_len) - 1
        return np.searchsorted(np.cumsum(self.lengths), ends)


def label_dtype(domains: int) -> np.dtype[Any]:
    """The type of labels that count so many domains."""
    return np.dtype(np.uint8 if domains <= 256 else np.uint16)


@dataclass(frozen=True)
class Folder:
    """Where a writer puts its files. It never learns where they end up.

    `hashes` has the XXH3-128 of each file that was written, by its name; `workers` is how many
    files may be written at a time.
    """

    _path: Path
    workers: int = 1
    hashes: dict[str, str] = field(default_factory=dict)

    def link(self, staged: Path, name: str) -> None:
        """Take a staged file as it is: formats of equal bytes share one file."""
        commit.link(staged, self._path / name)

    def write(self, name: str, fill: Callable[[StagedFile], None]) -> None:
        """Write a file in order."""
        self.write_many([(name, fill)])

    def write_many(
        self, files: Iterable[tuple[str, Callable[[StagedFile], Result]]]
    ) -> list[tuple[str, Result]]:
        """Write files, several at a time: their names in order, and what filled each gave.

        What fills a file is called by a thread; nothing else is asked of it meanwhile.
        """

        def write(name: str, fill: Callable[[StagedFile], Result]) -> tuple[str, Result]:
            with commit.create(self._path / name) as file:
                result = fill(file)
            self.hashes[name] = file.record("").xxh3
            return name, result

        return list(in_order(lambda one: write(*one), files, workers=self.workers))

    def write_by_path(self, name: str, fill: Callable[[Path], None]) -> None:
        """Let a library that opens files by itself write one, at the path it is given."""
        with commit.create_by_path(self._path / name) as path:
            fill(path)


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
    found = [np.empty((0, spec.seq_len), spec.dtype)]
    for path in paths:
        held = (path.stat().st_size - header) // width
        if count and first < held:
            found.append(flat_rows(path, spec, first, min(count, held - first), header=header))
            count -= len(found[-1])
        first = max(0, first - held)
    return np.concatenate(found)


def parts(first: int, count: int, each: int) -> Iterator[tuple[int, int, int]]:
    """Where rows `first` to `first + count` stand in parts of `each` rows: (part, start, stop)."""
    while count > 0:
        part, start = divmod(first, each)
        stop = min(each, start + count)
        yield part, start, stop
        first, count = first + stop - start, count - (stop - start)


def stacked(found: Iterable[NDArray[Any]], spec: StreamSpec) -> NDArray[Any]:
    """Rows found in several parts, one below the other, [n, seq_len], of the stream's type."""
    empty = np.empty((0, spec.seq_len), spec.dtype)
    return np.concatenate([empty, *(rows.view(spec.dtype) for rows in found)])


def refuse(writer: str, what: str, value: int, most: int) -> None:
    """Raise MX062 if a value is over what a format can hold."""
    if value > most:
        raise MixcError(
            "MX062",
            f"{writer} holds {what} up to {most}, and {value} does not fit",
            help=f"leave {writer} out of mixture.formats, or build several mixtures",
        )
