"""Staged files of a known size: their space is taken first, their parts are written in any order.

A part is what a block of a stream takes. It goes through the page cache or, by a `Window`, past it.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mixc.errors import MixcError, Place
from mixc.store import commit
from mixc.store.commit import writing

_VECTORS = 256  # POSIX systems take 1024 at a time; what these name fits in a cache
_PWRITEV = ctypes.CDLL(None, use_errno=True).pwritev
_PWRITEV.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_int64)
_PWRITEV.restype = ctypes.c_ssize_t
_OPEN = os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
# What goes past the page cache begins and ends at multiples of it: whole sectors of any disk, and
# whole pages, of which no other part goes through the cache.
_SECTOR = max(4096, mmap.PAGESIZE)
_HUGE = 1 << 21  # bytes of a huge page


def reserve(path: Path, size: int) -> None:
    """Make a staged file of `size` bytes, its space taken from the disk now.

    One that is there, in this size and whole, is not touched.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and _held(path.lstat()) == size:
            return
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(path, flags, 0o644)
        try:
            os.ftruncate(descriptor, size)
            if size:
                os.posix_fallocate(descriptor, 0, size)
        finally:
            os.close(descriptor)


def _held(status: os.stat_result) -> int | None:
    """The size of a file all of whose bytes have their place on the disk."""
    return status.st_size if status.st_blocks * 512 >= status.st_size else None


def write_at(path: Path, offset: int, data: memoryview) -> None:
    """Write a part of a reserved file. Parts may be written in any order, by any process."""
    with writing(path):
        descriptor = os.open(path, _OPEN)
        try:
            _write(descriptor, offset, data)
        finally:
            os.close(descriptor)


def start_sync(path: Path, offset: int, size: int) -> None:
    """Let the disk begin with a part, so that less is left to wait for in `commit.sync`."""
    with writing(path):
        descriptor = os.open(path, _OPEN)
        try:
            commit.start_sync(descriptor, offset, size)
        finally:
            os.close(descriptor)


def write_from(
    path: Path,
    offset: int,
    addresses: NDArray[np.uint64],
    sizes: NDArray[np.int64],
    file_of: Callable[[int], Path],
    before: Callable[[NDArray[np.uint64]], None] = lambda _: None,
) -> None:
    """Write bytes that lie in many places of this process's memory, end to end, to a part of a
    reserved file: `sizes[i]` bytes from `addresses[i]` on. They are copied once, by the system;
    `before` is told which are next (both, uint64[n, 2]). Raises MX040 if some cannot be read:
    those of number i are mapped from `file_of(i)`.
    """
    vectors = np.stack([addresses, sizes.astype(np.uint64)], axis=1)
    ends = np.cumsum(sizes)
    total, done = int(ends[-1]) if len(ends) else 0, 0
    with writing(path):
        descriptor = os.open(path, _OPEN)
        try:
            while done < total:
                first = int(np.searchsorted(ends, done, side="right"))
                part = vectors[first : first + _VECTORS].copy()
                begun = np.uint64(done - int(ends[first]) + int(sizes[first]))
                part[0, 0] += begun
                part[0, 1] -= begun
                before(part)
                if (written := _write_vectors(descriptor, part, offset + done, path)) is None:
                    raise unreadable(file_of(first))
                done += written
        finally:
            os.close(descriptor)


def unreadable(path: Path) -> MixcError:
    """What is raised where a file that is mapped cannot be read (MX040)."""
    message = "what is to be copied cannot be read any more: a file was cut, or its disk fails"
    hint = "run `mixc verify` on the store"
    return MixcError("MX040", message, place=Place(str(path)), help=hint)


def _write_vectors(
    descriptor: int, vectors: NDArray[np.uint64], offset: int, path: Path
) -> int | None:
    """`os.pwritev` of addresses; how many bytes were written, which may be fewer than asked.

    None: the first of them cannot be read.
    """
    while (written := _PWRITEV(descriptor, vectors.ctypes.data, len(vectors), offset)) < 0:
        if (number := ctypes.get_errno()) == errno.EFAULT:
            return None
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number), str(path))
    return int(written)


class Window:
    """Memory that parts of a file go through, one after the other, past the page cache.

    For a file that is not read again: in the page cache it would take the place of what is yet to
    be read, and be waited for in the end.
    """

    def __init__(self, most: int) -> None:
        """For parts of at most so many bytes."""
        private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # shared memory has no huge pages
        memory = mmap.mmap(-1, -(-(most + _SECTOR) // _HUGE) * _HUGE, flags=private)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with suppress(OSError):  # a kernel without them
                memory.madvise(mmap.MADV_HUGEPAGE)
        self._memory = memoryview(memory)

    @staticmethod
    def fits(path: Path) -> bool:
        """Whether the file's filesystem can be written to past the page cache."""
        try:
            os.close(os.open(path, _OPEN | os.O_DIRECT))
        except (AttributeError, OSError):
            return False
        return True

    def room(self, offset: int, size: int) -> memoryview:
        """Where to put the part of `size` bytes that goes to a file's `offset`."""
        lead = offset % _SECTOR  # bytes stand in sectors here as they do there
        return self._memory[lead : lead + size]

    def write(self, path: Path, offset: int, size: int) -> None:
        """Write what was put there to a part of a reserved file."""
        part = self.room(offset, size)
        first = min(-offset % _SECTOR, size)
        stop = max(first, size - (offset + size) % _SECTOR)
        if stop > first and not _write_past(path, offset + first, part[first:stop]):
            first = stop
        for begin, piece in ((0, part[:first]), (stop, part[stop:])):
            if len(piece):
                write_at(path, offset + begin, piece)


def _write_past(path: Path, offset: int, data: memoryview) -> bool:
    """Write whole sectors past the page cache; False, and some may be written, where the system
    takes no such pieces: the filesystem's sectors may be larger than ours.
    """
    with writing(path):
        descriptor = os.open(path, _OPEN | os.O_DIRECT)
        try:
            _write(descriptor, offset, data)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return False
        finally:
            os.close(descriptor)
    return True


def _write(descriptor: int, offset: int, data: memoryview) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(descriptor, data[done:], offset + done)
