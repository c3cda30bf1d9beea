"""Copying token spans from shards into a buffer: the inner loop of gather."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from mmap import PAGESIZE
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

Index = NDArray[np.int64]
# Addresses as numbers. Twice as fast as a loop over elements, where spans are of some hundred.
_size = types.uintp
_memcpy: Any = types.ExternalFunction("memcpy", _size(_size, _size, _size))
_madvise: Any = types.ExternalFunction("madvise", types.int32(_size, _size, types.int32))
_POPULATE_READ, _PAGE = 22, PAGESIZE
_FETCHED, _AHEAD = 256, 8  # bytes of a span that are asked for, and so many spans ahead


@dataclass(frozen=True)
class Pool:
    """Flat arrays of one type that spans are copied from, and where in memory they lie."""

    values: tuple[NDArray[Any], ...]
    addresses: NDArray[np.uint64]
    sizes: Index


def make_pool(values: Sequence[NDArray[Any]]) -> Pool:
    """Take arrays, each contiguous, all of one type. Raises ValueError if they are not."""
    if len({one.dtype for one in values}) > 1 or not all(one.flags.c_contiguous for one in values):
        raise ValueError("the arrays of a pool are contiguous and of one type")
    addresses = np.array([one.ctypes.data for one in values], np.uint64)
    return Pool(tuple(values), addresses, np.array([len(one) for one in values], np.int64))


def span_addresses(pool: Pool, source: Index, starts: Index, lengths: Index) -> NDArray[np.uint64]:
    """Where in memory spans begin: `lengths[i]` values from `starts[i]` on of
    `pool.values[source[i]]`. All int64[n]. Raises IndexError if one leaves its array.
    """
    if len(source) and (source.min() < 0 or source.max() >= len(pool.sizes)):
        raise IndexError("there is no such shard")
    if np.any((starts < 0) | (lengths < 0) | (starts > pool.sizes[source] - lengths)):
        raise IndexError("a span leaves the shard")
    width = np.uint64(pool.values[0].itemsize if pool.values else 1)
    return pool.addresses[source] + starts.astype(np.uint64) * width


def gather_spans(
    pool: Pool, source: Index, starts: Index, targets: Index, lengths: Index, out: NDArray[Any]
) -> None:
    """Copy spans from many arrays into one.

    For each i, `lengths[i]` values from `starts[i]` on of `pool.values[source[i]]` go to `out`,
    from `targets[i]` on. `out` is flat, contiguous and of the pool's type; the rest are int64[n].
    Spans that leave either array raise IndexError before anything of them is copied.
    """
    if not out.flags.c_contiguous or (pool.values and out.dtype != pool.values[0].dtype):
        raise ValueError("the buffer is not contiguous and of the pool's type")
    _gather_spans(pool.addresses, pool.sizes, source, starts, targets, lengths, out)


@numba.njit(cache=True, nogil=True)
def _gather_spans(
    addresses: NDArray[np.uint64],
    sizes: Index,
    source: Index,
    starts: Index,
    targets: Index,
    lengths: Index,
    out: NDArray[Any],
) -> None:  # pragma: no cover - compiled
    base, width = np.uint64(out.ctypes.data), np.uint64(out.itemsize)
    for i in range(len(starts)):
        number, start, target, length = source[i], starts[i], targets[i], lengths[i]
        if number < 0 or number >= len(sizes):
            raise IndexError("there is no such shard")
        if start < 0 or length < 0 or start > sizes[number] - length:
            raise IndexError("a span leaves the shard")
        if target < 0 or target > len(out) - length:
            raise IndexError("a span leaves the buffer")
        _memcpy(
            base + np.uint64(target) * width,
            addresses[number] + np.uint64(start) * width,
            np.uint64(length) * width,
        )


def take_words(pool: Pool, source: Index, places: Index) -> NDArray[np.uint64]:
    """Single values of 8 bytes, as uint64[n]: for each i, `pool.values[source[i]][places[i]]`.

    Both are int64[n]. Raises IndexError if there is no such value.
    """
    if any(one.itemsize != 8 for one in pool.values[:1]):
        raise ValueError("the pool's values are not of 8 bytes")
    out = np.empty(len(source), np.uint64)
    _take_words(pool.addresses, pool.sizes, source, places, out)
    return out


@intrinsic
def _word(typing: Any, address: Any) -> Any:  # noqa: ARG001 # pragma: no cover - compiled
    """The uint64 that stands at an address."""

    def load(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
        return builder.load(builder.inttoptr(arguments[0], ir.IntType(64).as_pointer()))

    return types.uint64(types.uint64), load


@numba.njit(cache=True, nogil=True)
def _take_words(
    addresses: NDArray[np.uint64],
    sizes: Index,
    source: Index,
    places: Index,
    out: NDArray[np.uint64],
) -> None:  # pragma: no cover - compiled
    # Values are far apart: twice as fast as memcpy, as many are on their way at a time.
    for i in range(len(out)):
        number, place = source[i], places[i]
        if number < 0 or number >= len(sizes) or place < 0 or place >= sizes[number]:
            raise IndexError("there is no such value")
        out[i] = _word(addresses[number] + np.uint64(place) * np.uint64(8))  # type: ignore[call-arg]


def populate(addresses: NDArray[np.uint64], sizes: Index) -> int | None:
    """Bring what lies in memory at `addresses`, `sizes[i]` bytes each, both [n], into the page
    tables, from the disk if need be; as well as the system can (Linux 5.14 and later).

    Gives the number of the first that cannot be read, where the system tells. Other threads run
    meanwhile.
    """
    failed = int(_populate(addresses, sizes))
    return failed if failed < len(addresses) and _populates() else None


@lru_cache(1)
def _populates() -> bool:
    """Whether the system can: an old one refuses all that it is asked for."""
    there = np.zeros(1, np.int64)
    return int(_populate(np.array([there.ctypes.data], np.uint64), there + 8)) == 1


@numba.njit(cache=True, nogil=True)
def _populate(addresses: NDArray[np.uint64], sizes: Index) -> int:  # pragma: no cover - compiled
    page, failed = np.uint64(_PAGE), len(addresses)
    for i in range(len(addresses)):
        begin = addresses[i] // page * page
        size = addresses[i] - begin + np.uint64(sizes[i])
        if _madvise(begin, size, np.int32(_POPULATE_READ)) != 0:
            failed = min(failed, i)
    return failed


def fetch_begins(vectors: NDArray[np.uint64]) -> None:
    """Let memory send the first bytes of what is copied next: addresses and sizes, uint64[n, 2].

    Spans lie far apart, and who copies one after the other waits for each. It reads nothing, so
    that no address can be wrong.
    """
    _fetch_begins(vectors)


@intrinsic
def _prefetch(typing: Any, address: Any) -> Any:  # noqa: ARG001 # pragma: no cover - compiled
    """Ask for the cache line at an address."""

    def ask(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
        byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
        function = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
        read, keep, data = word(0), word(3), word(1)
        builder.call(function, [builder.inttoptr(arguments[0], byte), read, keep, data])
        return context.get_dummy_value()

    return types.void(types.uint64), ask


@numba.njit(cache=True, nogil=True)
def _fetch(address: np.uint64, size: np.uint64) -> None:  # pragma: no cover - compiled
    for at in range(0, min(size, np.uint64(_FETCHED)), 64):
        _prefetch(address + np.uint64(at))  # type: ignore[call-arg]


@numba.njit(cache=True, nogil=True)
def _fetch_begins(vectors: NDArray[np.uint64]) -> None:  # pragma: no cover - compiled
    for i in range(len(vectors)):
        _fetch(vectors[i, 0], vectors[i, 1])


def copy_all(addresses: NDArray[np.uint64], sizes: Index, out: NDArray[Any]) -> None:
    """Copy what lies at `addresses`, `sizes[i]` bytes each, both [n], end to end to `out`.

    `out` is contiguous. Raises ValueError unless they fill it. An address that cannot be read ends
    the process.
    """
    whole = out.flags.c_contiguous and len(addresses) == len(sizes) and sizes.min(initial=0) >= 0
    if not whole or int(sizes.sum()) != out.nbytes:
        raise ValueError("the bytes do not fill the buffer")
    _copy_all(addresses, sizes, out)


@numba.njit(cache=True, nogil=True)
def _copy_all(
    addresses: NDArray[np.uint64], sizes: Index, out: NDArray[Any]
) -> None:  # pragma: no cover - compiled
    target, count = np.uint64(out.ctypes.data), len(addresses)
    for i in range(count):
        if i + _AHEAD < count:
            _fetch(addresses[i + _AHEAD], np.uint64(sizes[i + _AHEAD]))
        _memcpy(target, addresses[i], np.uint64(sizes[i]))
        target += np.uint64(sizes[i])


def gather_spans_reference(
    pool: Pool, source: Index, starts: Index, targets: Index, lengths: Index, out: NDArray[Any]
) -> None:
    """The same in plain numpy: for tests."""
    for number, start, target, length in zip(source, starts, targets, lengths, strict=True):
        out[target : target + length] = pool.values[number][start : start + length]
